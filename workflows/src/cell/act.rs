//! One action of a cell's life, done by activities; its answer told to the life.
//!
//! | action | activity | on |
//! |---|---|---|
//! | check, watch, close, settle | `check`, `presence`, `close_intake`, `settle` | the cell's `-ops` queue |
//! | inspect, start, stop | `inspect_cell`, `start_cell`, `stop_cell` | the host's queue |
//! | clone, delete, re-plug | `clone_cell`, `delete_clone`, `replug_cell` | the host's queue |
//!
//! An action that is dropped is cancelled and not waited for: the builder hears of it at its next heartbeat, and an order that it
//! still carries out late changes nothing, because orders carry their time.

use std::convert::Infallible;
use std::time::Duration;

use futures::FutureExt as _;
use temporalio_common::ActivityDefinition;
use temporalio_sdk::{
    ActivityExecutionError, ActivityOptions, CancellableFuture, TimeoutType, WorkflowCancellationError,
    WorkflowCancellationToken, WorkflowContext,
};
use temporalio_workflow::RetryPolicy;
use temporalio_workflow::common::error::IncomingError;

use super::{Cell, must_roll, now_ms};
use crate::activities::{
    CellOpsActivities, CheckOrder, CloseOrder, HostActivities, PresenceEnd, PresenceOrder, Pulse, RESTARTED, SICK,
    SettleOrder,
};
use crate::contract::{
    CellId, CellReport, CloneOrder, FailureClass, HostCell, HostOrder, SignalOutcome, cell_ops_task_queue,
    host_task_queue,
};
use crate::patches::{REPLUG, UNANSWERED};
use crate::policy::{Action, Checked, HostTrouble, Life, Watched};

/// What a short order to the builder may take beyond its canary.
const SHORT: Duration = Duration::from_secs(5);
/// What a host may take to stop or start a cell.
const HOST_LIMIT: Duration = Duration::from_secs(120);
/// Orders to a host are repeated once, under the same operation id.
const HOST_TRIES: u32 = 2;
const NO_HOST: &str = "the cell has no host";
/// Presence and waits end with the run at the latest; this is beyond it.
const MARGIN: Duration = Duration::from_secs(3600);

type Performed = Result<(), WorkflowCancellationError>;

/// Does it and tells the life, unless it is dropped on the way.
pub(super) async fn perform(ctx: &WorkflowContext<Cell>, action: &Action) -> Performed {
    match action {
        Action::Inspect => host(ctx, HostActivities::inspect_cell, None, 0, Life::inspected).await,
        Action::Start { image } => host(ctx, HostActivities::start_cell, image.clone(), 0, Life::started).await,
        Action::Stop { grace_ms } => host(ctx, HostActivities::stop_cell, None, *grace_ms, Life::stopped).await,
        Action::Replug if REPLUG.leads(ctx) => replug(ctx).await,
        Action::Replug => stop_at_once(ctx).await,
        Action::Delete { grace_ms } => host(ctx, HostActivities::delete_clone, None, *grace_ms, Life::erased).await,
        Action::Check { patience_ms, open, in_doubt } => check(ctx, action, *patience_ms, *open, *in_doubt).await,
        Action::Watch => watch(ctx, action).await,
        Action::Close { reason } => close(ctx, action, reason.clone()).await,
        Action::Settle { deadline_ms, reason } => settle(ctx, action, *deadline_ms, reason.clone()).await,
        Action::Pause { until_ms } => pause(ctx, action, *until_ms).await,
        Action::Rest | Action::End => dropped(ctx, action).await,
    }
}

/// Resolves when another action is the next one, or when it is time to continue as new.
async fn dropped(ctx: &WorkflowContext<Cell>, action: &Action) -> Performed {
    let view = ctx.clone();
    ctx.wait_condition(move |cell| cell.life.next() != *action || must_roll(&view)).await
}

/// What an activity answers, or `None` when it was dropped.
async fn unless_dropped<T>(
    ctx: &WorkflowContext<Cell>,
    action: &Action,
    token: WorkflowCancellationToken,
    answer: impl CancellableFuture<Output = T>,
) -> Result<Option<T>, WorkflowCancellationError> {
    let mut answer = Box::pin(answer);
    let mut dropped = Box::pin(dropped(ctx, action)).fuse();
    temporalio_sdk::workflows::select! {
        answer = answer => Ok(Some(answer)),
        ended = dropped => {
            token.cancel();
            ended.map(|()| None)
        }
    }
}

