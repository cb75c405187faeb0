//! No-op builds: admit, an empty activity on a cell's queue, publish to a stand-in registry in this process, result. What remains
//! is Kiln's own work and Temporal's.
//!
//! Temporal's dev server runs beside with its state in memory; control, 16 cells of 4 slots and the starter are this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use activities::temporal::{Frontend, connect_patiently};
use temporalio_client::{Client, UntypedWorkflow, WorkflowHandle};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use workflows::contract::CellState;

use super::harness::dev::processes_with;
use super::harness::plane::{Act, Plane};
use super::harness::temporal;
use super::report::{Sample, milliseconds, own_cpu, process_cpu};
use super::temporal_server::TemporalServer;

const CELLS: usize = 16;
const SLOTS: usize = 4;
/// One build at a time, so often.
const ALONE: usize = 1000;
/// Builds of each closed-loop run, and how many are in flight.
const MANY: usize = 1500;
const IN_FLIGHT: usize = 48;
/// Starts per second of the open loop: 66,000 an hour.
const OPEN_RATE: f64 = 18.3;
/// How long the open loop runs unless `KILN_BENCH_OPEN_LOOP_S` says otherwise, seconds.
const OPEN_SECONDS: u64 = 60;

pub async fn run() {
    let address = temporal::start(1);
    let client = connect_patiently(&Frontend::plain(&address, "t0"), "bench").await.unwrap();
    let plane = Arc::new(Plane::on(client, CELLS, SLOTS, 0, |_| Act::Push("image".into())).await);
    let port = address.rsplit(':').next().unwrap();
    let server = processes_with(&format!("server start-dev --headless --ip 127.0.0.1 --port {port} "))[0];
    let server = || process_cpu(server);
    let hints = Hints::keep(&plane);
    alone(&plane).await;
    for round in 0..3 {
        closed_loop(&plane, &server, round).await;
    }
    open_loop(&plane, &server).await;
    hints.end().await;
}

/// The same with Temporal's server on PostgreSQL, as fleets run it; both beside on these cores.
pub async fn run_on_postgres() {
    let server = TemporalServer::start().await;
    let plane = Arc::new(Plane::on(server.client.clone(), CELLS, SLOTS, 0, |_| Act::Push("image".into())).await);
    let hints = Hints::keep(&plane);
    println!("Temporal {} on PostgreSQL {}:", server.version, server.postgres_version);
    alone(&plane).await;
    for round in 0..3 {
        closed_loop(&plane, &|| server.cpu(), round).await;
    }
    open_loop(&plane, &|| server.cpu()).await;
    hints.end().await;
}

/// Keeps the cells' hints fresh.
struct Hints {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Hints {
    fn keep(plane: &Arc<Plane>) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(fresh_hints(plane.clone(), stop.clone())), stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The cells' hints, every few seconds, as builders report them.
async fn fresh_hints(plane: Arc<Plane>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        for n in 1..=CELLS {
            plane.report(n, u32::try_from(SLOTS).unwrap(), CellState::Ready).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), stop.cancelled()).await;
    }
}

/// Starts a build and waits for its result; milliseconds since `begun`.
async fn build(plane: &Plane, key: &str, begun: Instant) -> f64 {
    let handle = plane.start_build(key, &plane.input(key)).await;
    plane.result(handle.info()).await.unwrap();
    milliseconds(begun)
}

async fn alone(plane: &Plane) {
    for n in 0..20 {
        build(plane, &format!("warm-{n}"), Instant::now()).await;
    }
    let mut times = Vec::with_capacity(ALONE);
    for n in 0..ALONE {
        times.push(build(plane, &format!("alone-{n}"), Instant::now()).await);
    }
    let slow = times.iter().filter(|time| **time > 250.0).count();
    println!("no-op build, one at a time, start to result: {} ({slow} over 250 ms)", Sample::new(times).text());
    let handle = plane.client.get_workflow_handle("build/shop/alone-0");
    let (events, transitions) = cost(&plane.client, handle).await;
    println!("  {transitions} state transitions and {} history events a build: {}", events.len(), events.join(", "));
}

