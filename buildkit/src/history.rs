//! The daemon's record of builds: how one ended whose client did not live to see it.

use crate::{
    Client, ClientError, Descriptor, SolveError,
    progress::{Vertexes, millis},
    proto::moby::buildkit::v1::{BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest},
};
use std::collections::BTreeMap;
use tonic::Code;

/// What the daemon keeps about a build.
#[derive(Debug, Clone)]
pub struct BuildRecord {
    pub reference: String,
    pub created_ms: Option<u64>,
    /// `None` while it runs.
    pub completed_ms: Option<u64>,
    /// Why it failed. The daemon keeps the message here; exit code, step and source lines are not part of it.
    pub error: Option<SolveError>,
    /// What the exporters made, in their order: for an image its manifest or index.
    pub results: Vec<Descriptor>,
    pub cached_steps: i32,
    pub completed_steps: i32,
    pub total_steps: i32,
    pub warnings: i32,
}

/// What became of a build.
#[derive(Debug, Clone)]
pub enum Settled {
    /// It runs.
    Running,
    /// It succeeded; the digest is that of its first image, if it made one.
    Completed { digest: Option<String> },
    /// It failed, or was cancelled.
    Failed(SolveError),
    /// The daemon does not know it: it never arrived, the daemon died while it ran, or its record is gone.
    Unknown,
}

impl Client {
    /// The daemon's record of a build, running or ended.
    pub async fn build_record(&self, reference: &str) -> Result<Option<BuildRecord>, ClientError> {
        self.listen(reference, true).await
    }

    /// The last record of a build that is there, or, unless `early_exit`, that comes until it has ended.
    async fn listen(&self, reference: &str, early_exit: bool) -> Result<Option<BuildRecord>, ClientError> {
        let request = BuildHistoryRequest { r#ref: reference.to_owned(), early_exit, ..Default::default() };
        let call = || ClientError::call("ListenBuildHistory");
        let mut events = match self.control().listen_build_history(request).await {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(call()(status)),
        };
        let mut found: Option<BuildRecord> = None;
        while early_exit || found.as_ref().is_none_or(|record| record.completed_ms.is_none()) {
            match events.message().await {
                Ok(Some(event)) if event.r#type() == BuildHistoryEventType::Deleted => return Ok(None),
                Ok(Some(event)) => found = record(event, reference).or(found),
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(call()(status)),
            }
        }
        Ok(found)
    }

    /// What became of a build: for a caller that lost it and must know before it tries again. Asks once, waits for nothing.
    pub async fn settle(&self, reference: &str) -> Result<Settled, ClientError> {
        Ok(settled(self.build_record(reference).await?))
    }

    /// As [`Client::settle`], but waits while the build runs. One that was cancelled, or whose client is gone, takes a
    /// moment to stop and to be recorded.
    pub async fn settle_at_end(&self, reference: &str) -> Result<Settled, ClientError> {
        match self.settle(reference).await? {
            Settled::Running => Ok(settled(self.listen(reference, false).await?)),
            at_once => Ok(at_once),
        }
    }
}

fn settled(record: Option<BuildRecord>) -> Settled {
    match record {
        None => Settled::Unknown,
        Some(BuildRecord { error: Some(error), .. }) => Settled::Failed(error),
        Some(BuildRecord { completed_ms: None, .. }) => Settled::Running,
        Some(record) => Settled::Completed { digest: record.results.into_iter().next().map(|result| result.digest) },
    }
}

fn record(event: BuildHistoryEvent, reference: &str) -> Option<BuildRecord> {
    event.record.filter(|record| record.r#ref == reference).map(BuildRecord::from)
}

impl From<BuildHistoryRecord> for BuildRecord {
    fn from(record: BuildHistoryRecord) -> Self {
        let error = record.error.map(|error| {
            SolveError::from_parts(Code::from_i32(error.code), &error.message, &error.details, &Vertexes::default())
        });
        let results: BTreeMap<_, _> = record.result.unwrap_or_default().results.into_iter().collect();
        let result = |descriptor: crate::proto::moby::buildkit::v1::Descriptor| Descriptor {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            annotations: descriptor.annotations.into_iter().collect(),
        };
        Self {
            reference: record.r#ref,
            created_ms: record.created_at.map(millis),
            completed_ms: record.completed_at.map(millis),
            error,
            results: results.into_values().map(result).collect(),
            cached_steps: record.num_cached_steps,
            completed_steps: record.num_completed_steps,
            total_steps: record.num_total_steps,
            warnings: record.num_warnings,
        }
    }
}
