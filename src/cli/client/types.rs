//! The api's answers, as far as the command line looks at them. Unknown fields are ignored, so that a newer api can be asked.

use serde::{Deserialize, Serialize};
use workflows::contract::{
    BuildInput, BuildResult, BuildStatus, BuildView, PoolMember, PoolName, PoolSettings, Quotas, RepositoryPattern,
    SecretsRef,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectInfo {
    pub name: String,
    pub id: String,
    /// Milliseconds since 1970, here and below.
    pub created_ms: i64,
    pub settings: ProjectSettings,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectSettings {
    /// Of builds that do not say: `min`, `max`, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// The pool that builds it, when it is not the installation's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// How many of its builds may hold or wait for a slot at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_builds: Option<u32>,
    /// Where its builds may publish; empty for the default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryPattern>,
    #[serde(flatten)]
    pub quotas: Quotas,
}

/// A pool with what its cells last said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolInfo {
    pub pool: PoolName,
    pub version: u64,
    pub settings: PoolSettings,
    pub cells: Vec<PoolCell>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolCell {
    #[serde(flatten)]
    pub member: PoolMember,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_ms: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct SecretsStored {
    pub secrets_ref: SecretsRef,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStarted {
    pub build_id: String,
    pub workflow_id: String,
    pub run_id: String,
    /// It ran already; this request has joined it.
    #[serde(default)]
    pub attached: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelAnswer {
    /// Where the build stood when it was asked.
    pub status: BuildStatus,
}

/// A build in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSummary {
    pub build_id: String,
    pub project: String,
    pub key: String,
    pub workflow_id: String,
    /// The newest run.
    pub run_id: String,
    pub status: BuildStatus,
    pub snapshot: String,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The cell it runs or ran on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    pub created_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

/// Everything about a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildInfo {
    #[serde(flatten)]
    pub summary: BuildSummary,
    pub input: BuildInput,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<BuildResult>,
    /// Of a build that has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<BuildView>,
    /// The newest first.
    #[serde(default)]
    pub runs: Vec<Run>,
    #[serde(default)]
    pub steps: Vec<Step>,
}

impl BuildInfo {
    /// The run whose log tells how the result came about: the newest one, unless that only handed out what an earlier one had built.
    pub fn built_by(&self) -> &str {
        let handed_out = self.result.as_ref().is_some_and(|result| result.from_outcome);
        // The first that succeeded built it: all that came after it handed it out.
        let first = self.runs.iter().rev().find(|run| handed_out && run.status == BuildStatus::Succeeded);
        first.map_or(&self.summary.run_id, |run| &run.run_id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub run_id: String,
    pub status: BuildStatus,
    pub created_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

/// One step of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub attempt: u32,
    pub name: String,
    pub outcome: StepOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    Waiting,
    Running,
    Ran,
    Cached,
    Failed,
}
