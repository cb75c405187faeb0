//! Months of a cell's life: its Cell and its Pool while it is restarted 500 times and 10,000 builds run on it and its neighbour. What
//! is told is how long their histories became; there is nothing to compare it with but the server's limits, 50 Ki events and 50 MiB.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use activities::entities::join_pool;
use activities::temporal::{Frontend, connect_patiently};
use temporalio_client::grpc::WorkflowService as _;
use temporalio_client::tonic::Request;
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeWorkflowExecutionRequest;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use workflows::contract::{CellState, HostId, PoolMember, PoolName, pool_workflow_id};

use super::harness::plane::{Act, Plane};
use super::harness::temporal;

const RESTARTS: u32 = 500;
const BUILDS: usize = 10_000;
const IN_FLIGHT: usize = 8;
const SLOTS: u32 = 4;

pub async fn run() {
    let address = temporal::start(1);
    let client = connect_patiently(&Frontend::plain(&address, "t0"), "bench").await.unwrap();
    let plane = Arc::new(Plane::on(client, 2, SLOTS as usize, 0, |_| Act::Push("image".into())).await);
    let pool: PoolName = "default".parse().unwrap();
    for n in 1..=2 {
        join_pool(&plane.client, &pool, &member(n)).await.unwrap();
    }
    let host: HostId = "h1".parse().unwrap();
    plane.ops("c1", Some(&host));
    let agent = plane.host(&host, None);
    let cell = plane.start_cell("c1").await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;

    let begun = Instant::now();
    let builds = tokio::spawn(builds(plane.clone()));
    let mut of_cell = Longest::of(&cell.info().workflow_id);
    let mut of_pool = Longest::of(&pool_workflow_id(&pool));
    for n in 1..=RESTARTS {
        for n in 1..=2 {
            plane.report(n, SLOTS, CellState::Ready).await;
        }
        plane.signal(&cell, "restart", serde_json::json!({ "reason": format!("round {n}"), "by": "bench" })).await;
        let restarted = || agent.starts.load(Ordering::Relaxed) == n;
        plane.until_status(&cell, |status| restarted() && status.state == CellState::Ready).await;
        of_cell.look(&plane).await;
        of_pool.look(&plane).await;
    }
    let restarts_s = begun.elapsed().as_secs_f64();
    builds.await.unwrap();
    of_pool.look(&plane).await;
    of_cell.look(&plane).await;
    let builds_s = begun.elapsed().as_secs_f64();
    println!(
        "a cell's life: {RESTARTS} restarts in {restarts_s:.0} s, {BUILDS} builds in {builds_s:.0} s, all of them succeeded"
    );
    println!("  Cell: {}", of_cell.text());
    println!("  Pool: {}", of_pool.text());
}

async fn builds(plane: Arc<Plane>) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut builds = JoinSet::new();
    for n in 0..BUILDS {
        let place = places.clone().acquire_owned().await.unwrap();
        let plane = plane.clone();
        builds.spawn(async move {
            let key = format!("life-{n}");
            plane.build(&key, &plane.input(&key)).await.unwrap();
            drop(place);
        });
    }
    builds.join_all().await;
}

fn member(n: usize) -> PoolMember {
    PoolMember {
        cell: format!("c{n}").parse().unwrap(),
        state: CellState::Ready,
        platform: "linux/amd64".parse().unwrap(),
        slots: SLOTS,
        host: None,
        image: None,
        project: None,
    }
}

/// The longest history that was seen of a workflow, and how many runs it had.
struct Longest {
    id: String,
    run: String,
    runs: u32,
    events: i64,
    bytes: i64,
}

impl Longest {
    fn of(id: &str) -> Self {
        Self { id: id.to_owned(), run: String::new(), runs: 0, events: 0, bytes: 0 }
    }

    async fn look(&mut self, plane: &Plane) {
        let request = DescribeWorkflowExecutionRequest {
            namespace: plane.namespace(),
            execution: Some(WorkflowExecution { workflow_id: self.id.clone(), ..Default::default() }),
        };
        let described = plane.client.clone().describe_workflow_execution(Request::new(request)).await.unwrap();
        let info = described.into_inner().workflow_execution_info.unwrap();
        let run = info.execution.unwrap().run_id;
        if run != self.run {
            (self.run, self.runs) = (run, self.runs + 1);
        }
        self.events = self.events.max(info.history_length);
        self.bytes = self.bytes.max(info.history_size_bytes);
    }

    fn text(&self) -> String {
        format!("{} runs, at most {} events and {} KiB of history", self.runs, self.events, self.bytes / 1024)
    }
}
