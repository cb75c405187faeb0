//! Admission as the workflow sees it: asked until there is a cell, with pauses, and not for ever.

use std::time::Duration;

use temporalio_sdk::WorkflowContext;

use super::{Build, cancelled, control_error, jitter, quick, within_limit};
use crate::activities::{Admission, AdmitInput, ControlActivities, Placed};
use crate::contract::{BuildError, BuildInput, BuildResult, CellId, FailureClass};

/// Between two looks for a cell while none takes builds: at first, when some may be starting, and later.
const NO_CELL_PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// How often to look with the first pause.
const NO_CELL_EAGER: u32 = 30;
/// How often to look for a cell, a quarter of an hour, before the build ends.
const NO_CELL_LIMIT: u32 = 114;
/// The longest pause between two looks while the project is at its cap.
const CAP_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often to look while the project is at its cap, six hours or so, before the build ends.
const CAP_LIMIT: u32 = 360;

pub(super) enum Admitted {
    Recorded(Box<BuildResult>),
    Placed(Placed),
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
pub(super) async fn admit(
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
        within_limit(ctx, input, started_ms)?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
