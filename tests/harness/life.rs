//! A cell's operations and its host as the workflow tests have them: they do as the test says.

#![expect(dead_code, reason = "the SDK's macro makes a constant of each activity, for workflows to call")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use activities::failure::{failed, typed};
use activities::workers;
use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use temporalio_sdk::{Worker, WorkerOptions};
use tokio_util::sync::CancellationToken;
use workflows::activities::{CheckOrder, CloseOrder, PresenceEnd, PresenceOrder, SICK, SettleOrder};
use workflows::contract::{
    BuildError, CellClocks, CellId, CellReport, CloneOrder, FailureClass, HostCell, HostClone, HostId, HostOrder,
    HostWire, host_task_queue,
};

use super::plane::on_a_thread;

/// Short enough for a test, long enough for a busy machine.
pub fn quick_clocks() -> CellClocks {
    CellClocks {
        heartbeat_ms: 300,
        lost_after_ms: 2_500,
        start_patience_ms: 4_000,
        host_patience_ms: 2_000,
        retry_ms: 500,
        canary_patience_ms: 1_000,
        ..CellClocks::default()
    }
}

/// How the builder of a cell behaves.
#[derive(Default)]
pub struct Behaviour {
    /// It answers nothing and falls silent.
    pub deaf: AtomicBool,
    pub sick: AtomicBool,
    /// It cannot keep what it is ordered.
    pub full: AtomicBool,
    pub open: AtomicBool,
    /// The time of the last order to its intake.
    pub ordered_ms: AtomicI64,
    pub checks: AtomicU32,
    /// So many checks are taken and not answered, as by a machine whose connection nobody closed.
    pub swallows: AtomicU32,
    /// How often it was started anew.
    pub starts: AtomicU32,
    host: Option<HostId>,
}

pub struct TestOps {
    pub behaviour: Arc<Behaviour>,
}

impl TestOps {
    fn report(&self) -> CellReport {
        CellReport {
            epoch: 1 + u64::from(self.behaviour.starts.load(Ordering::Relaxed)),
            slots: 1,
            open: self.behaviour.open.load(Ordering::Relaxed),
            ordered_ms: self.behaviour.ordered_ms.load(Ordering::Relaxed),
            running: Vec::new(),
            host: self.behaviour.host.clone(),
            version: "test".into(),
            clocks: quick_clocks(),
        }
    }

    /// As a builder's intake does.
    fn order(&self, open: bool, at_ms: i64) {
        if at_ms > self.behaviour.ordered_ms.fetch_max(at_ms, Ordering::Relaxed) {
            self.behaviour.open.store(open, Ordering::Relaxed);
        }
    }

