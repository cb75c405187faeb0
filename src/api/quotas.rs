//! Projects' quotas: what is over one is refused, or answered 429 with the time when it is worth another try.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use activities::store::ProjectRow;
use workflows::contract::{BuildInput, ProjectName, Quotas};

use super::App;
use super::error::ApiError;

/// When a project with too many open builds or streams is worth another try, seconds.
const RETRY_S: u64 = 10;

impl App {
    /// Whether a project may start a build now. Counts it.
    ///
    /// # Errors
    /// 422 for too many tags, 429 for too many builds.
    pub async fn may_start(&self, project: &ProjectRow, input: &BuildInput) -> Result<(), ApiError> {
        let Quotas { builds_per_minute, open_builds, .. } = project.settings.quotas;
        project.settings.quotas.check_tags(input.tags.len()).map_err(ApiError::refused)?;
        if let Some(most) = open_builds {
            let open = self.store.open_builds(&project.name).await?;
            if open >= u64::from(most) {
                let message =
                    format!("project {} has {open} open builds and may have {most} (open_builds)", project.name);
                return Err(ApiError::too_many(message, RETRY_S));
            }
        }
        if let Some(most) = builds_per_minute {
            let second = jiff::Timestamp::now().as_second();
            if !self.store.count_start(&project.name, second.div_euclid(60), most).await? {
                let left = u64::try_from(60 - second.rem_euclid(60)).unwrap_or(60);
                let name = &project.name;
                let message = format!("project {name} has started {most} builds in this minute (builds_per_minute)");
                return Err(ApiError::too_many(message, left));
            }
        }
        Ok(())
    }
}

/// The event streams that are open, by project.
#[derive(Debug, Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<ProjectName, u32>>>);

/// An open event stream; it counts until it is dropped.
#[derive(Debug)]
pub struct OpenStream {
    streams: Streams,
    project: ProjectName,
}

impl Streams {
    /// Counts a stream of a project.
    ///
    /// # Errors
    /// 429 when it has as many as it may.
    pub fn open(&self, project: &ProjectName, quotas: &Quotas) -> Result<OpenStream, ApiError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(project.clone()).or_default();
        if let Some(most) = quotas.event_streams.filter(|most| *count >= *most) {
            let message =
                format!("project {project} has {count} event streams open and may have {most} (event_streams)");
            return Err(ApiError::too_many(message, RETRY_S));
        }
        *count = count.saturating_add(1);
        Ok(OpenStream { streams: self.clone(), project: project.clone() })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.project) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.project);
            }
        }
    }
}