/// The names of a run's history events, and its count of state transitions.
async fn cost(client: &Client, handle: WorkflowHandle<Client, UntypedWorkflow>) -> (Vec<String>, i64) {
    use temporalio_client::grpc::WorkflowService as _;
    use temporalio_client::tonic::Request;
    use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
    use temporalio_common::protos::temporal::api::workflowservice::v1::{
        DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest,
    };
    let execution = Some(WorkflowExecution { workflow_id: handle.info().workflow_id.clone(), ..Default::default() });
    let namespace = client.options().namespace.clone();
    let mut client = client.clone();
    let describe = DescribeWorkflowExecutionRequest { namespace: namespace.clone(), execution: execution.clone() };
    let described = client.describe_workflow_execution(Request::new(describe)).await.unwrap().into_inner();
    let history = GetWorkflowExecutionHistoryRequest { namespace, execution, ..Default::default() };
    let history = client.get_workflow_execution_history(Request::new(history)).await.unwrap().into_inner();
    let events = history.history.unwrap().events;
    let names =
        events.iter().map(|event| event.event_type().as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase());
    (names.collect(), described.workflow_execution_info.unwrap().state_transition_count)
}

/// As many builds as two cores carry, a fixed number in flight.
async fn closed_loop(plane: &Arc<Plane>, server: ServerCpu<'_>, round: usize) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut builds = JoinSet::new();
    let meter = Meter::start(server);
    for n in 0..MANY {
        let place = places.clone().acquire_owned().await.unwrap();
        let plane = plane.clone();
        builds.spawn(async move {
            let time = build(&plane, &format!("closed-{round}-{n}"), Instant::now()).await;
            drop(place);
            time
        });
    }
    let times = Sample::new(builds.join_all().await);
    println!("no-op builds, {IN_FLIGHT} in flight: {}; {}", meter.rate(MANY), times.text());
}

/// Builds started at a fixed rate, whether or not the former ones have ended; each timed from when it was due.
async fn open_loop(plane: &Arc<Plane>, server: ServerCpu<'_>) {
    let seconds =
        std::env::var("KILN_BENCH_OPEN_LOOP_S").ok().and_then(|text| text.parse().ok()).unwrap_or(OPEN_SECONDS);
    let count = (OPEN_RATE * seconds as f64) as usize;
    let mut builds = JoinSet::new();
    let meter = Meter::start(server);
    for n in 0..count {
        let due = meter.begun + Duration::from_secs_f64(n as f64 / OPEN_RATE);
        tokio::time::sleep_until(due.into()).await;
        let plane = plane.clone();
        builds.spawn(async move { (n, build(&plane, &format!("open-{n}"), due).await) });
    }
    let mut times = builds.join_all().await;
    times.sort_by_key(|(n, _)| *n);
    println!("no-op builds, {OPEN_RATE} started a second for {seconds} s: {}", meter.rate(count));
    for (part, times) in ["first", "second", "third", "last"].into_iter().zip(times.chunks(count.div_ceil(4))) {
        println!("  {part} quarter: {}", Sample::new(times.iter().map(|(_, time)| *time).collect()).text());
    }
}

/// CPU milliseconds that the server has taken so far.
type ServerCpu<'a> = &'a dyn Fn() -> f64;

/// Time and CPU of a run.
struct Meter<'a> {
    begun: Instant,
    server: ServerCpu<'a>,
    cpu: (f64, f64),
}

impl<'a> Meter<'a> {
    fn start(server: ServerCpu<'a>) -> Self {
        Self { begun: Instant::now(), server, cpu: (server(), own_cpu()) }
    }

    fn rate(&self, builds: usize) -> String {
        let per_build = |before: f64, after: f64| (after - before) / builds as f64;
        format!(
            "{:.1} builds/s; CPU a build: server {:.1} ms, control with cells and starter {:.1} ms",
            builds as f64 / self.begun.elapsed().as_secs_f64(),
            per_build(self.cpu.0, (self.server)()),
            per_build(self.cpu.1, own_cpu()),
        )
    }
}