type Answer<T> = Result<T, ActivityExecutionError>;

/// An activity of the cell's builder.
async fn ask<AD>(
    ctx: &WorkflowContext<Cell>,
    action: &Action,
    activity: AD,
    order: AD::Input,
    times: Times,
) -> Result<Option<Answer<AD::Output>>, WorkflowCancellationError>
where
    AD: ActivityDefinition,
    AD::Output: temporalio_common::data_converters::TemporalDeserializable,
{
    let token = WorkflowCancellationToken::new();
    let queue = ctx.state(|s| cell_ops_task_queue(&s.seed.cell));
    let options = ActivityOptions::with_start_to_close_timeout(times.limit)
        .task_queue(queue)
        .schedule_to_start_timeout(times.pick_up)
        .maybe_heartbeat_timeout(times.heartbeat)
        .cancellation_token(token.clone())
        .retry_policy(RetryPolicy::builder().maximum_attempts(1).build())
        .do_not_eagerly_execute(true)
        .build();
    unless_dropped(ctx, action, token, ctx.execute_activity(activity, order, options)).await
}

struct Times {
    pick_up: Duration,
    limit: Duration,
    heartbeat: Option<Duration>,
}

impl Times {
    fn short(ctx: &WorkflowContext<Cell>, pick_up_ms: u64) -> Self {
        let canary = ctx.state(|s| s.life.clocks().canary_patience_ms);
        Self { pick_up: ms(pick_up_ms), limit: ms(canary) + SHORT, heartbeat: None }
    }

    /// Of what lasts, and heartbeats.
    fn long(ctx: &WorkflowContext<Cell>) -> Self {
        let (lost_after, day) = ctx.state(|s| (s.life.clocks().lost_after_ms, s.life.clocks().roll_ms));
        Self { pick_up: ms(lost_after), limit: ms(day) + MARGIN, heartbeat: Some(ms(lost_after)) }
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Of an order to the intake.
fn order_time(ctx: &WorkflowContext<Cell>) -> i64 {
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.order_time(now))
}

async fn check(
    ctx: &WorkflowContext<Cell>,
    action: &Action,
    patience_ms: u64,
    open: bool,
    in_doubt: bool,
) -> Performed {
    let order = CheckOrder { cell: ctx.state(|s| s.seed.cell.clone()), open, at_ms: order_time(ctx) };
    let heartbeat = in_doubt.then(|| ms(ctx.state(|s| s.life.clocks().heartbeat_ms)));
    let times = Times { heartbeat, ..Times::short(ctx, patience_ms) };
    let Some(answer) = ask(ctx, action, CellOpsActivities::check, order, times).await? else { return Ok(()) };
    let checked = match answer {
        Ok(report) => Checked::Passed(report),
        Err(error) if failure_type(&error) == Some(SICK) => Checked::Sick(told(&error)),
        Err(error) if failure_type(&error) == Some(RESTARTED) => Checked::Restarted,
        Err(error) if was_taken(&error) && UNANSWERED.leads(ctx) => Checked::Unanswered,
        Err(error) if matches!(error.reason(), Some(IncomingError::Application(_))) => Checked::Failed(told(&error)),
        Err(_) => Checked::Missing,
    };
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.checked(checked, now));
    Ok(())
}

/// By somebody who did not answer in time.
fn was_taken(error: &ActivityExecutionError) -> bool {
    let silence = [TimeoutType::StartToClose, TimeoutType::Heartbeat];
    error.as_timeout().is_some_and(|timeout| silence.contains(&timeout.timeout_type()))
}

async fn watch(ctx: &WorkflowContext<Cell>, action: &Action) -> Performed {
    let order = PresenceOrder { cell: ctx.state(|s| s.seed.cell.clone()) };
    let Some(answer) = ask(ctx, action, CellOpsActivities::presence, order, Times::long(ctx)).await? else {
        return Ok(());
    };
    let watched = match answer {
        Ok(end) => Watched::Ended(end),
        Err(error) => lost(ctx, &error),
    };
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.watched(watched, now));
    Ok(())
}

