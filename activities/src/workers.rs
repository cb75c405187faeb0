//! Temporal workers of the roles: which queue, which workflows and activities, how many at once.

use std::time::Duration;

use futures::future::join_all;
use temporalio_client::Client;
use temporalio_common::worker::WorkerDeploymentOptions;
use temporalio_sdk::activities::ActivityImplementer;
use temporalio_sdk::runtime::worker_tuner::{FixedSizeSlotSupplier, TunerHolder};
use temporalio_sdk::runtime::{PollerBehavior, RuntimeOptions};
use temporalio_sdk::{Runtime, Worker, WorkerOptions};
use tokio_util::sync::CancellationToken;
use workflows::contract::{
    CONTROL_TASK_QUEUE, CellId, ENTITIES_TASK_QUEUE, HostId, cell_ops_task_queue, cell_task_queue, host_task_queue,
};
use workflows::{Build, Cell, Pool};

use crate::build::Builder;
use crate::control::{Control, Entities, Pools};
use crate::ops::CellOps;
use crate::vm::Host;

/// Workflow tasks of Builds at once; each is some milliseconds of work.
const BUILD_TASKS: usize = 100;
/// Local activities at once: each holds its workflow task open, so there are as many.
const LOCAL_ACTIVITIES: usize = 100;
/// Builds kept in memory between their tasks.
const CACHED_BUILDS: usize = 2000;
/// How long a workflow waits for the control that has it in memory before another one takes it up, reading its short history again: what
/// a killed control costs a build.
const STICKY: Duration = Duration::from_secs(3);
/// Operations of a cell at once: the one its Cell waits for, and those it no longer does.
const CELL_OPERATIONS: usize = 16;
/// How long a worker that stops waits for its running workflow tasks and short activities.
const CONTROL_GRACE: Duration = Duration::from_secs(3);
/// Orders that a host carries out at once; most of the time they wait for a cell.
const HOST_ORDERS: usize = 64;
/// What the server calls a worker's code. By default the SDK reads the whole program to name it, which takes a guest a second.
const BUILD_ID: &str = concat!("kiln-", env!("CARGO_PKG_VERSION"));
/// How long a host's agent that stops waits for orders under way; the next agent goes on with what is left of them.
const HOST_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    #[error("Temporal's runtime cannot be set up: {why}")]
    Runtime { why: String },
    #[error("the worker on {queue:?} cannot be made")]
    Create { queue: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the worker on {queue:?} ended")]
    Run { queue: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Workers of one process, to be run on its main task: a worker's future stays on its thread.
pub struct Workers {
    workers: Vec<Worker>,
}

/// Temporal's core on the current tokio runtime.
pub fn runtime() -> Result<Runtime, WorkersError> {
    let options = RuntimeOptions::builder().build().map_err(|why| WorkersError::Runtime { why: why.to_string() })?;
    Runtime::from_current_tokio(options).map_err(|e| WorkersError::Runtime { why: e.to_string() })
}

/// `kiln control`: Builds with their control activities, and the entities with slots of their own.
pub fn control(runtime: &Runtime, client: &Client, control: Control) -> Result<Workers, WorkersError> {
    let entities = Entities { store: control.store.clone(), temporal: client.clone() };
    let pools = Pools { store: control.store.clone() };
    let builds = WorkerOptions::new(CONTROL_TASK_QUEUE)
        .register_workflow::<Build>()
        .map_err(|e| create(CONTROL_TASK_QUEUE, e))?
        .register_activities(control)
        .max_cached_workflows(CACHED_BUILDS)
        .deployment_options(deployment())
        .tuner(tuner(BUILD_TASKS, 50, LOCAL_ACTIVITIES))
        .workflow_task_poller_behavior(PollerBehavior::SimpleMaximum(8))
        .activity_task_poller_behavior(PollerBehavior::SimpleMaximum(2))
        .sticky_queue_schedule_to_start_timeout(STICKY)
        .graceful_shutdown_period(CONTROL_GRACE)
        .build();
    let entity_options = WorkerOptions::new(ENTITIES_TASK_QUEUE)
        .register_workflow::<Cell>()
        .map_err(|e| create(ENTITIES_TASK_QUEUE, e))?
        .register_workflow::<Pool>()
        .map_err(|e| create(ENTITIES_TASK_QUEUE, e))?
        .register_activities(entities)
        .register_activities(pools)
        .deployment_options(deployment())
        .tuner(tuner(20, 1, 20))
        .workflow_task_poller_behavior(PollerBehavior::SimpleMaximum(2))
        .sticky_queue_schedule_to_start_timeout(STICKY)
        .graceful_shutdown_period(CONTROL_GRACE)
        .build();
    let workers = [(CONTROL_TASK_QUEUE, builds), (ENTITIES_TASK_QUEUE, entity_options)]
        .into_iter()
        .map(|(queue, options)| Worker::new(runtime, client.clone(), options).map_err(|e| create(queue, e)))
        .collect::<Result<_, _>>()?;
    Ok(Workers { workers })
}

/// `kiln builder`: one activity slot a cell slot, the queue is the waiting line; beside it a small worker for the cell's operations.
pub fn cell(
    runtime: &Runtime,
    client: &Client,
    builder: Builder,
    ops: CellOps,
    grace: Duration,
) -> Result<Workers, WorkersError> {
    let cell = builder.cell.clone();
    let slots = builder.slots.watch().borrow().slots;
    let ops = cell_ops(runtime, client, &cell, ops)?;
    let builds = cell_builds(runtime, client, &cell, slots, builder, grace)?;
    Ok(Workers { workers: vec![builds, ops] })
}

fn cell_builds(
    runtime: &Runtime,
    client: &Client,
    cell: &CellId,
    slots: u32,
    builder: Builder,
    grace: Duration,
) -> Result<Worker, WorkersError> {
    let queue = cell_task_queue(cell);
    let options = WorkerOptions::new(queue.clone())
        .register_activities(builder)
        .deployment_options(deployment())
        .tuner(tuner(1, slots as usize, 1))
        .activity_task_poller_behavior(PollerBehavior::SimpleMaximum(2))
        .max_eager_activity_reservations_per_workflow_task(0)
        .graceful_shutdown_period(grace)
        .build();
    Worker::new(runtime, client.clone(), options).map_err(|e| create(&queue, e))
}

/// Any implementation of the cell's operations.
pub fn cell_ops<A: ActivityImplementer>(
    runtime: &Runtime,
    client: &Client,
    cell: &CellId,
    ops: A,
) -> Result<Worker, WorkersError> {
    let queue = cell_ops_task_queue(cell);
    let options = WorkerOptions::new(queue.clone())
        .register_activities(ops)
        .deployment_options(deployment())
        .tuner(tuner(1, CELL_OPERATIONS, 1))
        .activity_task_poller_behavior(PollerBehavior::SimpleMaximum(2))
        .max_eager_activity_reservations_per_workflow_task(0)
        .graceful_shutdown_period(CONTROL_GRACE)
        .build();
    Worker::new(runtime, client.clone(), options).map_err(|e| create(&queue, e))
}

/// `kiln host`: orders for the host's cells.
pub fn host(runtime: &Runtime, client: &Client, id: &HostId, host: Host) -> Result<Workers, WorkersError> {
    let queue = host_task_queue(id);
    let options = WorkerOptions::new(queue.clone())
        .register_activities(host)
        .deployment_options(deployment())
        .tuner(tuner(1, HOST_ORDERS, 1))
        .activity_task_poller_behavior(PollerBehavior::SimpleMaximum(2))
        .graceful_shutdown_period(HOST_GRACE)
        .build();
    let worker = Worker::new(runtime, client.clone(), options).map_err(|e| create(&queue, e))?;
    Ok(Workers { workers: vec![worker] })
}

fn deployment() -> WorkerDeploymentOptions {
    WorkerDeploymentOptions::from_build_id(BUILD_ID.into())
}

fn tuner(workflow_tasks: usize, activities: usize, local_activities: usize) -> TunerHolder {
    TunerHolder::builder()
        .workflow_task_slot_supplier(FixedSizeSlotSupplier::new(workflow_tasks.max(2)))
        .activity_task_slot_supplier(FixedSizeSlotSupplier::new(activities))
        .local_activity_task_slot_supplier(FixedSizeSlotSupplier::new(local_activities))
        .nexus_task_slot_supplier(FixedSizeSlotSupplier::new(1))
        .build()
}

fn create(queue: &str, source: impl std::error::Error + Send + Sync + 'static) -> WorkersError {
    WorkersError::Create { queue: queue.to_owned(), source: Box::new(source) }
}

impl Workers {
    /// Runs until `stop`, then until what runs has ended or its grace is over. One worker that ends early ends them all.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), WorkersError> {
        let handles: Vec<_> = self.workers.iter().map(|worker| worker.shutdown_handle()).collect();
        let stopper = tokio::spawn(async move {
            stop.cancelled().await;
            handles.iter().for_each(|shut_down| shut_down());
        });
        let runs = self.workers.iter_mut().map(|worker| async {
            let queue = worker.task_queue().to_owned();
            worker.run().await.map_err(|e| WorkersError::Run { queue, source: Box::new(e) })
        });
        let ended = join_all(runs).await;
        stopper.abort();
        ended.into_iter().collect()
    }
}
