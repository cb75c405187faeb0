//! Build: turns a snapshot into a published image, once per key.
//!
//! | step | where | when it fails |
//! |---|---|---|
//! | admit | local activity | refused: closes as failed. No cell, or the project over its cap: asked again, see [`Waits`] |
//! | build | activity on the cell's queue | not picked up in time, or sent on by its Cell: next cell. Cell fault, lost attempt: next cell, [`MAX_ATTEMPTS`] in all |
//! | publish | local activity of at most 5 s, then an ordinary one | content gone: one more (cached) build, then once more |
//! | conclude | local activity | only when the build did not succeed: writes its final state, then the workflow closes |
//!
//! Nothing has to be undone: what an abandoned attempt pushed is content without a tag, and its late result is ignored. A build that
//! does not succeed closes as Failed (type = the failure class, details = the result) or as Cancelled, never as Completed.

use std::time::{Duration, UNIX_EPOCH};

use temporalio_common::Priority;
use temporalio_common::data_converters::RawValue;
use temporalio_common::search_attributes::SearchAttributeKey;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ActivityCancellationType, ActivityExecutionError, ActivityOptions, ApplicationFailure, CancellableFuture,
    LocalActivityOptions, SyncWorkflowContext, TimeoutType, WaitConditionOptions, WorkflowCancellationToken,
    WorkflowContext, WorkflowContextView, WorkflowResult, WorkflowTermination,
};
use temporalio_workflow::RetryPolicy;
use temporalio_workflow::common::error::IncomingError;

use crate::activities::{
    Admission, AdmitInput, CellActivities, ConcludeInput, ControlActivities, NOT_TAKEN, Placed, Publication,
    PublishInput,
};
use crate::contract::{
    AttemptId, AttemptInput, AttemptRecord, AttemptResult, BuildError, BuildInput, BuildResult, BuildStatus, BuildView,
    CellId, FailureClass, MAX_ATTEMPTS, MoveNotice, Placement, PlatformResult, Timings, cell_task_queue,
};
use crate::patches::REHEARSAL;

/// The limit of an attempt when the input names none.
const DEFAULT_TIMEOUT_S: u64 = 3600;
/// What the server grants beyond the limit that the builder itself enforces, so that the builder's own word comes first.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(60);
/// How long a build waits to be picked up by a cell believed free.
const DEFAULT_PATIENCE_S: u64 = 5;
/// The backstop of a build that was put in a line.
const LINE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Between two looks for a cell while none takes builds: at first, when some may be starting, and later.
const NO_CELL_PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// How often to look with the first pause.
const NO_CELL_EAGER: u32 = 30;
/// The longest wait that a registry can ask for before it is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often to look for a cell, a quarter of an hour, before the build ends.
const NO_CELL_LIMIT: u32 = 114;
/// The longest pause between two looks while the project is at its cap.
const CAP_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often to look while the project is at its cap, six hours or so, before the build ends.
const CAP_LIMIT: u32 = 360;

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

enum Admitted {
    Recorded(Box<BuildResult>),
    Placed(Placed),
}

/// Chooses cells one after the other until one has built it.
async fn build_somewhere(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    started_ms: i64,
    exclude: &mut Vec<CellId>,
) -> Result<Built, BuildError> {
    let mut faults = 0;
    loop {
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
                faults += if error.class == FailureClass::Stuck { MAX_ATTEMPTS - 1 } else { 1 };
                if faults >= MAX_ATTEMPTS {
                    return Err(error);
                }
                exclude.push(placed.cell);
            }
            Ended::Failed(error) => return Err(error),
        }
    }
}

/// How often it was waited for what, so that no build waits for ever without saying so.
#[derive(Default)]
struct Waits {
    no_cell: u32,
    over_cap: u32,
}

impl Waits {
    /// The pause before the next look for a cell.
    fn no_cell(&mut self, reason: &str) -> Result<Duration, BuildError> {
        self.no_cell += 1;
        if self.no_cell <= NO_CELL_LIMIT {
            return Ok(NO_CELL_PAUSES[usize::from(self.no_cell > NO_CELL_EAGER)]);
        }
        let message = format!("no cell could be had for 15 minutes: {reason}; see `kiln cells ls`, then try again");
        Err(BuildError::new(FailureClass::Transient, message))
    }

    /// Doubles from one second on, jittered so that the builds of a project do not all ask at once.
    fn over_cap(&mut self, cap: u32, jitter: f64) -> Result<Duration, BuildError> {
        self.over_cap += 1;
        if self.over_cap < CAP_LIMIT {
            let doubled = Duration::from_secs(1 << self.over_cap.saturating_sub(1).min(10));
            return Ok(doubled.min(CAP_PAUSE_MAX).mul_f64(jitter));
        }
        let message =
            format!("the project had {cap} builds running, as many as it may, for six hours; try again later");
        Err(BuildError::new(FailureClass::Transient, message))
    }
}

