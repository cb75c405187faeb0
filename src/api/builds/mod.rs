//! Builds: start, list, show, follow, cancel, retry.
//!
//! A build's id is `<project>/<key>`: the workflow id without its first word, percent-encoded as one segment in a URL. It names
//! all runs of the build; what is shown is the newest one.

mod events;
mod id;
mod info;
mod start;

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use workflows::contract::{BuildStatus, ProjectName};

use activities::store::{BuildFilter, BuildRow};

use super::access::{Build, BuildAccess, ListAccess, Read};
use super::error::{ApiError, ErrorBody};
use super::extract::Parameters;
use super::{App, logs};

pub use events::{__path_follow, StatusEvent, follow};
pub use id::BuildId;
pub use info::{BuildInfo, BuildSummary, RunInfo};
pub use start::{__path_retry, __path_start, provenance, retry, start};

/// How many builds a list shows unless it is told, and at most.
const LIST: u32 = 50;
const LIST_MOST: u32 = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only this project's.
    pub project: Option<ProjectName>,
    /// Only those that stand so.
    pub status: Option<BuildStatus>,
    /// At most so many, newest first; 50 when absent, never more than 1000.
    pub limit: Option<u32>,
}

/// What became of a request to cancel.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CancelAnswer {
    /// Where the build stood when it was asked. One that has ended stays as it is.
    pub status: BuildStatus,
}

/// Builds that the caller may see, the newest first.
#[utoipa::path(get, path = "/v1/builds", tag = "builds", params(ListQuery), responses(
    (status = 200, body = [BuildSummary]), (status = "default", body = ErrorBody)))]
pub async fn list(
    ListAccess { app, only }: ListAccess,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<Vec<BuildSummary>>, ApiError> {
    if only.as_ref().is_some_and(|own| query.project.as_ref().is_some_and(|asked| asked != own)) {
        return Ok(Json(Vec::new()));
    }
    let limit = query.limit.unwrap_or(LIST).min(LIST_MOST);
    let filter = BuildFilter { project: only.or(query.project), status: query.status, limit };
    let rows = app.store.builds(&filter).await?;
    Ok(Json(rows.iter().map(BuildSummary::of).collect()))
}

/// One build: where it stands, its input and result, its runs, and of each step whether it ran and how long.
#[utoipa::path(get, path = "/v1/builds/{build}", tag = "builds",
    params(("build" = String, Path, description = "`<project>/<key>`, percent-encoded")), responses(
    (status = 200, body = BuildInfo), (status = "default", body = ErrorBody)))]
pub async fn show(access: BuildAccess<Read>) -> Result<Json<BuildInfo>, ApiError> {
    let BuildAccess { app, id, .. } = access;
    let runs = app.store.runs(&id.workflow_id()).await?;
    let Some(row) = runs.first().cloned() else { return Err(unknown(&id)) };
    let log = app.logs.log(&row.run()).await?;
    let steps = logs::steps(&app.logs, log).await?;
    let runs = runs.iter().map(RunInfo::of).collect();
    let view = if row.status.is_final() { None } else { app.engine.view(&row.run()).await };
    let BuildRow { input, result, .. } = row.clone();
    Ok(Json(BuildInfo { summary: BuildSummary::of(&row), input, result, view, runs, steps }))
}

/// Asks a build to stop. It ends when its cell has let go, within seconds; follow its events to see it.
#[utoipa::path(post, path = "/v1/builds/{build}/cancel", tag = "builds",
    params(("build" = String, Path, description = "`<project>/<key>`, percent-encoded")), responses(
    (status = 202, description = "It was asked", body = CancelAnswer),
    (status = 200, description = "It had ended already", body = CancelAnswer),
    (status = "default", body = ErrorBody)))]
pub async fn cancel(access: BuildAccess<Build>) -> Result<(StatusCode, Json<CancelAnswer>), ApiError> {
    let BuildAccess { app, id, .. } = access;
    let row = app.newest_run(&id).await?;
    let answer = Json(CancelAnswer { status: row.status });
    if row.status.is_final() {
        return Ok((StatusCode::OK, answer));
    }
    app.engine.cancel(&row.run(), "asked for through the api").await?;
    Ok((StatusCode::ACCEPTED, answer))
}

pub fn unknown(id: &BuildId) -> ApiError {
    ApiError::not_found(format!("there is no build {id}"))
}

impl App {
    async fn newest_run(&self, id: &BuildId) -> Result<BuildRow, ApiError> {
        self.store.build(&id.workflow_id()).await?.ok_or_else(|| unknown(id))
    }

    /// The newest run that was not refused, say for another input than the key's own; the newest one where all were.
    async fn run_to_retry(&self, id: &BuildId) -> Result<BuildRow, ApiError> {
        let mut runs = self.store.runs(&id.workflow_id()).await?;
        let at = runs.iter().position(|run| !run.was_refused()).unwrap_or(0);
        if runs.is_empty() { Err(unknown(id)) } else { Ok(runs.swap_remove(at)) }
    }
}