/// How the builder was lost, if it was. After an outage of the server all overdue heartbeat timers fire at once: the last heartbeat
/// is older then than it could be otherwise.
fn lost(ctx: &WorkflowContext<Cell>, error: &ActivityExecutionError) -> Watched {
    let Some(timeout) = error.as_timeout() else { return Watched::Ended(PresenceEnd::Restarted) };
    let pulse = timeout.last_heartbeat_details::<Pulse>().ok().flatten();
    let limit = ctx.state(|s| s.life.clocks().lost_after_ms);
    let overdue = |pulse: Pulse| now_ms(ctx) - pulse.at_ms > i64::try_from(limit * 2).unwrap_or(i64::MAX);
    match timeout.timeout_type() {
        TimeoutType::StartToClose | TimeoutType::ScheduleToClose => Watched::Ended(PresenceEnd::Restarted),
        _ => Watched::Lost { late: pulse.is_some_and(overdue) },
    }
}

async fn close(ctx: &WorkflowContext<Cell>, action: &Action, reason: String) -> Performed {
    let order = CloseOrder { cell: ctx.state(|s| s.seed.cell.clone()), reason, at_ms: order_time(ctx) };
    let times = Times::short(ctx, ctx.state(|s| s.life.clocks().lost_after_ms));
    let Some(answer) = ask(ctx, action, CellOpsActivities::close_intake, order, times).await? else { return Ok(()) };
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.closed(answer.ok(), now));
    Ok(())
}

async fn settle(ctx: &WorkflowContext<Cell>, action: &Action, deadline_ms: i64, reason: String) -> Performed {
    let order = SettleOrder { cell: ctx.state(|s| s.seed.cell.clone()), reason, deadline_ms: Some(deadline_ms) };
    let Some(answer) = ask(ctx, action, CellOpsActivities::settle, order, Times::long(ctx)).await? else {
        return Ok(());
    };
    let now = now_ms(ctx);
    let report: Option<CellReport> = answer.ok();
    ctx.state_mut(|s| s.life.settled(report, now));
    Ok(())
}

async fn pause(ctx: &WorkflowContext<Cell>, action: &Action, until_ms: i64) -> Performed {
    let left = u64::try_from(until_ms - now_ms(ctx)).unwrap_or(0).max(1);
    let mut over = ctx.timer(ms(left));
    let mut dropped = Box::pin(dropped(ctx, action)).fuse();
    temporalio_sdk::workflows::select! {
        _ = over => {
            ctx.state_mut(|s| s.life.paused());
            Ok(())
        }
        ended = dropped => ended,
    }
}

/// An order to the host's agent that tells what runs there afterwards.
async fn host<AD>(
    ctx: &WorkflowContext<Cell>,
    activity: AD,
    image: Option<String>,
    grace_ms: u64,
    tell: fn(&mut Life, Result<HostCell, HostTrouble>, i64),
) -> Performed
where
    AD: ActivityDefinition<Input = HostOrder, Output = HostCell>,
{
    let answer = order(ctx, activity, image, grace_ms, |order| order).await;
    let answer = answer.map_err(|error| error.as_ref().map_or_else(no_host, trouble));
    let now = now_ms(ctx);
    ctx.state_mut(|s| tell(&mut s.life, answer, now));
    Ok(())
}

async fn replug(ctx: &WorkflowContext<Cell>) -> Performed {
    let answer = order(ctx, HostActivities::replug_cell, None, 0, |order| order).await;
    let answer = answer.map(|wire| wire.mended).map_err(|error| error.as_ref().map_or_else(no_host, trouble));
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.replugged(answer, now));
    Ok(())
}

/// As runs did that know of no re-plugging: nothing came between their last news and the stop.
async fn stop_at_once(ctx: &WorkflowContext<Cell>) -> Performed {
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.replugged(Ok(Vec::new()), now));
    match ctx.state(|s| s.life.next()) {
        Action::Stop { grace_ms } => host(ctx, HostActivities::stop_cell, None, grace_ms, Life::stopped).await,
        _ => Ok(()),
    }
}

