//! Cell: a cell's life as an entity of a few events an hour, which lives for years. It owns the life cycle, not the builds.
//!
//! The decisions are pure code ([`crate::policy::Life`], where the states are drawn); this workflow does what they say, one action at
//! a time, and tells the answer. A signal is decoded from its raw value, so that a malformed one is recorded as refused and the
//! workflow lives on.
//!
//! ```text
//! news? ─► tell placement, tell builds (local activities) ─► the next action ─► its answer ─► news? …
//!                                                             │ nobody heard: told again beside it
//!                                                             │ no longer the next one: dropped
//!                                                             └ a day is over, or the history long: continue as new
//! ```
//!
//! All there is to know lies in the life, so the workflow can continue as new between any two actions: nothing is outstanding then. A
//! clone, which its host makes beside the actions, is waited for.

mod act;

use std::convert::Infallible;
use std::time::{Duration, UNIX_EPOCH};

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use temporalio_common::data_converters::RawValue;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    CancellableFuture as _, ContinueAsNewOptions, LocalActivityOptions, SyncWorkflowContext, TimerResult,
    WorkflowCancellationError, WorkflowContext, WorkflowContextView, WorkflowResult,
};
use temporalio_workflow::RetryPolicy;

use crate::activities::{CellEntityActivities, SignalAudit};
use crate::contract::{
    CellClocks, CellId, CellStatus, CloneRequest, DrainRequest, HostId, PoolName, UpdateRequest, cell_workflow_id,
};
use crate::patches::{AUDITED, FORGOTTEN};
use crate::policy::{Action, Birth, Life, Order};

/// The entity starts over with a short history when it has grown to so many events.
const ROLL_AT_EVENTS: u32 = 2000;
/// Between two tries to tell placement or builds while the store is away.
const NEWS_PAUSE: Duration = Duration::from_secs(10);

/// What a Cell is started with, and what it carries over when it continues as new.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CellSeed {
    pub cell: CellId,
    pub pool: PoolName,
    pub slots: u32,
    /// The host whose agent starts and stops it; without one it can only be drained and undrained.
    #[serde(default)]
    pub host: Option<HostId>,
    /// Nothing runs yet: the host has to start it.
    #[serde(default)]
    pub provision: bool,
    /// The cell that it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CellId>,
    #[serde(default)]
    pub clocks: CellClocks,
    #[serde(default)]
    pub carried: Option<Box<Life>>,
}

impl CellSeed {
    /// A cell that runs already, with the usual clocks and no host.
    pub fn new(cell: CellId, pool: PoolName, slots: u32) -> Self {
        let clocks = CellClocks::default();
        Self { cell, pool, slots, host: None, provision: false, clone_of: None, clocks, carried: None }
    }

    fn life(self, now_ms: i64) -> Life {
        let Self { cell, pool, slots, host, provision, clone_of, clocks, carried } = self;
        match carried {
            Some(life) => *life,
            None => Life::new(Birth { cell, pool, slots, host, provision, clone_of, clocks }, now_ms),
        }
    }
}

#[workflow]
pub struct Cell {
    seed: CellSeed,
    life: Life,
    /// Time to continue as new.
    rolling: bool,
    /// The host is making a clone.
    copying: bool,
    /// Signals are being written to the audit log.
    auditing: bool,
    /// Orders given to the host in this run; with the run's id they name each once.
    orders: u32,
}

#[workflow_methods]
impl Cell {
    #[init]
    fn new(ctx: &WorkflowContextView, mut seed: CellSeed) -> Self {
        let now_ms = millis(ctx.start_time());
        let carried = seed.carried.take();
        let life = CellSeed { carried, ..seed.clone() }.life(now_ms);
        Self { seed, life, rolling: false, copying: false, auditing: false, orders: 0 }
    }