/// One local activity, repeated while there is no cell to be had. Never waits inside the activity.
async fn admit(
    ctx: &mut WorkflowContext<Build>,
    input: &BuildInput,
    started_ms: i64,
    exclude: &[CellId],
) -> Result<Admitted, BuildError> {
    let mut waits = Waits::default();
    loop {
        // Who is woken while it looks looks once more.
        ctx.state_mut(|s| s.woken = false);
        let request = AdmitInput {
            workflow_id: ctx.workflow_id().to_owned(),
            run_id: ctx.run_id().to_owned(),
            input: input.clone(),
            started_ms,
            exclude: exclude.to_vec(),
            round: u32::try_from(ctx.state(|s| s.placement.len())).unwrap_or(u32::MAX),
        };
        let admission =
            ctx.execute_local_activity(ControlActivities::admit, request, quick(ctx.cancellation_token())).await;
        let (pause, waiting) = match admission.map_err(control_error)? {
            Admission::Placed(placed) => return Ok(Admitted::Placed(placed)),
            Admission::Recorded { result } => return Ok(Admitted::Recorded(result)),
            Admission::Refused { error } => return Err(error),
            Admission::NoCell { reason } => (waits.no_cell(&reason)?, reason),
            Admission::OverCap { running, cap, ahead } => {
                let pause = waits.over_cap(cap, jitter(ctx.run_id(), waits.over_cap))?;
                (pause, over_cap(running, cap, ahead))
            }
        };
        ctx.state_mut(|s| s.waiting = Some(waiting));
        sleep(ctx, pause).await;
        if ctx.cancellation_token().is_cancelled() {
            return Err(cancelled());
        }
    }
}

fn over_cap(running: u32, cap: u32, ahead: u32) -> String {
    let ahead = if ahead == 0 { String::new() } else { format!("; {ahead} have waited for longer") };
    format!("the project has {running} builds running and may have {cap} (max_concurrent_builds){ahead}")
}

/// Until the pause is over, or the build is woken or cancelled.
async fn sleep(ctx: &WorkflowContext<Build>, pause: Duration) {
    let mut over = ctx.timer(pause);
    let mut woken = ctx.wait_condition(|s: &Build| s.woken);
    temporalio_sdk::workflows::select! {
        _ = over => {}
        _ = woken => {}
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

/// How one attempt ended.
enum Ended {
    Built(AttemptResult),
    /// It did not begin. Why, when somebody said so.
    NotPickedUp(Option<String>),
    Failed(BuildError),
}

impl Ended {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Built(_) => "built",
            Self::NotPickedUp(_) => "not_picked_up",
            Self::Failed(error) => error.class.as_str(),
        }
    }
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

/// The build activity on the chosen cell's queue.
async fn attempt(ctx: &mut WorkflowContext<Build>, input: &BuildInput, placed: &Placed, number: u32) -> Ended {
    let request = AttemptInput {
        attempt: attempt_id(ctx, placed, number),
        project_id: placed.project_id.clone(),
        cell: placed.cell.clone(),
        input: input.clone(),
    };
    let limit = Duration::from_secs(input.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S)) + TIMEOUT_MARGIN;
    let patience = match placed.free {
        true => Duration::from_secs(input.queue_patience_s.unwrap_or(DEFAULT_PATIENCE_S)),
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

/// Publishes; `None` when the pushed content is gone and has to be built once more.
async fn publish(
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
    let queue = total.saturating_sub(built.timings.fetch + built.timings.solve);
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

fn elapsed_ms(ctx: &WorkflowContext<Build>, started_ms: i64) -> u64 {
    u64::try_from(now_ms(ctx) - started_ms).unwrap_or(0)
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

    #[test]
    fn a_build_without_a_cell_waits_a_quarter_of_an_hour() {
        let mut waits = Waits::default();
        let pauses: Vec<u64> = std::iter::from_fn(|| waits.no_cell("").ok()).map(|pause| pause.as_secs()).collect();
        assert_eq!((pauses[0], pauses[29], pauses[30], pauses.iter().sum::<u64>()), (2, 2, 10, 15 * 60));
        let ended = waits.no_cell("pool p has no cells").unwrap_err();
        assert!(ended.message.contains("pool p has no cells"), "{}", ended.message);
    }

    #[test]
    fn waiting_at_the_cap_backs_off_and_ends() {
        let mut waits = Waits::default();
        let pauses: Vec<u64> = (0..8).map(|_| waits.over_cap(2, 1.0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        let ended = (8..CAP_LIMIT).find_map(|_| waits.over_cap(2, 1.0).err()).unwrap();
        assert_eq!(ended.class, FailureClass::Transient);
    }
}
