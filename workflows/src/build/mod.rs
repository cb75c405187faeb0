//! Build: turns a snapshot into a published image, once per key.
//!
//! | step | where | when it fails |
//! |---|---|---|
//! | admit | local activity | refused: closes as failed. No cell, or the project over its cap: asked again, with pauses |
//! | build | activity on the cell's queue | not picked up in time, or sent on by its Cell: next cell. Cell fault, lost attempt: next cell, as far as [`Faults`] allows |
//! | publish | local activity of at most 5 s, then an ordinary one | content gone: one more (cached) build, then once more |
//! | conclude | local activity | only when the build did not succeed: writes its final state, then the workflow closes |
//!
//! Nothing has to be undone: what an abandoned attempt pushed is content without a tag, and its late result is ignored. A build that
//! does not succeed closes as Failed (type = the failure class, details = the result) or as Cancelled, never as Completed.

mod admission;
mod attempt;
mod publication;

use std::time::{Duration, UNIX_EPOCH};

use temporalio_common::data_converters::RawValue;
use temporalio_common::search_attributes::SearchAttributeKey;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ActivityCancellationType, ActivityExecutionError, ApplicationFailure, LocalActivityOptions, SyncWorkflowContext,
    WorkflowCancellationToken, WorkflowContext, WorkflowContextView, WorkflowResult, WorkflowTermination,
};
use temporalio_workflow::common::error::IncomingError;

use self::admission::{Admitted, admit};
use self::attempt::{Ended, attempt};
use self::publication::publish;
use crate::activities::{ConcludeInput, ControlActivities, Placed};
use crate::contract::{
    AttemptId, AttemptRecord, AttemptResult, BuildError, BuildInput, BuildResult, BuildStatus, BuildView, CellId,
    FailureClass, MoveNotice, Placement,
};
use crate::patches::REHEARSAL;
use crate::policy::Faults;

const PROJECT: SearchAttributeKey<String> = SearchAttributeKey::keyword("KilnProject");
const CELL: SearchAttributeKey<String> = SearchAttributeKey::keyword("KilnCell");
const STATUS: SearchAttributeKey<String> = SearchAttributeKey::keyword("KilnStatus");

/// The workflow's state: what the query `status` tells, and what the result is made of.
#[workflow]
#[derive(Default)]
pub struct Build {
    status: Option<BuildStatus>,
    /// Why it has no cell yet.
    waiting: Option<String>,
    /// Told to look for a cell again before its pause is over.
    woken: bool,
    placement: Vec<Placement>,
    attempts: Vec<AttemptRecord>,
    /// Where the attempt is that is waited for.
    current: Option<CellId>,
    /// That cell said to go elsewhere.
    notice: Option<MoveNotice>,
}

/// A build that did not succeed. The error is told in the result; a cancelled one closes as Cancelled.
struct Unsuccessful {
    input: Option<BuildInput>,
    error: BuildError,
}

#[workflow_methods]
impl Build {
    #[run(name = "Build")]
    pub async fn run(ctx: &mut WorkflowContext<Self>, raw: RawValue) -> WorkflowResult<BuildResult> {
        let started_ms = now_ms(ctx);
        let outcome = match decode(&raw) {
            Ok(input) => {
                run_build(ctx, &input, started_ms).await.map_err(|error| Unsuccessful { input: Some(input), error })
            }
            Err(error) => Err(Unsuccessful { input: None, error }),
        };
        match outcome {
            Ok(result) => {
                ctx.state_mut(|s| s.status = Some(BuildStatus::Succeeded));
                Ok(result)
            }
            Err(unsuccessful) => Err(close(ctx, unsuccessful, started_ms).await),
        }
    }

    /// Sent by a Cell whose builds have to go elsewhere. One that is not about the cell the build is on now is ignored, as is one
    /// that cannot be read: nobody but a Cell sends it.
    #[signal]
    pub fn move_on(&mut self, _ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        let notice = raw.payloads.first().and_then(|payload| serde_json::from_slice::<MoveNotice>(&payload.data).ok());
        if let Some(notice) = notice.filter(|notice| self.current.as_ref() == Some(&notice.cell)) {
            self.notice = Some(notice);
        }
    }

    /// Sent by control when a build of the project has ended, to the one that waits longest at the project's cap. It carries nothing;
    /// a build that does not wait ignores it.
    #[signal]
    pub fn look_again(&mut self, _ctx: &mut SyncWorkflowContext<Self>, _raw: RawValue) {
        self.woken = true;
    }