/// Has the host make a copy of this cell; nothing comes of it for this one, whatever is answered.
async fn clone_cell(ctx: &WorkflowContext<Cell>, clone: &CellId) {
    let slots = ctx.state(|s| s.life.status().slots);
    let asked = |order| CloneOrder { order, clone: clone.clone(), slots };
    let (outcome, note) = match order(ctx, HostActivities::clone_cell, None, 0, asked).await {
        Ok(made) => (SignalOutcome::Done, made_in_words(made.held_still_ms, made.took_ms)),
        Err(Some(error)) if failure_type(&error) == Some(FailureClass::Refused.as_str()) => {
            (SignalOutcome::Refused, told(&error))
        }
        Err(Some(error)) if error.as_timeout().is_some() => {
            (SignalOutcome::Failed, "its host does not answer".to_owned())
        }
        Err(error) => (SignalOutcome::Failed, error.map_or_else(|| NO_HOST.to_owned(), |error| told(&error))),
    };
    let now = now_ms(ctx);
    ctx.state_mut(|s| s.life.cloned(clone, outcome, &note, now));
}

/// Makes the clones that are ordered, beside the cell's life: however long a host takes to copy a disk, the cell is watched and obeys.
pub(super) async fn make_clones(ctx: &WorkflowContext<Cell>) -> Result<Infallible, WorkflowCancellationError> {
    loop {
        ctx.wait_condition(|cell| cell.life.clone_to_make().is_some()).await?;
        if let Some(clone) = ctx.state(|s| s.life.clone_to_make().cloned()) {
            ctx.state_mut(|s| s.copying = true);
            clone_cell(ctx, &clone).await;
            ctx.state_mut(|s| s.copying = false);
        }
    }
}

fn made_in_words(held_still_ms: Option<u64>, took_ms: u64) -> String {
    match held_still_ms {
        Some(held) => format!("made in {took_ms} ms, for {held} ms of which the disk held still"),
        None => format!("made in {took_ms} ms, as after a power cut"),
    }
}

fn no_host() -> HostTrouble {
    HostTrouble::Failed(NO_HOST.to_owned())
}

/// An order to the host's agent, waited for whatever comes: it is idempotent by its id, which is this run's own. No error: the cell has
/// no host.
async fn order<AD>(
    ctx: &WorkflowContext<Cell>,
    activity: AD,
    image: Option<String>,
    grace_ms: u64,
    input: impl FnOnce(HostOrder) -> AD::Input,
) -> Result<AD::Output, Option<ActivityExecutionError>>
where
    AD: ActivityDefinition,
    AD::Output: temporalio_common::data_converters::TemporalDeserializable,
{
    let (number, status, patience) = ctx.state_mut(|s| {
        s.orders += 1;
        (s.orders, s.life.status().clone(), s.life.clocks().host_patience_ms)
    });
    let Some(host) = &status.host else { return Err(None) };
    let operation = format!("{}-{number}", ctx.run_id());
    let (cell, pool, clone_of) = (status.cell, status.pool, status.clone_of);
    let order = HostOrder { operation, cell, pool, image, grace_ms, clone_of };
    let options = ActivityOptions::with_start_to_close_timeout(HOST_LIMIT)
        .task_queue(host_task_queue(host))
        .schedule_to_start_timeout(ms(patience))
        .cancellation_token(WorkflowCancellationToken::new())
        .retry_policy(RetryPolicy::builder().maximum_attempts(HOST_TRIES).build())
        .do_not_eagerly_execute(true)
        .build();
    ctx.execute_activity(activity, input(order), options).await.map_err(Some)
}

fn trouble(error: &ActivityExecutionError) -> HostTrouble {
    match error.as_timeout() {
        Some(_) => HostTrouble::Silent,
        None => HostTrouble::Failed(told(error)),
    }
}

fn failure_type(error: &ActivityExecutionError) -> Option<&str> {
    match error.reason() {
        Some(IncomingError::Application(failure)) => failure.type_name(),
        _ => None,
    }
}

/// The activity's own words.
fn told(error: &ActivityExecutionError) -> String {
    match error.reason() {
        Some(IncomingError::Application(failure)) => failure.to_string(),
        _ => error.to_string(),
    }
}