    #[run(name = "Cell")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<()> {
        let mut day = ctx.timer(Duration::from_millis(ctx.state(|s| s.life.clocks().roll_ms))).fuse();
        let mut life = Box::pin(live(ctx)).fuse();
        let mut clones = Box::pin(act::make_clones(ctx)).fuse();
        let mut audits = Box::pin(audit_signals(ctx)).fuse();
        let over = loop {
            temporalio_sdk::workflows::select! {
                over = life => break over?,
                never = clones => match never? {},
                never = audits => match never? {},
                _ = day => ctx.state_mut(|s| s.rolling = true),
            }
        };
        if over {
            let written = ctx.wait_condition(|cell| cell.life.unaudited().is_empty());
            let mut written = Box::pin(written).fuse();
            temporalio_sdk::workflows::select! {
                waited = written => waited?,
                never = audits => match never? {},
            }
            return Ok(());
        }
        let handlers = ctx.clone();
        ctx.wait_condition(move |_| handlers.all_handlers_finished()).await?;
        let seed = ctx.state(|s| CellSeed { carried: Some(Box::new(s.life.clone())), ..s.seed.clone() });
        ctx.continue_as_new(seed, ContinueAsNewOptions::default())?;
        Ok(())
    }

    /// No new builds; running ones finish, or move at the deadline. Payload: `{reason, by, deadline}`, every field optional.
    #[signal]
    pub fn drain(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take(ctx, "drain", request(&raw).map(Order::Drain));
    }

    /// Takes builds again.
    #[signal]
    pub fn undrain(&mut self, ctx: &mut SyncWorkflowContext<Self>, _raw: RawValue) {
        self.take(ctx, "undrain", Ok(Order::Undrain));
    }

    /// Drain, stop, start, ready. Payload as of `drain`.
    #[signal]
    pub fn restart(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take(ctx, "restart", request(&raw).map(Order::Restart));
    }

    /// The same with another image. Payload: `{image}` and what `drain` has.
    #[signal]
    pub fn update(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        let order = decode::<UpdateRequest>(&raw).and_then(|update| update.ok_or("it names no image".to_owned()));
        self.take(ctx, "update", order.map(Order::Update));
    }

    /// Drain, stop, and end for good. Payload as of `drain`.
    #[signal]
    pub fn retire(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take(ctx, "retire", request(&raw).map(Order::Retire));
    }

    /// Drain, stop, and delete with its disk what was copied from another cell. Payload as of `drain`.
    #[signal]
    pub fn delete(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take(ctx, "delete", request(&raw).map(Order::Delete));
    }

    /// Has the host make a cell whose cache begins as a copy of this one's. Payload: a [`CloneRequest`].
    #[signal(name = "clone")]
    pub fn clone_as(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        let order = decode::<CloneRequest>(&raw).and_then(|clone| clone.ok_or("it names no new cell".to_owned()));
        self.take(ctx, "clone", order.map(Order::Clone));
    }

    #[query]
    pub fn status(&self, _ctx: &WorkflowContextView) -> CellStatus {
        self.life.status().clone()
    }
}

impl Cell {
    fn take(&mut self, ctx: &SyncWorkflowContext<Self>, signal: &str, order: Result<Order, String>) {
        let now_ms = millis(ctx.workflow_time());
        match order {
            Ok(order) => self.life.order(order, now_ms),
            Err(why) => self.life.order_refused(signal, &why, now_ms),
        }
    }
}

/// Lives until the cell is deleted and everybody knows (`true`), or it is time to continue as new (`false`).
async fn live(ctx: &WorkflowContext<Cell>) -> WorkflowResult<bool> {
    loop {
        tell_news(ctx).await;
        if must_roll(ctx) {
            return Ok(false);
        }
        let (action, has_news) = ctx.state(|s| (s.life.next(), s.life.has_news()));
        if action == Action::End && !has_news {
            return Ok(true);
        }
        perform(ctx, &action).await?;
    }
}

/// Does the next action. What nobody has heard is told again beside it: no watch begins anew for it, else nobody would be seen to fall
/// silent while the store is away. The end waits for this alone: nobody else tells that a cell is deleted.
async fn perform(ctx: &WorkflowContext<Cell>, action: &Action) -> Result<(), WorkflowCancellationError> {
    let mut performed = Box::pin(act::perform(ctx, action)).fuse();
    while ctx.state(|s| s.life.has_news()) {
        let mut pause = ctx.timer(NEWS_PAUSE);
        temporalio_sdk::workflows::select! {
            ended = performed => {
                pause.cancel();
                return ended;
            }
            over = pause => if over == TimerResult::Cancelled {
                return performed.await;
            }
        }
        let mut told = Box::pin(tell_news(ctx)).fuse();
        temporalio_sdk::workflows::select! {
            ended = performed => {
                told.await;
                return ended;
            }
            () = told => {}
        }
    }
    match action {
        Action::End => Ok(()),
        _ => performed.await,
    }
}