    #[query]
    pub fn status(&self, _ctx: &WorkflowContextView) -> BuildView {
        BuildView {
            status: self.status.unwrap_or(BuildStatus::Queued),
            waiting: self.waiting.clone(),
            placement: self.placement.clone(),
            attempts: self.attempts.clone(),
        }
    }
}

/// Decodes the input from its raw payload: a malformed one must be refused, not retried for ever as a failed workflow task.
fn decode(raw: &RawValue) -> Result<BuildInput, BuildError> {
    let refuse = |why: String| BuildError::new(FailureClass::Refused, format!("the build's input is malformed: {why}"));
    let payload = raw.payloads.first().ok_or_else(|| refuse("there is none".to_owned()))?;
    serde_json::from_slice(&payload.data).map_err(|e| refuse(e.to_string()))
}

fn now_ms(ctx: &WorkflowContext<Build>) -> i64 {
    let since = ctx.workflow_time().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Admit, build, publish; with the one rebuild that content collected in the meantime asks for.
async fn run_build(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    started_ms: i64,
) -> Result<BuildResult, BuildError> {
    let mut exclude = Vec::new();
    for _ in 0..2 {
        let (placed, built) = match build_somewhere(ctx, input, started_ms, &mut exclude).await? {
            Built::Already(result) => return Ok(*result),
            Built::Here(placed, built) => (placed, built),
        };
        if REHEARSAL.leads(ctx) {
            ctx.timer(Duration::from_millis(1)).await;
        }
        if let Some(result) = publish(ctx, input, &placed, built, started_ms).await? {
            return Ok(result);
        }
    }
    Err(BuildError::new(FailureClass::Transient, "the registry lost the pushed image twice before it could be tagged"))
}

enum Built {
    Already(Box<BuildResult>),
    Here(Box<Placed>, AttemptResult),
}

/// Chooses cells one after the other until one has built it.
async fn build_somewhere(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    started_ms: i64,
    exclude: &mut Vec<CellId>,
) -> Result<Built, BuildError> {
    let mut faults = Faults::default();
    loop {
        within_limit(ctx, input, started_ms)?;
        let placed = match admit(ctx, input, started_ms, exclude).await? {
            Admitted::Recorded(result) => return Ok(Built::Already(result)),
            Admitted::Placed(placed) => placed,
        };
        let number = record_placement(ctx, &placed);
        let ended = attempt(ctx, input, &placed, number).await;
        record_attempt(ctx, &placed, number, &ended);
        match ended {
            Ended::Built(result) => return Ok(Built::Here(Box::new(placed), result)),
            Ended::NotPickedUp(_) => exclude.push(placed.cell),
            Ended::Failed(error) if error.class.moves_to_another_cell() => {
                if let Some(error) = faults.next(error) {
                    return Err(error);
                }
                exclude.push(placed.cell);
            }
            Ended::Failed(error) => return Err(error),
        }
    }
}

/// A build does not wait for ever: one that was placed and not picked up again and again ends here, whatever execution timeout its
/// starter gave it.
fn within_limit(ctx: &WorkflowContext<Build>, input: &BuildInput, started_ms: i64) -> Result<(), BuildError> {
    let limit = input.time_limit();
    match Duration::from_millis(elapsed_ms(ctx, started_ms)) < limit {
        true => Ok(()),
        false => {
            let message = format!("the build took longer than {} hours with all its waits", limit.as_secs() / 3600);
            Err(BuildError::new(FailureClass::TimedOut, message))
        }
    }
}

/// A factor from 0.8 to 1.2 that differs between runs and from one time to the next, and not between replays.
fn jitter(run_id: &str, nth: u32) -> f64 {
    let hash = blake3::hash(format!("{run_id}\n{nth}").as_bytes());
    f64::from(800 + u32::from(hash.as_bytes()[0]) * 400 / 255) / 1000.0
}

/// Options of a local activity that makes one round trip to the store.
fn quick(token: WorkflowCancellationToken) -> LocalActivityOptions {
    LocalActivityOptions::builder()
        .start_to_close_timeout(Duration::from_secs(5))
        .schedule_to_close_timeout(Duration::from_secs(60))
        .cancel_type(ActivityCancellationType::WaitCancellationCompleted)
        .cancellation_token(token)
        .build()
}

fn record_placement(ctx: &WorkflowContext<Build>, placed: &Placed) -> u32 {
    let project = ctx.workflow_id().split('/').nth(1).unwrap_or_default().to_owned();
    ctx.upsert_search_attributes([
        PROJECT.value_set(project),
        CELL.value_set(placed.cell.to_string()),
        STATUS.value_set(BuildStatus::Running.as_str().to_owned()),
    ]);
    ctx.state_mut(|s| {
        s.status = Some(BuildStatus::Running);
        s.waiting = None;
        s.placement.push(Placement {
            platform: placed.platform.clone(),
            cell: placed.cell.clone(),
            pool: placed.pool.clone(),
            warm: placed.warm,
            free: placed.free,
            reason: placed.reason.clone(),
            outcome: String::new(),
        });
        u32::try_from(s.placement.len()).unwrap_or(u32::MAX)
    })
}

fn record_attempt(ctx: &WorkflowContext<Build>, placed: &Placed, number: u32, ended: &Ended) {
    let id = attempt_id(ctx, placed, number);
    let message = match ended {
        Ended::Failed(error) => Some(error.message.clone()),
        Ended::NotPickedUp(why) => why.clone(),
        Ended::Built(_) => None,
    };
    ctx.state_mut(|s| {
        if let Some(placement) = s.placement.last_mut() {
            placement.outcome = ended.outcome().to_owned();
        }
        s.attempts.push(AttemptRecord {
            number,
            platform: placed.platform.clone(),
            cell: placed.cell.clone(),
            buildkit_ref: id.buildkit_ref(),
            outcome: ended.outcome().to_owned(),
            message,
        });
    });
}

fn attempt_id(ctx: &WorkflowContext<Build>, placed: &Placed, number: u32) -> AttemptId {
    AttemptId {
        workflow_id: ctx.workflow_id().to_owned(),
        run_id: ctx.run_id().to_owned(),
        platform: placed.platform.clone(),
        number,
    }
}

fn control_error(error: ActivityExecutionError) -> BuildError {
    if matches!(error, ActivityExecutionError::Cancelled(_)) {
        return cancelled();
    }
    if let Some(IncomingError::Application(failure)) = error.reason()
        && let Ok(Some(details)) = failure.details::<BuildError>()
    {
        return details;
    }
    BuildError::new(FailureClass::Transient, format!("the control plane could not go on: {error}"))
}

fn cancelled() -> BuildError {
    BuildError::new(FailureClass::Cancelled, "the build was cancelled")
}

fn elapsed_ms(ctx: &WorkflowContext<Build>, started_ms: i64) -> u64 {
    u64::try_from(now_ms(ctx).saturating_sub(started_ms)).unwrap_or(0)
}

fn blank_result(ctx: &WorkflowContext<Build>, status: BuildStatus) -> BuildResult {
    ctx.state(|s| BuildResult {
        placement: s.placement.clone(),
        attempts: s.attempts.clone(),
        ..BuildResult::blank(status)
    })
}

/// Writes the final state under a token of its own (the workflow's may be cancelled), then says how the workflow closes.
async fn close(ctx: &mut WorkflowContext<Build>, ended: Unsuccessful, started_ms: i64) -> WorkflowTermination {
    let Unsuccessful { input, error } = ended;
    let was_cancelled = error.class == FailureClass::Cancelled;
    let status = if was_cancelled { BuildStatus::Cancelled } else { BuildStatus::Failed };
    ctx.state_mut(|s| s.status = Some(status));
    let mut result = blank_result(ctx, status);
    result.timings.total = elapsed_ms(ctx, started_ms);
    result.error = Some(error.clone());
    let request = ConcludeInput {
        workflow_id: ctx.workflow_id().to_owned(),
        run_id: ctx.run_id().to_owned(),
        started_ms,
        input,
        result: result.clone(),
    };
    let concluded =
        ctx.execute_local_activity(ControlActivities::conclude, request, quick(WorkflowCancellationToken::new())).await;
    if let Err(error) = concluded {
        // The store is what lists read; Temporal stays the truth and the api reconciles from it.
        tracing::warn!(workflow_id = ctx.workflow_id(), %error, "the final state could not be written to the store");
    }
    match was_cancelled {
        true => WorkflowTermination::cancelled_with_details(result),
        false => ApplicationFailure::builder(error.clone())
            .type_name(error.class.as_str().to_owned())
            .non_retryable(true)
            .details(result)
            .build()
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_jittered_by_a_fifth_and_the_same_at_each_replay() {
        let all: Vec<f64> = (0..200).map(|n| jitter("0198c2a4-7d1e-7c62-b0a4-3a9d5c1f2e77", n)).collect();
        assert!(all.iter().all(|factor| (0.8..=1.2).contains(factor)));
        assert!(all.iter().any(|factor| *factor < 0.85) && all.iter().any(|factor| *factor > 1.15));
        assert_eq!(jitter("run", 1), jitter("run", 1));
        assert_ne!(jitter("run", 1), jitter("other run", 1));
    }
}
