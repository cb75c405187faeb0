//! The activities that workflows call, by name and signature only. Their bodies are in the `activities` crate.

#![expect(clippy::unimplemented, reason = "the SDK's macro asks for this body and never runs it")]

use serde::{Deserialize, Serialize};
use temporalio_macros::activity_definitions;
use temporalio_sdk::activities::ActivityError;

use crate::contract::{
    AttemptInput, AttemptResult, BuildError, BuildInput, BuildResult, CellId, CellState, HostCell, HostOrder, Platform,
    PlatformResult, PoolName, PoolView, ProjectId,
};

/// Activities of `kiln control`: they touch the store, object storage and registries.
pub struct ControlActivities;

#[activity_definitions]
impl ControlActivities {
    /// Validates, looks the outcome up, chooses a cell. Local; one round trip to the store; never waits.
    #[activity(name = "admit")]
    pub fn admit(_: AdmitInput) -> Result<Admission, ActivityError> {
        unimplemented!()
    }

    /// Fixes the outcome, writes the tags, marks it published. Local, at most 5 s; idempotent.
    #[activity(name = "publish")]
    pub fn publish(_: PublishInput) -> Result<Publication, ActivityError> {
        unimplemented!()
    }

    /// The same as an ordinary activity, for a registry that is slow or asks to wait; retried by its policy.
    #[activity(name = "publish_slowly")]
    pub fn publish_slowly(_: PublishInput) -> Result<Publication, ActivityError> {
        unimplemented!()
    }

    /// Writes the final state of a build that did not succeed, before the workflow closes. Local; idempotent.
    #[activity(name = "conclude")]
    pub fn conclude(_: ConcludeInput) -> Result<(), ActivityError> {
        unimplemented!()
    }
}

/// Activities that a Cell's workflow calls; on `kiln control`, which has the store.
pub struct CellEntityActivities;

#[activity_definitions]
impl CellEntityActivities {
    /// Tells placement what the entity has decided of its cell. Local; idempotent.
    #[activity(name = "announce_cell")]
    pub fn announce_cell(_: Announcement) -> Result<(), ActivityError> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Announcement {
    pub cell: CellId,
    pub state: CellState,
}

/// Activities that a Pool's workflow calls; on `kiln control`, which has the store.
pub struct PoolActivities;

#[activity_definitions]
impl PoolActivities {
    /// Writes the pool's view where placement reads it, unless a newer one is there. Local; idempotent.
    #[activity(name = "write_pool")]
    pub fn write_pool(_: PoolView) -> Result<(), ActivityError> {
        unimplemented!()
    }

    /// The view that was written last. Local.
    #[activity(name = "read_pool")]
    pub fn read_pool(_: PoolName) -> Result<Option<PoolView>, ActivityError> {
        unimplemented!()
    }
}

/// Activities of `kiln builder`, on the cell's own task queue.
pub struct CellActivities;

#[activity_definitions]
impl CellActivities {
    /// One attempt: fetch, plan, solve, push by digest, report. Holds a slot for as long as it runs.
    #[activity(name = "build")]
    pub fn build(_: AttemptInput) -> Result<AttemptResult, ActivityError> {
        unimplemented!()
    }
}

/// Activities of `kiln host`, on the host's own task queue: each idempotent by its order's operation id. They heartbeat.
pub struct HostActivities;

#[activity_definitions]
impl HostActivities {
    /// Starts the cell where it does not run and returns when it is up; one that runs another image than ordered is stopped first.
    #[activity(name = "start_cell")]
    pub fn start_cell(_: HostOrder) -> Result<HostCell, ActivityError> {
        unimplemented!()
    }

    /// Asks the cell to end, kills what is left after the order's grace, and returns when nothing is.
    #[activity(name = "stop_cell")]
    pub fn stop_cell(_: HostOrder) -> Result<HostCell, ActivityError> {
        unimplemented!()
    }

    /// Says what runs, and changes nothing.
    #[activity(name = "inspect_cell")]
    pub fn inspect_cell(_: HostOrder) -> Result<HostCell, ActivityError> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdmitInput {
    pub workflow_id: String,
    pub run_id: String,
    pub input: BuildInput,
    /// When this run started, milliseconds since 1970.
    pub started_ms: i64,
    /// Cells this build has already tried in vain.
    #[serde(default)]
    pub exclude: Vec<CellId>,
    /// How often a cell was chosen before; 0 at first.
    #[serde(default)]
    pub round: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Admission {
    /// Build on this cell.
    Placed(Placed),
    /// The key's outcome is recorded: nothing to build.
    Recorded { result: Box<BuildResult> },
    /// Not to be built: which rule says so.
    Refused { error: BuildError },
    /// No cell of the platform can be used now.
    NoCell { reason: String },
    /// The project has as many builds running as it may.
    OverCap { running: u32, cap: u32 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Placed {
    pub project_id: ProjectId,
    pub platform: Platform,
    pub cell: CellId,
    pub warm: bool,
    /// Whether a slot is believed free: then the build moves on when it is not picked up in time.
    pub free: bool,
    pub reason: String,
    pub input_digest: String,
    /// The cell's pool, when it is not the build's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The generation of the cell's cache, to be recorded as warm when the build succeeds.
    #[serde(default)]
    pub generation: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishInput {
    pub workflow_id: String,
    pub run_id: String,
    pub project_id: ProjectId,
    pub input: BuildInput,
    pub input_digest: String,
    pub started_ms: i64,
    /// What was built, with `status` succeeded and `digest` of the single platform or absent for several.
    pub result: BuildResult,
    pub platforms: Vec<PlatformResult>,
    /// The generation of the building cell's cache when the build was placed.
    #[serde(default)]
    pub generation: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Publication {
    /// Every tag stands; this is the key's outcome (another run's, when that was first).
    Published { result: Box<BuildResult> },
    /// The registry is slow or asks to wait: go on as an ordinary activity.
    Slow { reason: String, retry_after_s: u64 },
    /// The registry has collected what was pushed: build once more, then publish.
    ContentGone { reason: String },
    /// It cannot be published: the registry refused.
    Refused { error: BuildError },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConcludeInput {
    pub workflow_id: String,
    pub run_id: String,
    pub started_ms: i64,
    /// Absent when the input could not be decoded.
    #[serde(default)]
    pub input: Option<BuildInput>,
    pub result: BuildResult,
}
