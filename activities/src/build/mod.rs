//! The build activity: one attempt on this cell, and what surrounds it.
//!
//! ```text
//!  picked up ─► ledger ─► operations: fetch ─► plan ─► solve (pushes by digest) ─► report by task token ─► ledger forgets
//!                            │  next to them: heartbeats; a cancel request, a lost attempt, being cut off or drained stops the solve
//! ```
//!
//! Nothing but the operations knows buildkitd, and nothing here knows where a build goes next: the workflow decides.

mod bases;
mod causes;
mod classify;
mod disk;
mod events;
mod operations;
mod plan;
mod progress;
mod request;
mod settle;
mod slots;
mod stall;
mod text;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use workflows::activities::NOT_TAKEN;
use workflows::contract::{AttemptId, AttemptInput, AttemptResult, BuildError, CellId, FailureClass};
use workflows::policy::{Refusal, RegistryPolicy};

use crate::attempts::{Entry, HeartbeatSettings, Interrupt, Ledger, LedgerError, Outcome, keep_alive, report};
use crate::clock::{Clock, Skew};
use crate::dns::Dns;
use crate::egress::Egress;
use crate::failpoint;
use crate::failure::{failed, typed, with_source};
use crate::logs::LogShipper;
use crate::objects::ObjectStore;
use crate::oci::Registries;
use crate::pressure::Slices;
use crate::sealed::SealedStore;
use crate::snapshots::{Caps, SnapshotCache};

pub use progress::Meter;
pub use slots::{IntakeError, Slot, Slots, SlotsView};

/// How long a stopped solve may take to be gone before the attempt ends without it.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// What the cell's activities need.
pub struct Builder {
    pub cell: CellId,
    /// Raised at each start of the builder.
    pub epoch: u64,
    pub temporal: Client,
    pub buildkit_socket: PathBuf,
    pub objects: ObjectStore,
    /// Fetched content of snapshots, on the cache disk.
    pub files: Arc<SnapshotCache>,
    pub sealed: SealedStore,
    /// For looking up base images.
    pub registries: Registries,
    /// For the token servers of registries.
    pub egress: Egress,
    pub ledger: Ledger,
    pub logs: LogShipper,
    pub slots: Slots,
    /// The forwarder that steps and daemons ask, where the cell has one.
    pub dns: Option<Dns>,
    /// Where there are time servers.
    pub clock: Option<Clock>,
    pub settings: BuilderSettings,
}

/// Limits and places of a builder.
#[derive(Debug, Clone)]
pub struct BuilderSettings {
    pub heartbeat: HeartbeatSettings,
    pub stuck_after: Duration,
    /// The most one build's log may grow to, bytes.
    pub log_cap: u64,
    /// Frontend images allowed besides the built-in one, without tag.
    pub frontends: Vec<String>,
    /// Who may use which repository.
    pub repositories: RegistryPolicy,
    /// The registry (`host[:port]`) that buildkitd asks first for images of Docker Hub; empty when there is none.
    pub mirror: String,
    pub caps: Caps,
}

#[activities]
impl Builder {
    /// Holds a slot for as long as it runs. Its end is told by task token (see [`crate::attempts`]), so the SDK hears only that it
    /// is over.
    #[activity(name = "build")]
    pub async fn build(
        self: Arc<Self>,
        ctx: ActivityContext,
        input: AttemptInput,
    ) -> Result<AttemptResult, ActivityError> {
        let mut slot = match let_in(&self.slots, self.clock.as_ref(), &input.attempt).await {
            Ok(slot) => slot,
            Err(why) => return Err(typed(NOT_TAKEN, format!("cell {}: {why}", self.cell))),
        };
        let token = ctx.info().task_token.clone();
        let entry = Entry { attempt: input.attempt.clone(), task_token: STANDARD.encode(&token), epoch: self.epoch };
        if let Err(error) = self.ledger.record(&entry) {
            return Err(failed(ledger_fault(&error)));
        }
        let (workflow, number) = (&input.attempt.workflow_id, input.attempt.number);
        let span = tracing::info_span!("attempt", workflow, number, cell = %self.cell);
        let heartbeat = self.settings.heartbeat.within(ctx.info().heartbeat_timeout);
        let outcome = self.attempt(&input, &token, heartbeat, &mut slot).instrument(span).await;
        drop(slot);
        if let Some(Outcome::Built(result)) = &outcome {
            self.slots.count(&result.cache);
        }
        if let Some(outcome) = outcome
            && let Err(error) = report(&self.temporal, &token, &outcome).await
        {
            tracing::warn!(attempt = %entry.attempt.buildkit_ref(), error = with_source(&error), "unreported attempt");
        }
        failpoint::reach("after_report");
        if let Err(error) = self.ledger.forget(&input.attempt) {
            tracing::warn!(error = with_source(&error), "the ledger keeps an attempt that has ended");
        }
        Err(ActivityError::WillCompleteAsync)
    }
}

