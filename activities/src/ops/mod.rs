//! The cell's operations: what its Cell's workflow asks of the builder, on a queue of their own, so that a full cell answers as quickly
//! as an idle one.
//!
//! | activity | lasts | does |
//! |---|---|---|
//! | check | seconds | heartbeats, solves a canary, opens or closes the intake, says what runs |
//! | presence | until there is something to say | heartbeats, solves canaries |
//! | close_intake | milliseconds | no attempt starts after it has answered, not even where it failed to keep that on a full disk |
//! | settle | until nothing runs | at the deadline makes running attempts let go |
//!
//! A closed intake goes on polling and sends back what it gets: a build that was sent here by mistake is elsewhere in milliseconds, and
//! the cell takes builds again the moment it is opened.

mod canary;
mod former;
mod pulse;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use workflows::activities::{CheckOrder, CloseOrder, PresenceEnd, PresenceOrder, SICK, SettleOrder};
use workflows::contract::{CellClocks, CellReport, HostId};

use crate::build::{IntakeError, Slots};
use crate::failure::{typed, with_source};

pub use canary::Canary;
pub use former::end_former;
use pulse::{End, Failed, Unwanted, beat, handle, tell};

/// How long attempts that were made to let go may take: what a stopped solve may take, and telling it.
const LETTING_GO: Duration = Duration::from_secs(20);

/// What the operations need.
pub struct CellOps {
    pub epoch: u64,
    pub temporal: Client,
    pub slots: Slots,
    pub canary: Canary,
    /// Whose agent starts and stops the cell.
    pub host: Option<HostId>,
    pub clocks: CellClocks,
    /// The builder was told to end.
    pub stop: CancellationToken,
    /// When the server last had something to do with this cell's life.
    pub heard: watch::Sender<Instant>,
}

#[activities]
impl CellOps {
    #[activity(name = "check")]
    pub async fn check(self: Arc<Self>, ctx: ActivityContext, order: CheckOrder) -> Result<CellReport, ActivityError> {
        self.heard.send_replace(Instant::now());
        let look = async {
            match self.look(&order).await {
                Ok(report) => End::Done(report),
                Err(failed) => End::Failed(failed),
            }
        };
        // A Cell in doubt takes silence for a heartbeat's time for that of a builder that is no more.
        let every = self.heartbeat() / 3;
        self.beside_heartbeats(&ctx, every, look).await
    }

    #[activity(name = "close_intake")]
    pub async fn close_intake(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: CloseOrder,
    ) -> Result<CellReport, ActivityError> {
        self.slots.order(false, order.at_ms).map_err(|e| intake_error(&e))?;
        tracing::info!(reason = order.reason, "the cell takes no more builds");
        Ok(self.report())
    }

    #[activity(name = "presence")]
    pub async fn presence(
        self: Arc<Self>,
        ctx: ActivityContext,
        _order: PresenceOrder,
    ) -> Result<PresenceEnd, ActivityError> {
        let something = async {
            tokio::select! {
                why = self.sickness() => End::Done(PresenceEnd::Sick { why }),
                () = self.stop.cancelled() => End::Done(PresenceEnd::Stopping { running: self.slots.running() }),
            }
        };
        self.beside_heartbeats(&ctx, self.heartbeat(), something).await
    }

    #[activity(name = "settle")]
    pub async fn settle(
        self: Arc<Self>,
        ctx: ActivityContext,
        order: SettleOrder,
    ) -> Result<CellReport, ActivityError> {
        let settled = async {
            tokio::select! {
                () = self.until_idle(&order) => End::Done(self.report()),
                () = self.stop.cancelled() => End::Failed(Failed { kind: "stopping", why: "the builder was told to end".to_owned() }),
            }
        };
        self.beside_heartbeats(&ctx, self.heartbeat(), settled).await
    }
}

impl CellOps {
    fn report(&self) -> CellReport {
        CellReport {
            epoch: self.epoch,
            slots: self.slots.watch().borrow().slots,
            open: self.slots.is_open(),
            ordered_ms: self.slots.ordered_ms(),
            running: self.slots.running(),
            host: self.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clocks: self.clocks.clone(),
        }
    }

    /// Closes the intake at once, or opens it when a canary was solved.
    async fn look(&self, order: &CheckOrder) -> Result<CellReport, Failed> {
        if !order.open {
            self.slots.order(false, order.at_ms).map_err(|e| intake_failed(&e))?;
        }
        let patience = Duration::from_millis(self.clocks.canary_patience_ms);
        self.canary.sing(patience, &self.slots).await.map_err(|why| Failed { kind: SICK, why })?;
        self.slots.order(order.open, order.at_ms).map_err(|e| intake_failed(&e))?;
        Ok(self.report())
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.clocks.heartbeat_ms)
    }

    /// Tells the end of `work` by task token; the SDK hears only that it is over.
    async fn beside_heartbeats<T: Clone + serde::Serialize + Send + 'static>(
        &self,
        ctx: &ActivityContext,
        every: Duration,
        work: impl Future<Output = End<T>> + Send,
    ) -> Result<T, ActivityError> {
        let handle = handle(&self.temporal, &ctx.info().task_token);
        let end = tokio::select! {
            end = work => Some(end),
            unwanted = beat(&handle, every, &self.heard) => match unwanted {
                Unwanted::Cancelled => Some(End::Cancelled),
                Unwanted::Disowned => None,
            },
        };
        if let Some(end) = end {
            tell(&handle, end).await;
        }
        Err(ActivityError::WillCompleteAsync)
    }

    /// Sends canaries until one is not solved.
    async fn sickness(&self) -> String {
        let patience = Duration::from_millis(self.clocks.canary_patience_ms);
        loop {
            tokio::time::sleep(Duration::from_millis(self.clocks.canary_every_ms)).await;
            if let Err(why) = self.canary.sing(patience, &self.slots).await {
                return why;
            }
        }
    }

    /// Until nothing runs, or what ran has had its time to let go after the deadline.
    async fn until_idle(&self, order: &SettleOrder) {
        let deadline = async {
            match order.deadline_ms {
                Some(at_ms) => tokio::time::sleep(until(at_ms)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.idle() => return,
            () = deadline => {}
        }
        tracing::info!(reason = order.reason, running = self.slots.running().len(), "running builds move on");
        self.slots.evict(&order.reason);
        // One that does not let go is told of: the Cell decides.
        let _ = tokio::time::timeout(LETTING_GO, self.idle()).await;
    }

    async fn idle(&self) {
        // The sender lives as long as this does.
        let _ = self.slots.watch().wait_for(|view| view.busy == 0).await;
    }
}

fn until(at_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(u64::try_from(at_ms).unwrap_or(0)).saturating_sub(now)
}

fn intake_error(error: &IntakeError) -> ActivityError {
    let Failed { kind, why } = intake_failed(error);
    typed(kind, why)
}

fn intake_failed(error: &IntakeError) -> Failed {
    Failed { kind: "intake", why: with_source(error) }
}