    /// Picked up and never answered, as by a process that stands still.
    async fn answers(&self) {
        while self.behaviour.deaf.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[activities]
impl TestOps {
    #[activity(name = "check")]
    pub async fn check(self: Arc<Self>, ctx: ActivityContext, order: CheckOrder) -> Result<CellReport, ActivityError> {
        self.answers().await;
        let swallowed =
            self.behaviour.swallows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if swallowed.is_ok() {
            ctx.cancelled().await;
        }
        self.behaviour.checks.fetch_add(1, Ordering::Relaxed);
        if self.behaviour.sick.load(Ordering::Relaxed) {
            return Err(typed(SICK, "the test's daemon does not solve"));
        }
        if self.behaviour.full.load(Ordering::Relaxed) {
            return Err(typed("intake", "no space left"));
        }
        self.order(order.open, order.at_ms);
        Ok(self.report())
    }

    #[activity(name = "presence")]
    pub async fn presence(
        self: Arc<Self>,
        ctx: ActivityContext,
        _order: PresenceOrder,
    ) -> Result<PresenceEnd, ActivityError> {
        loop {
            if tokio::time::timeout(Duration::from_millis(100), ctx.cancelled()).await.is_ok() {
                return Err(ActivityError::cancelled());
            }
            if self.behaviour.sick.load(Ordering::Relaxed) {
                return Ok(PresenceEnd::Sick { why: "the test's daemon does not solve".into() });
            }
            self.answers().await;
            let _ = ctx.record_heartbeat(()).await;
        }
    }

    #[activity(name = "close_intake")]
    pub async fn close_intake(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: CloseOrder,
    ) -> Result<CellReport, ActivityError> {
        self.answers().await;
        self.order(false, order.at_ms);
        Ok(self.report())
    }

    #[activity(name = "settle")]
    pub async fn settle(
        self: Arc<Self>,
        _ctx: ActivityContext,
        _order: SettleOrder,
    ) -> Result<CellReport, ActivityError> {
        self.answers().await;
        Ok(self.report())
    }
}

/// Works on `cell-<id>-ops` until `stop`.
pub fn run_ops(client: Client, cell: CellId, host: Option<HostId>, stop: CancellationToken) -> Arc<Behaviour> {
    let behaviour = Arc::new(Behaviour { host, ..Behaviour::default() });
    let ops = TestOps { behaviour: behaviour.clone() };
    on_a_thread(async move || {
        let runtime = workers::runtime().unwrap();
        run(workers::cell_ops(&runtime, &client, &cell, ops).unwrap(), stop).await;
    });
    behaviour
}

/// A host whose cells start and stop at once.
#[derive(Default)]
pub struct TestHost {
    pub running: AtomicBool,
    pub starts: AtomicU32,
    pub stops: AtomicU32,
    /// The way to its cell is broken, and that is all.
    pub unplugged: AtomicBool,
    /// It takes its time for a clone.
    pub copies_slowly: AtomicBool,
    /// Clones that there are.
    pub clones: std::sync::Mutex<Vec<CellId>>,
    image: std::sync::Mutex<Option<String>>,
}

impl TestHost {
    fn cell(&self, order: &HostOrder) -> HostCell {
        HostCell {
            cell: order.cell.clone(),
            running: self.running.load(Ordering::Relaxed),
            pid: None,
            started_ms: None,
            image: self.image.lock().unwrap().clone(),
            generation: u64::from(self.starts.load(Ordering::Relaxed)),
        }
    }
}

pub struct HostOf {
    pub host: Arc<TestHost>,
    /// What a restart does to the cell.
    pub heals: Option<Arc<Behaviour>>,
}

#[activities]
impl HostOf {
    #[activity(name = "inspect_cell")]
    pub async fn inspect_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        Ok(self.host.cell(&order))
    }

    #[activity(name = "replug_cell")]
    pub async fn replug_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        _order: HostOrder,
    ) -> Result<HostWire, ActivityError> {
        let mended = self.host.unplugged.swap(false, Ordering::Relaxed).then(|| "its tap was down".to_owned());
        if let Some(behaviour) = self.heals.as_ref().filter(|_| mended.is_some()) {
            behaviour.deaf.store(false, Ordering::Relaxed);
        }
        Ok(HostWire { mended: mended.into_iter().collect() })
    }

    #[activity(name = "clone_cell")]
    pub async fn clone_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: CloneOrder,
    ) -> Result<HostClone, ActivityError> {
        while self.host.copies_slowly.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut clones = self.host.clones.lock().unwrap();
        if clones.contains(&order.clone) {
            return Err(failed(BuildError::new(
                FailureClass::Refused,
                format!("there is a cell {} already", order.clone),
            )));
        }
        clones.push(order.clone.clone());
        Ok(HostClone { clone: order.clone, held_still_ms: Some(8), took_ms: 9 })
    }

    #[activity(name = "delete_clone")]
    pub async fn delete_clone(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        self.host.clones.lock().unwrap().retain(|clone| *clone != order.cell);
        self.host.running.store(false, Ordering::Relaxed);
        Ok(self.host.cell(&order))
    }

    #[activity(name = "stop_cell")]
    pub async fn stop_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        self.host.stops.fetch_add(1, Ordering::Relaxed);
        self.host.running.store(false, Ordering::Relaxed);
        Ok(self.host.cell(&order))
    }

    #[activity(name = "start_cell")]
    pub async fn start_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        self.host.starts.fetch_add(1, Ordering::Relaxed);
        self.host.running.store(true, Ordering::Relaxed);
        if order.image.is_some() {
            self.host.image.lock().unwrap().clone_from(&order.image);
        }
        if let Some(behaviour) = &self.heals {
            behaviour.deaf.store(false, Ordering::Relaxed);
            behaviour.sick.store(false, Ordering::Relaxed);
            behaviour.starts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.host.cell(&order))
    }
}

/// Works on `host-<id>` until `stop`.
pub fn run_host(client: Client, id: &HostId, heals: Option<Arc<Behaviour>>, stop: CancellationToken) -> Arc<TestHost> {
    let host = Arc::new(TestHost { running: AtomicBool::new(true), ..TestHost::default() });
    let activities = HostOf { host: host.clone(), heals };
    let queue = host_task_queue(id);
    on_a_thread(async move || {
        let runtime = workers::runtime().unwrap();
        let options = WorkerOptions::new(queue)
            .register_activities(activities)
            .graceful_shutdown_period(Duration::from_secs(1))
            .build();
        run(Worker::new(&runtime, client, options).unwrap(), stop).await;
    });
    host
}

async fn run(mut worker: Worker, stop: CancellationToken) {
    let shut_down = worker.shutdown_handle();
    tokio::spawn(async move {
        stop.cancelled().await;
        shut_down();
    });
    worker.run().await.unwrap();
}
