//! The activities that workflows call, by name and signature only. Their bodies are in the `activities` crate.

#![expect(clippy::unimplemented, reason = "the SDK's macro asks for this body and never runs it")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use temporalio_macros::activity_definitions;
use temporalio_sdk::activities::ActivityError;

use crate::contract::bounds;
use crate::contract::{
    AttemptId, AttemptInput, AttemptResult, BuildError, BuildInput, BuildResult, CellDetail, CellId, CellReport,
    CellState, CloneOrder, HostCell, HostClone, HostOrder, HostWire, Isolation, Platform, PlatformResult, PoolName,
    PoolView, ProjectId, RepositoryPattern, SignalRecord,
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

    /// Tells builds that were sent to a cell to go elsewhere, and returns how many were told. Local; a build that was told already, or
    /// that is elsewhere by now, ignores it.
    #[activity(name = "tell_builds")]
    pub fn tell_builds(_: TellOrder) -> Result<u32, ActivityError> {
        unimplemented!()
    }

    /// Writes signals that a Cell or a Pool got to the audit log. Local; idempotent.
    #[activity(name = "audit_signals")]
    pub fn audit_signals(_: SignalAudit) -> Result<(), ActivityError> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Announcement {
    pub cell: CellId,
    pub state: CellState,
    /// What lists show beside the state.
    #[serde(default)]
    pub detail: CellDetail,
    /// The pool that a deleted cell leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// Signals for the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAudit {
    /// The workflow that got them.
    pub workflow_id: String,
    pub signals: Vec<SignalRecord>,
}

/// Which builds of a cell have to go elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TellOrder {
    pub cell: CellId,
    /// Nobody there answers any more: a build does not wait for its attempt to end. Otherwise only builds that wait in the cell's
    /// line are told.
    pub lost: bool,
    /// Attempts that run there and may go on.
    #[serde(default)]
    pub except: Vec<AttemptId>,
    /// Only attempts that a former builder of the cell took: the one of this epoch has never heard of them. What still waits in the
    /// cell's line is not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_to: Option<u64>,
    pub reason: String,
}

/// Activities that a Pool's workflow calls; on `kiln control`, which has the store.
pub struct PoolActivities;

#[activity_definitions]
impl PoolActivities {
    /// Writes the pool's view where placement reads it, unless a newer one is there; the version that is there now. Local; idempotent.
    #[activity(name = "write_pool")]
    pub fn write_pool(_: PoolView) -> Result<u64, ActivityError> {
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

/// Activities of `kiln builder` on the cell's second queue, so that a full cell answers as quickly as an idle one.
pub struct CellOpsActivities;

#[activity_definitions]
impl CellOpsActivities {
    /// Solves a canary, opens or closes the intake as ordered, and says what runs. Fails with type [`SICK`] when nothing is solved.
    #[activity(name = "check")]
    pub fn check(_: CheckOrder) -> Result<CellReport, ActivityError> {
        unimplemented!()
    }

    /// Runs, heartbeats and solves canaries until there is something to say.
    #[activity(name = "presence")]
    pub fn presence(_: PresenceOrder) -> Result<PresenceEnd, ActivityError> {
        unimplemented!()
    }

    /// No attempt starts after this has answered; those that run go on.
    #[activity(name = "close_intake")]
    pub fn close_intake(_: CloseOrder) -> Result<CellReport, ActivityError> {
        unimplemented!()
    }

    /// Waits until nothing runs; at the deadline ends what still runs, so that it goes elsewhere. Heartbeats as presence does.
    #[activity(name = "settle")]
    pub fn settle(_: SettleOrder) -> Result<CellReport, ActivityError> {
        unimplemented!()
    }
}

/// The failure type of a check whose canary was not solved.
pub const SICK: &str = "sick";
/// The failure type of what a builder was asked that has been restarted since.
pub const RESTARTED: &str = "restarted";
/// The failure type of an attempt that a closed intake did not let start: the build goes on as if nobody had picked it up.
pub const NOT_TAKEN: &str = "not_taken";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOrder {
    pub cell: CellId,
    /// Whether the cell is to take builds from now on.
    pub open: bool,
    /// When this was ordered, milliseconds since 1970: an order that arrives after a later one changes nothing.
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceOrder {
    pub cell: CellId,
}

/// Why presence ended before it was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PresenceEnd {
    /// The builder was told to end; these attempts still run.
    Stopping { running: Vec<AttemptId> },
    /// The builder was started again; said by its new self.
    Restarted,
    /// buildkitd solves nothing.
    Sick { why: String },
}

/// The details of presence's heartbeats, by which a late timeout is told from a timely one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// Milliseconds since 1970, by the cell's clock.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseOrder {
    pub cell: CellId,
    pub reason: String,
    /// As in [`CheckOrder`].
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleOrder {
    pub cell: CellId,
    pub reason: String,
    /// When what runs is ended, milliseconds since 1970.
    #[serde(default)]
    pub deadline_ms: Option<i64>,
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

    /// Makes a cell whose cache disk is a copy of another cell's of the host, and starts its Cell. Only guests are cloned.
    #[activity(name = "clone_cell")]
    pub fn clone_cell(_: CloneOrder) -> Result<HostClone, ActivityError> {
        unimplemented!()
    }

    /// Stops a clone and deletes it with its disk. One that is not there any more is deleted already; a cell that is no clone is refused.
    #[activity(name = "delete_clone")]
    pub fn delete_clone(_: HostOrder) -> Result<HostCell, ActivityError> {
        unimplemented!()
    }

    /// Looks at the cell's network on its host and mends what is wrong there, while the cell goes on. Idempotent by itself.
    #[activity(name = "replug_cell")]
    pub fn replug_cell(_: HostOrder) -> Result<HostWire, ActivityError> {
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
    /// The project has as many builds running as it may, or would have with those that have waited for longer.
    OverCap {
        running: u32,
        cap: u32,
        #[serde(default)]
        ahead: u32,
    },
}

/// What control said before it said how long.
const LOST_AFTER: Duration = Duration::from_secs(90);

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
    /// The project has a cap: another build of it may wait for this one's end.
    #[serde(default)]
    pub capped: bool,
    /// What the projects of the cell's pool share of its cache.
    #[serde(default, skip_serializing_if = "Isolation::is_project")]
    pub isolation: Isolation,
    /// The project's repositories; empty: the default ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryPattern>,
    /// After how long a silence the server gives the attempt up, milliseconds; absent: 90 s.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 1, { bounds::DURATION_MAX_MS }>"
    )]
    pub lost_after_ms: Option<u64>,
}

impl Placed {
    /// After how long a silence the server gives the attempt up.
    pub fn lost_after(&self) -> Duration {
        self.lost_after_ms.map_or(LOST_AFTER, Duration::from_millis)
    }
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
    /// Another build of the project may wait for this one's end.
    #[serde(default)]
    pub capped: bool,
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
