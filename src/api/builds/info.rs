//! What is shown of a build.

use activities::store::BuildRow;
use serde::Serialize;
use workflows::contract::{
    BuildInput, BuildKey, BuildResult, BuildStatus, BuildView, CellId, Digest, ProjectName, SnapshotId,
};

use crate::api::logs::Step;

/// A build in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BuildSummary {
    /// `<project>/<key>`.
    pub build_id: String,
    pub project: ProjectName,
    pub key: BuildKey,
    pub workflow_id: String,
    /// The newest run.
    pub run_id: String,
    pub status: BuildStatus,
    pub snapshot: SnapshotId,
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The cell it runs or ran on last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellId>,
    /// When the run was started, milliseconds since 1970, as the others.
    pub created_ms: i64,
    /// When a cell picked it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

impl BuildSummary {
    pub fn of(row: &BuildRow) -> Self {
        Self {
            build_id: format!("{}/{}", row.project, row.key),
            project: row.project.clone(),
            key: row.key.clone(),
            workflow_id: row.workflow_id.clone(),
            run_id: row.run_id.clone(),
            status: row.status,
            snapshot: row.input.snapshot.clone(),
            tags: row.input.tags.clone(),
            digest: row.result.as_ref().and_then(|result| result.digest.clone()),
            cell: row.cell.clone(),
            created_ms: row.created_ms,
            started_ms: row.started_ms,
            ended_ms: row.ended_ms,
        }
    }
}

/// Everything about a build.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BuildInfo {
    #[serde(flatten)]
    pub summary: BuildSummary,
    pub input: BuildInput,
    /// Set when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<BuildResult>,
    /// Of a build that has not ended, when its workflow answers: where it was sent so far, or why it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<BuildView>,
    /// All runs under this id, the newest first.
    pub runs: Vec<RunInfo>,
    /// The steps of the newest run, in the order in which they became known.
    pub steps: Vec<Step>,
}

/// One run of a build.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RunInfo {
    pub run_id: String,
    pub status: BuildStatus,
    pub created_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

impl RunInfo {
    pub fn of(row: &BuildRow) -> Self {
        let BuildRow { run_id, status, created_ms, ended_ms, .. } = row.clone();
        Self { run_id, status, created_ms, ended_ms }
    }
}
