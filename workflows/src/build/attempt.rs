//! One attempt: the activity on the chosen cell's queue, and why it ended.

use std::time::Duration;

use temporalio_common::Priority;
use temporalio_sdk::{
    ActivityCancellationType, ActivityExecutionError, ActivityOptions, CancellableFuture, TimeoutType,
    WaitConditionOptions, WorkflowCancellationToken, WorkflowContext,
};
use temporalio_workflow::RetryPolicy;
use temporalio_workflow::common::error::IncomingError;

use super::{Build, attempt_id, cancelled, jitter};
use crate::activities::{CellActivities, NOT_TAKEN, Placed};
use crate::contract::{AttemptInput, AttemptResult, BuildError, BuildInput, FailureClass, cell_task_queue};

/// What the server grants beyond the limit that the builder itself enforces, so that the builder's own word comes first.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(60);
/// The backstop of a build that was put in a line.
const LINE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How one attempt ended.
pub(super) enum Ended {
    Built(AttemptResult),
    /// It did not begin. Why, when somebody said so.
    NotPickedUp(Option<String>),
    Failed(BuildError),
}

impl Ended {
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Built(_) => "built",
            Self::NotPickedUp(_) => "not_picked_up",
            Self::Failed(error) => error.class.as_str(),
        }
    }
}

/// The build activity on the chosen cell's queue.
pub(super) async fn attempt(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    placed: &Placed,
    number: u32,
) -> Ended {
    let request = AttemptInput {
        attempt: attempt_id(ctx, placed, number),
        project_id: placed.project_id.clone(),
        cell: placed.cell.clone(),
        input: input.clone(),
        isolation: placed.isolation,
        repositories: placed.repositories.clone(),
    };
    let limit = input.attempt_limit().saturating_add(TIMEOUT_MARGIN);
    let patience = match placed.free {
        true => input.queue_patience(),
        false => LINE_LIMIT,
    };
    let token = ctx.cancellation_token().child_token();
    // Builds that a wrong hint sent to one cell do not all move on at once.
    let patience = patience.mul_f64(jitter(ctx.run_id(), number));
    let options = ActivityOptions::with_start_to_close_timeout(limit)
        .task_queue(cell_task_queue(&placed.cell))
        .schedule_to_start_timeout(patience)
        .heartbeat_timeout(placed.lost_after())
        .cancellation_type(ActivityCancellationType::WaitCancellationCompleted)
        .cancellation_token(token.clone())
        .retry_policy(once())
        .priority(fairness(input))
        .do_not_eagerly_execute(true)
        .build();
    ctx.state_mut(|s| (s.current, s.notice) = (Some(placed.cell.clone()), None));
    let ended = ended_or_moved(ctx, ctx.execute_activity(CellActivities::build, request, options), token).await;
    ctx.state_mut(|s| s.current = None);
    match ended {
        Ok(Ok(result)) => Ended::Built(result),
        Ok(Err(error)) => classify(error, placed),
        Err(ended) => ended,
    }
}

type Activity = Result<AttemptResult, ActivityExecutionError>;

/// The activity's end, unless its cell says that the build has to go elsewhere. Of a lost cell nothing more is waited for; another one
/// lets go of what has just begun, and a build that was finished in the same moment counts.
async fn ended_or_moved(
    ctx: &WorkflowContext<Build>,
    activity: impl CancellableFuture<Output = Activity>,
    token: WorkflowCancellationToken,
) -> Result<Activity, Ended> {
    let mut activity = Box::pin(activity);
    // Under a token of its own: what a cancelled build waits for is its activity's end.
    let detached = WaitConditionOptions::builder().cancellation_token(WorkflowCancellationToken::new()).build();
    let mut noticed = ctx.wait_condition_with_options(|s: &Build| s.notice.is_some(), detached);
    temporalio_sdk::workflows::select! {
        ended = activity => return Ok(ended),
        _ = noticed => token.cancel(),
    }
    let Some(notice) = ctx.state_mut(|s| s.notice.take()) else { return Ok(activity.await) };
    if notice.lost {
        return Err(Ended::Failed(BuildError::new(FailureClass::CellFault, notice.reason)));
    }
    match activity.await {
        // The build's own cancel came in as well.
        Err(ActivityExecutionError::Cancelled(error)) if ctx.cancellation_token().is_cancelled() => {
            Ok(Err(ActivityExecutionError::Cancelled(error)))
        }
        Err(ActivityExecutionError::Cancelled(_)) => Err(Ended::NotPickedUp(Some(notice.reason))),
        ended => Ok(ended),
    }
}

/// A cell's line is served project by project, not build by build: none can fill it for the others.
fn fairness(input: &BuildInput) -> Priority {
    Priority::builder().fairness_key(input.project.as_str()).build()
}

/// One try: the workflow itself decides where the next one goes.
fn once() -> RetryPolicy {
    RetryPolicy::builder().maximum_attempts(1).build()
}

fn classify(error: ActivityExecutionError, placed: &Placed) -> Ended {
    if matches!(error, ActivityExecutionError::Cancelled(_)) {
        return Ended::Failed(cancelled());
    }
    match error.as_timeout().map(|timeout| timeout.timeout_type()) {
        Some(TimeoutType::ScheduleToStart) => Ended::NotPickedUp(None),
        Some(TimeoutType::StartToClose | TimeoutType::ScheduleToClose) => {
            Ended::Failed(BuildError::new(FailureClass::TimedOut, "the build took longer than its time limit"))
        }
        Some(_) => {
            let (cell, silence) = (&placed.cell, placed.lost_after().as_secs_f64());
            let message = format!("cell {cell} fell silent for {silence} s while it built");
            Ended::Failed(BuildError::new(FailureClass::CellFault, message))
        }
        None => not_taken(&error).unwrap_or_else(|| Ended::Failed(activity_failure(&error))),
    }
}

/// The cell takes no builds now: no fault of anybody, the build goes on as if nobody had picked it up.
fn not_taken(error: &ActivityExecutionError) -> Option<Ended> {
    match error.reason() {
        Some(IncomingError::Application(failure)) if failure.type_name() == Some(NOT_TAKEN) => {
            Some(Ended::NotPickedUp(Some(failure.to_string())))
        }
        _ => None,
    }
}

/// The typed error that the activity put into its failure's details; anything else is a fault of the cell.
fn activity_failure(error: &ActivityExecutionError) -> BuildError {
    if let Some(IncomingError::Application(failure)) = error.reason()
        && let Ok(Some(details)) = failure.details::<BuildError>()
    {
        return details;
    }
    BuildError::new(FailureClass::CellFault, error.to_string())
}