impl Builder {
    /// Runs the operations beside the heartbeats. `None` when the attempt is no longer this builder's to report.
    async fn attempt(
        &self,
        input: &AttemptInput,
        token: &[u8],
        heartbeat: HeartbeatSettings,
        slot: &mut Slot,
    ) -> Option<Outcome> {
        let stop = CancellationToken::new();
        let meter = Meter::new();
        slot.follow(&meter);
        let operations = operations::run(self, input, &meter, &stop);
        tokio::pin!(operations);
        let end = tokio::select! {
            ended = &mut operations => return Some(outcome(ended)),
            interrupt = keep_alive(&self.temporal, token, meter.watch(), heartbeat) => End::Interrupted(interrupt),
            () = meter.stuck(self.settings.stuck_after) => End::Stuck,
            reason = slot.evicted() => End::Evicted(reason),
        };
        stop.cancel();
        let ended = tokio::time::timeout(STOP_PATIENCE, operations).await;
        // What was finished in the same moment counts.
        match (end, ended) {
            (End::Interrupted(Interrupt::Disowned | Interrupt::CutOff), _) => None,
            (End::Interrupted(Interrupt::Cancelled) | End::Evicted(_), Ok(Ok(result))) => {
                Some(Outcome::Built(Box::new(result)))
            }
            (End::Interrupted(Interrupt::Cancelled), _) => Some(Outcome::Cancelled),
            (End::Evicted(reason), _) => {
                Some(Outcome::Failed(Box::new(BuildError::new(FailureClass::CellFault, reason))))
            }
            (End::Stuck, _) => Some(Outcome::Failed(Box::new(stuck(&meter, self.settings.stuck_after)))),
        }
    }
}

/// Why an attempt does not start here: no fault of its own, and none that it has to make up for elsewhere.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Intake(#[from] Refusal),
    #[error("{0}")]
    Clock(Skew),
}

/// Takes a slot, unless the cell takes no builds now. By a wrong clock none could succeed: every build comes across TLS somewhere, in
/// storage, in registries, in what its steps fetch.
async fn let_in(slots: &Slots, clock: Option<&Clock>, attempt: &AttemptId) -> Result<Slot, NotTaken> {
    let slot = slots.take(attempt)?;
    match clock {
        Some(clock) => clock.unfit().await.map_or(Ok(slot), |skew| Err(NotTaken::Clock(skew))),
        None => Ok(slot),
    }
}

/// The ledger is the first that a full disk is met by.
fn ledger_fault(error: &LedgerError) -> BuildError {
    let full = if error.source.kind() == io::ErrorKind::StorageFull { "the cell's disk is full: " } else { "" };
    BuildError::new(FailureClass::CellFault, format!("{full}{}", with_source(error)))
}

/// Why an attempt's operations are stopped.
enum End {
    Interrupted(Interrupt),
    Stuck,
    /// The cell is drained, and its deadline has come.
    Evicted(String),
}

fn outcome(ended: Result<AttemptResult, BuildError>) -> Outcome {
    match ended {
        Ok(result) => Outcome::Built(Box::new(result)),
        Err(error) if error.class == FailureClass::Cancelled => Outcome::Cancelled,
        Err(error) => Outcome::Failed(Box::new(error)),
    }
}

fn stuck(meter: &Meter, after: Duration) -> BuildError {
    let mut message = format!("no step made progress for {} s, the last one in {}", after.as_secs(), meter.operation());
    if let Some(standstill) = Slices::default().standstill() {
        message.push_str(&format!("; {standstill}"));
    }
    BuildError::new(FailureClass::Stuck, message)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::clock;

    fn attempt() -> AttemptId {
        let platform = "linux/amd64".parse().unwrap();
        AttemptId { workflow_id: "build/p/k".into(), run_id: "r".into(), platform, number: 1 }
    }

    #[tokio::test]
    async fn by_a_wrong_clock_nothing_is_let_in_and_nothing_is_held() {
        let slots = Slots::new(1);
        let (clock, ahead) = clock::tests::wrong().await;
        let refused = let_in(&slots, Some(&clock), &attempt()).await.unwrap_err();
        assert!(matches!(refused, NotTaken::Clock(_)), "{refused:?}");
        assert!(refused.to_string().starts_with("the cell's clock was found 3600.0 s behind"), "{refused}");
        assert!(slots.running().is_empty());

        ahead.store(0, Ordering::Relaxed);
        let slot = let_in(&slots, Some(&clock), &attempt()).await.unwrap();
        let refused = let_in(&slots, Some(&clock), &attempt()).await.unwrap_err();
        assert!(matches!(refused, NotTaken::Intake(Refusal::Runs)), "{refused:?}");
        drop(slot);
        slots.order(false, 1).unwrap();
        let refused = let_in(&slots, None, &attempt()).await.unwrap_err();
        assert_eq!(refused.to_string(), "the cell takes no builds now");
    }
}
