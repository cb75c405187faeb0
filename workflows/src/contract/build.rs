//! The Build workflow's payloads.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    AttemptId, AttemptTimeout, BuildError, CellId, Digest, Isolation, Platform, PoolName, ProjectId, ProjectName,
    QueuePatience, RepositoryPattern, SecretsRef, SnapshotId, bounds,
};

/// How many cells a build may try: faults move it at most twice.
pub const MAX_ATTEMPTS: u32 = 3;

/// The limit of an attempt when the input names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a build waits to be picked up when the input does not say.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// What a build may spend on waiting for a cell, for its project's cap and for the registry, all together.
const WAITS: Duration = Duration::from_secs(12 * 3600);
/// What one more step may take beyond an attempt: a line in front of a cell, and publishing.
const LAST_STEP: Duration = Duration::from_secs(3600);

/// Bytes of a build's input as JSON.
pub const INPUT_LIMIT: usize = 256 << 10;

/// What a Build is started with. At most 256 KB as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildInput {
    pub project: ProjectName,
    pub snapshot: SnapshotId,
    /// Path of the Dockerfile in the snapshot; default `Dockerfile`, or else the one that was sent beside the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The stage to build; default the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Build arguments (`ARG`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Labels set on the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Default: the pool's own platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// References to publish, `host[:port]/repository:tag`. At least one.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Sealed registry credentials and build secrets. Not part of the input digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_ref: Option<SecretsRef>,
    /// The ids of the build secrets behind `secrets_ref`. Part of the input digest; the values are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// Ask the registry for newer base images also when they are cached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pull: bool,
    /// Attach provenance: `min`, `max`, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Use the frontend image that `# syntax=` names instead of the built-in one (allow-listed images only).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub registry_frontend: bool,
    /// The limit of one attempt, seconds; 1 to 86400, default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<AttemptTimeout>,
    /// How long a build waits to be picked up by a cell believed free, seconds; 1 to 86400, default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_patience_s: Option<QueuePatience>,
}

impl BuildInput {
    /// The limit of one attempt.
    pub fn attempt_limit(&self) -> Duration {
        self.timeout_s.map_or(DEFAULT_TIMEOUT, AttemptTimeout::duration)
    }

    /// How long it waits to be picked up by a cell believed free.
    pub fn queue_patience(&self) -> Duration {
        self.queue_patience_s.map_or(DEFAULT_PATIENCE, QueuePatience::duration)
    }

    /// The time after which a build starts nothing more, from the start of its workflow: room for [`MAX_ATTEMPTS`] attempts and for
    /// waiting.
    pub fn time_limit(&self) -> Duration {
        WAITS.saturating_add(self.attempt_limit().saturating_mul(MAX_ATTEMPTS))
    }

    /// The execution timeout of its workflow: what the workflow enforces itself, and the end of what it began before that. A backstop
    /// for a workflow that makes no progress at all.
    pub fn execution_timeout(&self) -> Duration {
        self.time_limit().saturating_add(self.attempt_limit()).saturating_add(LAST_STEP)
    }
}

/// How a build ended, or where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    Queued,
    Running,
    Publishing,
    Succeeded,
    Failed,
    Cancelled,
}

impl BuildStatus {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Publishing => "publishing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What became of a build. At most 64 KB as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildResult {
    pub status: BuildStatus,
    /// What every tag points at: an image manifest, or an index for several platforms or attestations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The first tag with the digest: `host/repository@sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default)]
    pub platforms: Vec<PlatformResult>,
    /// Each choice of a cell, in order.
    #[serde(default)]
    pub placement: Vec<Placement>,
    #[serde(default)]
    pub attempts: Vec<AttemptRecord>,
    #[serde(default)]
    pub tags: Vec<TagResult>,
    #[serde(default)]
    pub timings: Timings,
    #[serde(default)]
    pub cache: CacheStats,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildError>,
    /// Whether this is the recorded outcome of an earlier run of the same key: nothing was built.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_outcome: bool,
}

impl BuildResult {
    /// A result that says nothing but how the build stands.
    pub fn blank(status: BuildStatus) -> Self {
        Self {
            status,
            digest: None,
            image: None,
            platforms: Vec::new(),
            placement: Vec::new(),
            attempts: Vec::new(),
            tags: Vec::new(),
            timings: Timings::default(),
            cache: CacheStats::default(),
            error: None,
            from_outcome: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlatformResult {
    pub platform: Platform,
    pub digest: Digest,
    pub cell: CellId,
}

/// One choice of a cell and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Placement {
    pub platform: Platform,
    pub cell: CellId,
    /// The cell's pool, when it is not the build's own but one that it overflows into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Whether the cell's cache was warm for the project: a build of it succeeded there, and the cache was not lost since.
    #[serde(default)]
    pub warm: bool,
    /// Whether the hints named a free slot.
    pub free: bool,
    /// Why this one, for example `home cell 1 of 3, free`.
    pub reason: String,
    /// `built`, `not_picked_up`, `cell_fault`, …; empty while it runs.
    #[serde(default)]
    pub outcome: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptRecord {
    pub number: u32,
    pub platform: Platform,
    pub cell: CellId,
    /// The BuildKit `ref`.
    pub buildkit_ref: String,
    /// `built`, `not_picked_up`, or the class of its failure.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TagResult {
    pub tag: String,
    /// `written`, `unchanged`, or `superseded`: a build that started later has it.
    pub outcome: String,
}

/// Milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Timings {
    /// From the workflow's start to the winning attempt's pick-up.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub queue: u64,
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub fetch: u64,
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub solve: u64,
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub publish: u64,
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub total: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CacheStats {
    #[serde(default)]
    pub total_steps: u32,
    #[serde(default)]
    pub cached_steps: u32,
    /// Bytes fetched from object storage by the cell.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub fetched_bytes: u64,
}

/// The build activity's input, on `cell-<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptInput {
    pub attempt: AttemptId,
    pub project_id: ProjectId,
    pub cell: CellId,
    pub input: BuildInput,
    /// What the pool's projects share of the cell's cache.
    #[serde(default, skip_serializing_if = "Isolation::is_project")]
    pub isolation: Isolation,
    /// Where the project may publish and what it may read; empty: the default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryPattern>,
}

/// The signal `move_on`, from a Cell to the builds that were sent to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveNotice {
    pub cell: CellId,
    /// Nobody there answers any more: the attempt's end is not waited for.
    #[serde(default)]
    pub lost: bool,
    pub reason: String,
}

/// The build activity's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    pub digest: Digest,
    /// Media type and size of what `digest` names, for the index.
    pub media_type: String,
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub size: u64,
    pub timings: Timings,
    pub cache: CacheStats,
}

/// The answer of the query `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildView {
    pub status: BuildStatus,
    /// Why it has no cell yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    pub placement: Vec<Placement>,
    pub attempts: Vec<AttemptRecord>,
}