fn must_roll(ctx: &WorkflowContext<Cell>) -> bool {
    if ctx.state(|s| s.copying || s.auditing) {
        return false;
    }
    ctx.state(|s| s.rolling) || ctx.history_length() > ROLL_AT_EVENTS || ctx.continue_as_new_suggested()
}

/// Tells placement, then the builds that have to go elsewhere. What nobody hears stays news.
async fn tell_news(ctx: &WorkflowContext<Cell>) {
    if let Some(announcement) = ctx.state_mut(|s| s.life.take_announcement()) {
        let told = ctx.execute_local_activity(CellEntityActivities::announce_cell, announcement, briefly()).await;
        if told.is_err() {
            ctx.state_mut(|s| s.life.announce_again());
        }
    }
    if let Some(order) = ctx.state_mut(|s| s.life.take_untold()) {
        let told = ctx.execute_local_activity(CellEntityActivities::tell_builds, order.clone(), briefly()).await;
        if told.is_err() {
            ctx.state_mut(|s| s.life.tell_again(order));
        }
    }
    if let Some(order) = ctx.state_mut(|s| s.life.take_forgotten())
        && FORGOTTEN.leads(ctx)
    {
        let told = ctx.execute_local_activity(CellEntityActivities::tell_builds, order.clone(), briefly()).await;
        if told.is_err() {
            ctx.state_mut(|s| s.life.tell_forgotten_again(order));
        }
    }
}

/// Has signals written to the audit log as they come, beside the cell's life: one that changes nothing wakes nobody else.
async fn audit_signals(ctx: &WorkflowContext<Cell>) -> Result<Infallible, WorkflowCancellationError> {
    loop {
        ctx.wait_condition(|cell| !cell.life.unaudited().is_empty()).await?;
        ctx.state_mut(|s| s.auditing = true);
        let written = audit(ctx).await;
        ctx.state_mut(|s| s.auditing = false);
        if !written {
            ctx.timer(NEWS_PAUSE).await;
        }
    }
}

/// Has what was signalled so far written to the audit log; whether it is. Until then the life keeps it, also when the workflow continues
/// as new; what is written twice is one entry.
async fn audit(ctx: &WorkflowContext<Cell>) -> bool {
    let signals = ctx.state(|s| s.life.unaudited().to_vec());
    if signals.is_empty() {
        return true;
    }
    let mut written = true;
    if AUDITED.leads(ctx) {
        let workflow_id = ctx.state(|s| cell_workflow_id(&s.seed.pool, &s.seed.cell));
        let order = SignalAudit { workflow_id, signals: signals.clone() };
        written = ctx.execute_local_activity(CellEntityActivities::audit_signals, order, briefly()).await.is_ok();
    }
    if written {
        ctx.state_mut(|s| s.life.audited(&signals));
    }
    written
}

/// Some round trips to the store and to Temporal; a store that is away is not waited for, the cell's health comes first. Tried once:
/// what nobody heard stays news, and between an activity's own tries the SDK does not look at the time to close.
fn briefly() -> LocalActivityOptions {
    LocalActivityOptions::builder()
        .retry_policy(RetryPolicy::builder().maximum_attempts(1).build())
        .start_to_close_timeout(Duration::from_secs(5))
        .schedule_to_close_timeout(Duration::from_secs(6))
        .build()
}

fn millis(time: Option<std::time::SystemTime>) -> i64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn now_ms(ctx: &WorkflowContext<Cell>) -> i64 {
    millis(ctx.workflow_time())
}

/// No payload at all is a drain without a reason.
fn request(raw: &RawValue) -> Result<DrainRequest, String> {
    decode(raw).map(Option::unwrap_or_default)
}

fn decode<T: serde::de::DeserializeOwned>(raw: &RawValue) -> Result<Option<T>, String> {
    match raw.payloads.first() {
        None => Ok(None),
        Some(payload) if payload.data.is_empty() || payload.data == b"null" => Ok(None),
        Some(payload) => serde_json::from_slice(&payload.data).map(Some).map_err(|e| e.to_string()),
    }
}
