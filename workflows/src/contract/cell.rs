//! The Cell workflow's payloads, and what cells say of themselves.

use serde::{Deserialize, Serialize};

use super::{AttemptId, CellId, HostId, Platform, PoolName, bounds};

/// What a cell reports on every change and each 10 s. A hint may be stale; the worker's slots are the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellHint {
    pub cell: CellId,
    pub pool: PoolName,
    pub platform: Platform,
    pub state: CellState,
    /// At most 1024.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::SLOTS_MAX }>")]
    pub slots: u32,
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::SLOTS_MAX }>")]
    pub busy: u32,
    /// Raised by the builder at each of its starts.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub epoch: u64,
    /// The generation of the cell's cache: raised when it is reset, pruned or on a new disk, so that what was warm is known to be cold.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub generation: u64,
    /// Counts the hints of this epoch from 1; 0 from builders that do not number them.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub sequence: u64,
    /// When the api received it, milliseconds since 1970 by the api's clock; what a sender puts here is ignored.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub reported_ms: u64,
}

/// What a builder counts of its cell, for lists. Told with its hints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CellFacts {
    /// The builder's version.
    pub version: String,
    /// When the builder was started, milliseconds since 1970.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub started_ms: i64,
    /// What buildkitd's cache holds, bytes; measured now and then.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 0, { bounds::COUNT_MAX }>"
    )]
    pub cache_bytes: Option<u64>,
    /// What the machine cannot limit for steps: `swap`, `memory`; with cgroups of version 1 often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unlimited: Vec<String>,
    /// Steps of Dockerfiles since the builder was started, and how many of them came from the cache.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub steps: u64,
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub cached_steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CellState {
    Provisioning,
    Starting,
    Ready,
    Draining,
    Stopped,
    Updating,
    Unhealthy,
    Deleted,
}

impl CellState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Updating => "updating",
            Self::Unhealthy => "unhealthy",
            Self::Deleted => "deleted",
        }
    }
}

/// The signals `drain`, `restart` and `retire`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When builds still running are moved, RFC 3339; without one they run to their own time limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<jiff::Timestamp>,
}

/// The signal `clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CloneRequest {
    /// The id of the new cell, whose cache begins as a copy of this one's.
    #[serde(rename = "as")]
    pub name: CellId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The signal `update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpdateRequest {
    /// What the cell is to run, `name@sha256:…` as its host lists its images ([`super::CellImage`]). Hosts take no paths.
    pub image: String,
    #[serde(flatten)]
    pub drain: DrainRequest,
}

/// The times of a cell's life, milliseconds. A cell's own settings; its Cell learns them at each check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CellClocks {
    /// Between two heartbeats of presence.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub heartbeat_ms: u64,
    /// Silence after which presence counts as interrupted, and how long the builder then has to pick up a check.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub lost_after_ms: u64,
    /// Between two canaries.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub canary_every_ms: u64,
    /// How long buildkitd may solve nothing at all before the cell counts as unhealthy.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub canary_patience_ms: u64,
    /// How long a cell that was started may take until its builder answers.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub start_patience_ms: u64,
    /// How long a host's agent may take to pick an order up.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub host_patience_ms: u64,
    /// Between two looks at a cell that is unhealthy and that no host restarts.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub retry_ms: u64,
    /// A cell that was ready for so long has left its former failures behind.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub stable_ms: u64,
    /// The Cell starts over with an empty history at least so often.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::DURATION_MAX_MS }>")]
    pub roll_ms: u64,
}

impl Default for CellClocks {
    fn default() -> Self {
        Self {
            heartbeat_ms: 5_000,
            lost_after_ms: 12_000,
            canary_every_ms: 10_000,
            canary_patience_ms: 10_000,
            start_patience_ms: 120_000,
            host_patience_ms: 60_000,
            retry_ms: 30_000,
            stable_ms: 600_000,
            roll_ms: 24 * 3_600_000,
        }
    }
}

/// What really runs on a cell, as its builder says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellReport {
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub epoch: u64,
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::SLOTS_MAX }>")]
    pub slots: u32,
    /// Whether it takes builds.
    pub open: bool,
    /// When the order was given that it obeys in this, milliseconds since 1970; 0: not said.
    #[serde(default, deserialize_with = "bounds::within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub ordered_ms: i64,
    /// Attempts that hold a slot.
    #[serde(default)]
    pub running: Vec<AttemptId>,
    /// The host whose agent restarts the cell.
    #[serde(default)]
    pub host: Option<HostId>,
    /// The version of its builder.
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub clocks: CellClocks,
}

/// What a Cell's workflow says of its cell beside the state, for lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellDetail {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Why it is in this state, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_out: bool,
    /// The cell that it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CellId>,
    /// Since when it is in this state, milliseconds since 1970.
    #[serde(default)]
    pub since_ms: i64,
}

/// The answer of the query `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellStatus {
    pub cell: CellId,
    pub pool: PoolName,
    pub state: CellState,
    /// Why it is in this state, where that is not plain: what made it unhealthy, what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The cell that it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CellId>,
    /// The version of its builder.
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub epoch: u64,
    /// Its builder heartbeats and its buildkitd solves.
    #[serde(default)]
    pub present: bool,
    /// Restarts of this trouble that did not bring it back.
    #[serde(default)]
    pub failures: u32,
    /// Nobody tries any more: an operator has to.
    #[serde(default)]
    pub taken_out: bool,
    /// The drain in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// What became of the last signals, oldest first.
    #[serde(default)]
    pub signals: Vec<SignalRecord>,
    /// The last ones, oldest first.
    #[serde(default)]
    pub transitions: Vec<Transition>,
}

/// A drain in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainStatus {
    #[serde(flatten)]
    pub request: DrainRequest,
    /// What comes after it.
    pub then: DrainEnd,
    /// The builder takes no builds any more.
    #[serde(default)]
    pub closed: bool,
    /// Nothing runs there any more.
    #[serde(default)]
    pub idle: bool,
}

/// What a drain is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DrainEnd {
    /// The cell stays drained until `undrain`.
    Stay,
    Restart,
    Update {
        image: String,
    },
    /// The cell ends for good.
    Retire,
}

/// An operator's signal and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignalRecord {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub signal: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub outcome: SignalOutcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignalOutcome {
    /// Under way.
    Accepted,
    Done,
    /// It broke a rule, or could not be read; nothing was done.
    Refused,
    /// It was so already.
    Nothing,
    /// A later signal took its place.
    Superseded,
    Failed,
}

/// A change of state, or an operator's signal that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Transition {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub state: CellState,
    pub what: String,
}
