//! Cell: a cell's life as an entity of a few events an hour, which lives for years. It owns the life cycle, not the builds.
//!
//! ```text
//! ready ⇄ draining
//! ```
//!
//! These are the two states that need no host; the others come with the host agent. Every operator signal is idempotent and
//! decoded from its raw value, so that a malformed one is recorded as refused and the workflow lives on.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use temporalio_common::data_converters::RawValue;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ContinueAsNewOptions, LocalActivityOptions, SyncWorkflowContext, WorkflowContext, WorkflowContextView,
    WorkflowResult,
};

use crate::activities::{Announcement, CellEntityActivities};
use crate::contract::{CellId, CellState, CellStatus, DrainRequest, HostId, PoolName, Transition};

/// How many transitions `status` remembers.
const MAX_TRANSITIONS: usize = 16;
/// The entity starts over with a short history at least so often.
const ROLL_EVERY: Duration = Duration::from_secs(24 * 3600);
/// … or when its history has grown to so many events.
const ROLL_AT_EVENTS: u32 = 2000;

/// Between two tries to tell placement while the store is away.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(10);

/// What a Cell is started with, and what it carries over when it continues as new.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CellSeed {
    pub cell: CellId,
    pub pool: PoolName,
    pub slots: u32,
    /// The host whose agent starts and stops the cell.
    #[serde(default)]
    pub host: Option<HostId>,
    #[serde(default)]
    pub carried: Option<CellStatus>,
}

#[workflow]
pub struct Cell {
    seed: CellSeed,
    status: CellStatus,
    /// Placement does not know of the state yet.
    unannounced: bool,
}

#[workflow_methods]
impl Cell {
    #[init]
    fn new(_ctx: &WorkflowContextView, seed: CellSeed) -> Self {
        let status = seed.carried.clone().unwrap_or_else(|| CellStatus {
            cell: seed.cell.clone(),
            pool: seed.pool.clone(),
            state: CellState::Ready,
            slots: seed.slots,
            drain: None,
            transitions: Vec::new(),
        });
        Self { unannounced: seed.carried.is_none(), seed, status }
    }

    #[run(name = "Cell")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<()> {
        let mut until_roll = ctx.timer(ROLL_EVERY);
        loop {
            announce(ctx).await;
            let view = ctx.clone();
            let mut something = ctx.wait_condition(move |cell| cell.unannounced || must_roll(&view));
            temporalio_sdk::workflows::select! {
                _ = until_roll => break,
                waited = something => waited?,
            }
            if must_roll(ctx) {
                break;
            }
        }
        announce(ctx).await;
        let handlers = ctx.clone();
        ctx.wait_condition(move |_| handlers.all_handlers_finished()).await?;
        let seed = ctx.state(|s| CellSeed { carried: Some(s.status.clone()), ..s.seed.clone() });
        ctx.continue_as_new(seed, ContinueAsNewOptions::default())?;
        Ok(())
    }

    /// No new builds; running ones finish. Payload: `{reason, by, deadline}`, every field optional.
    #[signal]
    pub fn drain(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        let at_ms = signal_time_ms(ctx);
        match decode_drain(&raw) {
            Ok(request) => {
                let what = format!("drain: {}", request.reason.as_deref().unwrap_or("no reason given"));
                self.status.drain = Some(request);
                self.enter(CellState::Draining, what, at_ms);
            }
            Err(why) => self.note(format!("drain refused: {why}"), at_ms),
        }
    }

    /// Takes builds again.
    #[signal]
    pub fn undrain(&mut self, ctx: &mut SyncWorkflowContext<Self>, _raw: RawValue) {
        let at_ms = signal_time_ms(ctx);
        self.status.drain = None;
        self.enter(CellState::Ready, "undrain".to_owned(), at_ms);
    }

    #[query]
    pub fn status(&self, _ctx: &WorkflowContextView) -> CellStatus {
        self.status.clone()
    }
}

impl Cell {
    fn enter(&mut self, state: CellState, what: String, at_ms: i64) {
        if self.status.state != state {
            self.status.state = state;
            self.unannounced = true;
            self.note(what, at_ms);
        }
    }

    fn note(&mut self, what: String, at_ms: i64) {
        if self.status.transitions.len() == MAX_TRANSITIONS {
            self.status.transitions.remove(0);
        }
        self.status.transitions.push(Transition { at_ms, state: self.status.state, what });
    }
}

fn must_roll(ctx: &WorkflowContext<Cell>) -> bool {
    ctx.history_length() > ROLL_AT_EVENTS || ctx.continue_as_new_suggested()
}

/// Tells placement. A signal that comes in meanwhile is told in the next round.
async fn announce(ctx: &WorkflowContext<Cell>) {
    if !ctx.state(|s| s.unannounced) {
        return;
    }
    let announcement = ctx.state_mut(|s| {
        s.unannounced = false;
        Announcement { cell: s.status.cell.clone(), state: s.status.state }
    });
    let options = LocalActivityOptions::builder()
        .start_to_close_timeout(Duration::from_secs(5))
        .schedule_to_close_timeout(Duration::from_secs(60))
        .build();
    let announced = ctx.execute_local_activity(CellEntityActivities::announce_cell, announcement, options).await;
    if announced.is_err() {
        // The store was away for a minute: the next round tries again.
        ctx.timer(ANNOUNCE_PAUSE).await;
        ctx.state_mut(|s| s.unannounced = true);
    }
}

fn signal_time_ms(ctx: &SyncWorkflowContext<Cell>) -> i64 {
    let since = ctx.workflow_time().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// No payload at all is a drain without a reason.
fn decode_drain(raw: &RawValue) -> Result<DrainRequest, String> {
    match raw.payloads.first() {
        None => Ok(DrainRequest::default()),
        Some(payload) if payload.data.is_empty() || payload.data == b"null" => Ok(DrainRequest::default()),
        Some(payload) => serde_json::from_slice(&payload.data).map_err(|e| e.to_string()),
    }
}
