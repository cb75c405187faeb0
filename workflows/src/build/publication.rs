//! Publication as the workflow sees it: at once where the registry is quick, else by an ordinary activity that waits between its tries.

use std::time::Duration;

use temporalio_sdk::{ActivityOptions, WorkflowContext};
use temporalio_workflow::RetryPolicy;

use super::{Build, blank_result, cancelled, control_error, elapsed_ms, quick};
use crate::activities::{ControlActivities, Placed, Publication, PublishInput};
use crate::contract::{
    AttemptResult, BuildError, BuildInput, BuildResult, BuildStatus, FailureClass, PlatformResult, Timings,
};

/// The longest wait that a registry can ask for before it is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Publishes; `None` when the pushed content is gone and has to be built once more.
pub(super) async fn publish(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    placed: &Placed,
    built: AttemptResult,
    started_ms: i64,
) -> Result<Option<BuildResult>, BuildError> {
    ctx.state_mut(|s| s.status = Some(BuildStatus::Publishing));
    let request = publish_input(ctx, input, placed, built, started_ms);
    let first = ctx
        .execute_local_activity(ControlActivities::publish, request.clone(), quick(ctx.cancellation_token()))
        .await
        .map_err(control_error)?;
    let publication = match first {
        Publication::Slow { retry_after_s, .. } => {
            leave_alone(ctx, retry_after_s).await?;
            publish_slowly(ctx, request).await?
        }
        other => other,
    };
    match publication {
        Publication::Published { result } => Ok(Some(*result)),
        Publication::ContentGone { .. } => Ok(None),
        Publication::Refused { error } => Err(error),
        Publication::Slow { reason, .. } => Err(BuildError::new(FailureClass::Transient, reason)),
    }
}

/// Waits as long as the registry asked for; a second is what the ordinary activity takes to begin.
async fn leave_alone(ctx: &WorkflowContext<Build>, seconds: u64) -> Result<(), BuildError> {
    if seconds > 1 {
        ctx.timer(Duration::from_secs(seconds).min(LONGEST_PAUSE)).await;
    }
    if ctx.cancellation_token().is_cancelled() { Err(cancelled()) } else { Ok(()) }
}

/// The ordinary activity: each try is short, its policy waits between them.
async fn publish_slowly(ctx: &mut WorkflowContext<Build>, request: PublishInput) -> Result<Publication, BuildError> {
    let policy = RetryPolicy::builder()
        .initial_interval(Duration::from_secs(1))
        .maximum_interval(Duration::from_secs(15))
        .maximum_attempts(8)
        .build();
    let options = ActivityOptions::with_start_to_close_timeout(Duration::from_secs(60)).retry_policy(policy).build();
    ctx.execute_activity(ControlActivities::publish_slowly, request, options).await.map_err(control_error)
}

fn publish_input(
    ctx: &WorkflowContext<Build>,
    input: &BuildInput,
    placed: &Placed,
    built: AttemptResult,
    started_ms: i64,
) -> PublishInput {
    let platforms = vec![PlatformResult {
        platform: placed.platform.clone(),
        digest: built.digest.clone(),
        cell: placed.cell.clone(),
    }];
    let mut result = blank_result(ctx, BuildStatus::Succeeded);
    result.digest = Some(built.digest);
    result.platforms.clone_from(&platforms);
    let total = elapsed_ms(ctx, started_ms);
    let queue = total.saturating_sub(built.timings.fetch.saturating_add(built.timings.solve));
    result.timings = Timings { queue, total, ..built.timings };
    result.cache = built.cache;
    PublishInput {
        workflow_id: ctx.workflow_id().to_owned(),
        run_id: ctx.run_id().to_owned(),
        project_id: placed.project_id.clone(),
        input: input.clone(),
        input_digest: placed.input_digest.clone(),
        started_ms,
        result,
        platforms,
        generation: placed.generation,
        capped: placed.capped,
    }
}
