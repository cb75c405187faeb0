//! A control plane for the workflow tests: real Temporal, real store, real control workers; the cells' activities are the test's.

#![expect(dead_code, reason = "the SDK's macro makes a constant of each activity, for workflows to call")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use activities::control::{Control, Fleet};
use activities::egress::{Egress, Policy};
use activities::failure::failed;
use activities::objects::{ObjectSettings, ObjectStore, Patience};
use activities::oci::Registries;
use activities::sealed::{Identity, SealedStore};
use activities::store::Store;
use activities::{entities, workers};
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use temporalio_client::{
    Client, UntypedQuery, UntypedSignal, UntypedWorkflow, WorkflowExecutionInfo, WorkflowGetResultOptions,
    WorkflowHandle, WorkflowStartOptions,
};
use temporalio_common::data_converters::{PayloadConverter, RawValue};
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use temporalio_sdk::runtime::worker_tuner::{FixedSizeSlotSupplier, TunerHolder};
use temporalio_sdk::{Worker, WorkerOptions};
use tokio_util::sync::CancellationToken;
use workflows::contract::{
    AttemptInput, AttemptResult, BuildError, BuildInput, BuildResult, CacheStats, CellHint, CellId, CellState,
    CellStatus, FailureClass, HostId, PoolName, Timings, cell_task_queue, cell_workflow_id,
};
use workflows::policy::RegistryPolicy;
use workflows::{Build, CellSeed};

use super::life::quick_clocks;
use super::registry::FakeRegistry;
use super::{life, temporal};

/// The installation's registry as admit knows it; nothing answers there.
pub const INSTALLATION: &str = "registry.kiln.example";
/// None of the builds that a test waits for takes as long.
const BUILD: Duration = Duration::from_secs(300);

/// What a cell does with an attempt, decided by the test.
pub type Behaviour = dyn Fn(&AttemptInput) -> Act + Send + Sync;

/// One attempt's course.
pub enum Act {
    /// Pushes an image with this text and succeeds.
    Push(String),
    /// Pushes an image that the registry collects at once.
    Lose(String),
    Fail(FailureClass),
    /// Fails with what buildkitd of the cell answered.
    Answer(String),
    /// Runs until it is cancelled.
    Hang,
}

/// Counts what runs where.
#[derive(Default)]
pub struct Seen {
    running: Mutex<BTreeMap<CellId, usize>>,
    most: Mutex<BTreeMap<CellId, usize>>,
    pub order: Mutex<Vec<String>>,
    pub attempts: AtomicUsize,
}

impl Seen {
    fn enter(&self, cell: &CellId, workflow_id: &str) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.order.lock().unwrap().push(workflow_id.to_owned());
        let mut running = self.running.lock().unwrap();
        let now = running.entry(cell.clone()).or_default();
        *now += 1;
        let mut most = self.most.lock().unwrap();
        let peak = most.entry(cell.clone()).or_default();
        *peak = (*peak).max(*now);
    }

    fn leave(&self, cell: &CellId) {
        *self.running.lock().unwrap().entry(cell.clone()).or_default() -= 1;
    }

    /// How many attempts run now.
    pub fn running(&self) -> usize {
        self.running.lock().unwrap().values().sum()
    }

    /// The most attempts that ran at once on any cell.
    pub fn most_at_once(&self) -> usize {
        self.most.lock().unwrap().values().copied().max().unwrap_or(0)
    }
}

pub struct TestCell {
    behaviour: Arc<Behaviour>,
    registry: FakeRegistry,
    seen: Arc<Seen>,
}

#[activities]
impl TestCell {
    #[activity(name = "build")]
    pub async fn build(
        self: Arc<Self>,
        ctx: ActivityContext,
        input: AttemptInput,
    ) -> Result<AttemptResult, ActivityError> {
        self.seen.enter(&input.cell, &input.attempt.workflow_id);
        let ended = self.act(&ctx, &input).await;
        self.seen.leave(&input.cell);
        ended
    }
}

impl TestCell {
    async fn act(&self, ctx: &ActivityContext, input: &AttemptInput) -> Result<AttemptResult, ActivityError> {
        match (self.behaviour)(input) {
            Act::Push(text) => Ok(built(&self.registry.push_by_digest("app", &text))),
            Act::Lose(text) => {
                let digest = self.registry.push_by_digest("app", &text);
                self.registry.collect_garbage();
                Ok(built(&digest))
            }
            Act::Fail(class) => Err(failed(BuildError::new(class, format!("told to fail as {class}")))),
            Act::Answer(message) => {
                let error = BuildError::new(FailureClass::CellFault, message);
                Err(failed(BuildError { is_answer: true, ..error }))
            }
            Act::Hang => loop {
                let beat = tokio::time::timeout(Duration::from_millis(200), ctx.cancelled());
                if beat.await.is_ok() {
                    return Err(ActivityError::cancelled());
                }
                let _ = ctx.record_heartbeat(()).await;
            },
        }
    }
}

fn built(digest: &str) -> AttemptResult {
    AttemptResult {
        digest: digest.parse().unwrap(),
        media_type: String::new(),
        size: 0,
        timings: Timings::default(),
        cache: CacheStats::default(),
    }
}

/// The running plane. Dropping it stops its workers.
pub struct Plane {
    pub client: Client,
    pub store: Store,
    pub registry: FakeRegistry,
    pub seen: Arc<Seen>,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Plane {
    /// Control, and cells `c1`… with so many slots each; `deaf` further cells are known to the store but nobody works there.
    pub async fn start(
        cells: usize,
        slots: usize,
        deaf: usize,
        behaviour: impl Fn(&AttemptInput) -> Act + Send + Sync + 'static,
    ) -> Self {
        // Fails only when it was done already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self::on(temporal::client().await, cells, slots, deaf, behaviour).await
    }

    /// The same in a namespace of any server.
    pub async fn on(
        client: Client,
        cells: usize,
        slots: usize,
        deaf: usize,
        behaviour: impl Fn(&AttemptInput) -> Act + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&database(dir.path())).await.unwrap();
        let registry = FakeRegistry::start().await;
        let stop = CancellationToken::new();
        let seen = Arc::new(Seen::default());
        let control = control(&client, &store, dir.path());
        run_control(client.clone(), control, stop.clone());
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        for n in 1..=cells {
            let cell = TestCell { behaviour: behaviour.clone(), registry: registry.clone(), seen: seen.clone() };
            run_cell(client.clone(), format!("c{n}").parse().unwrap(), slots, cell, stop.clone());
        }
        let plane = Self { client, store, registry, seen, stop, dir };
        for n in 1..=cells + deaf {
            plane.report(n, u32::try_from(slots).unwrap(), CellState::Ready).await;
        }
        plane
    }

    /// Nothing can be announced of cells, or it can again: their table is not there.
    pub async fn announcements_fail(&self, fail: bool) {
        let renamed = match fail {
            true => "ALTER TABLE cell_orders RENAME TO cell_orders_away",
            false => "ALTER TABLE cell_orders_away RENAME TO cell_orders",
        };
        let mut database = SqliteConnection::connect(&database(self.dir.path())).await.unwrap();
        database.execute("PRAGMA busy_timeout = 10000").await.unwrap();
        database.execute(renamed).await.unwrap();
        database.close().await.unwrap();
    }

    /// The entity of cell `name`.
    pub async fn start_cell(&self, name: &str) -> WorkflowHandle<Client, UntypedWorkflow> {
        self.start_cell_as(name, |seed| seed).await
    }

    /// The same with another seed.
    pub async fn start_cell_as(
        &self,
        name: &str,
        change: impl FnOnce(CellSeed) -> CellSeed,
    ) -> WorkflowHandle<Client, UntypedWorkflow> {
        let cell: CellId = name.parse().unwrap();
        let pool: PoolName = "default".parse().unwrap();
        let id = cell_workflow_id(&pool, &cell);
        let seed = change(CellSeed { clocks: quick_clocks(), ..CellSeed::new(cell, pool, 1) });
        entities::ensure_cell(&self.client, seed).await.unwrap();
        self.client.get_workflow_handle(id)
    }

    /// What works on the `-ops` queue of cell `name`.
    pub fn ops(&self, name: &str, host: Option<&HostId>) -> Arc<life::Behaviour> {
        life::run_ops(self.client.clone(), name.parse().unwrap(), host.cloned(), self.stop.clone())
    }

    /// The agent of a host, whose starts heal what `ops` gave if that is told.
    pub fn host(&self, id: &HostId, heals: Option<Arc<life::Behaviour>>) -> Arc<life::TestHost> {
        life::run_host(self.client.clone(), id, heals, self.stop.clone())
    }

    /// Waits until the Cell says so.
    pub async fn until_status(
        &self,
        of: &WorkflowHandle<Client, UntypedWorkflow>,
        holds: impl Fn(&CellStatus) -> bool,
    ) -> CellStatus {
        let mut last = None;
        let seen = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let status = self.cell_status(of).await;
                if holds(&status) {
                    return status;
                }
                last = Some(status);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        match seen.await {
            Ok(status) => status,
            Err(_) => panic!("it does not come to this: {last:#?}"),
        }
    }

    pub async fn signal(&self, to: &WorkflowHandle<Client, UntypedWorkflow>, name: &str, payload: serde_json::Value) {
        let raw = RawValue::from_value(&payload, &PayloadConverter::serde_json());
        to.signal(UntypedSignal::new(name), raw, Default::default()).await.unwrap();
    }

    pub async fn cell_status(&self, of: &WorkflowHandle<Client, UntypedWorkflow>) -> CellStatus {
        let raw = RawValue::from_value(&(), &PayloadConverter::serde_json());
        let answer = of.query(UntypedQuery::new("status"), raw, Default::default()).await.unwrap();
        answer.to_value(&PayloadConverter::serde_json())
    }

    /// Waits until placement sees cell `name` in this state.
    pub async fn until_cell(&self, name: &str, state: CellState) {
        let seen = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let cells = self.store.cells(&"default".parse().unwrap()).await.unwrap();
                if cells.iter().any(|hint| hint.cell.as_str() == name && hint.state == state) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        seen.await.unwrap_or_else(|_| panic!("{name} did not become {state:?}"));
    }

    pub fn namespace(&self) -> String {
        self.client.options().namespace.clone()
    }

    /// The hint of cell `c<n>`.
    pub async fn report(&self, n: usize, slots: u32, state: CellState) {
        let hint = CellHint {
            cell: format!("c{n}").parse().unwrap(),
            pool: "default".parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            state,
            slots,
            busy: 0,
            epoch: 1,
            generation: 0,
            sequence: 0,
            reported_ms: now_ms(),
        };
        self.store.report_cell(&hint).await.unwrap();
    }

    /// An input that publishes to `<registry>/app:<tag>`.
    pub fn input(&self, tag: &str) -> BuildInput {
        serde_json::from_value(serde_json::json!({
            "project": "shop",
            "snapshot": "0".repeat(64),
            "tags": [format!("{}/app:{tag}", self.registry.host)],
        }))
        .unwrap()
    }

    /// Starts a build; with the default policies: a closed one may be started again, a running one is an error.
    pub async fn start_build(&self, key: &str, input: &BuildInput) -> WorkflowHandle<Client, UntypedWorkflow> {
        let payload = serde_json::to_value(input).unwrap();
        self.start_raw(&format!("build/shop/{key}"), payload).await
    }

    pub async fn start_raw(&self, id: &str, input: serde_json::Value) -> WorkflowHandle<Client, UntypedWorkflow> {
        let raw = RawValue::from_value(&input, &PayloadConverter::serde_json());
        let options = WorkflowStartOptions::new("control", id).build();
        self.client.start_workflow(UntypedWorkflow::new("Build"), raw, options).await.unwrap()
    }

    /// Starts and waits.
    pub async fn build(&self, key: &str, input: &BuildInput) -> Result<BuildResult, Failure> {
        let handle = self.start_build(key, input).await;
        self.result(handle.info()).await
    }

    /// The end of a run, asked for with a short deadline again and again: one long poll may answer late.
    pub async fn result(&self, info: &WorkflowExecutionInfo) -> Result<BuildResult, Failure> {
        let handle: WorkflowHandle<Client, Build> = WorkflowHandle::new(self.client.clone(), info.clone());
        let deadline = Instant::now() + BUILD;
        loop {
            let waited =
                tokio::time::timeout(Duration::from_secs(2), handle.get_result(WorkflowGetResultOptions::default()));
            if let Ok(ended) = waited.await {
                return ended.map_err(Failure::from);
            }
            assert!(Instant::now() < deadline, "{} has not ended within {BUILD:?}", info.workflow_id);
        }
    }
}

/// How a build that did not succeed closed.
#[derive(Debug)]
pub struct Failure {
    /// The failure's type, or `cancelled`.
    pub class: String,
    pub message: String,
    pub result: Option<BuildResult>,
}

impl From<temporalio_client::errors::WorkflowGetResultError> for Failure {
    fn from(error: temporalio_client::errors::WorkflowGetResultError) -> Self {
        use temporalio_client::errors::WorkflowGetResultError as E;
        use temporalio_common::error::IncomingError;
        match error {
            E::Failed(failure) => match *failure {
                IncomingError::Application(failure) => Self {
                    class: failure.type_name().unwrap_or_default().to_owned(),
                    message: failure.to_string(),
                    result: failure.details().unwrap(),
                },
                other => panic!("the build failed otherwise: {other:?}"),
            },
            E::Cancelled { .. } => Self { class: "cancelled".into(), message: String::new(), result: None },
            other => panic!("no result: {other:?}"),
        }
    }
}

fn database(dir: &std::path::Path) -> String {
    format!("sqlite://{}/kiln.db", dir.display())
}

fn control(client: &Client, store: &Store, dir: &std::path::Path) -> Control {
    let identity = dir.join("identity");
    Identity::generate().write(&identity).unwrap();
    let objects = ObjectStore::new(ObjectSettings {
        endpoint: "http://127.0.0.1:1".into(),
        region: "auto".into(),
        bucket: "kiln".into(),
        access_key: "a".into(),
        secret_key: "b".into(),
        patience: Patience::default(),
    });
    // The fake registry is on the loopback.
    let policy = Policy { loopback_registries: true, ..Policy::default() };
    Control {
        store: store.clone(),
        temporal: client.clone(),
        // The fake registry lets anybody push.
        repositories: RegistryPolicy {
            address: INSTALLATION.into(),
            open: vec!["**".into()],
            ..RegistryPolicy::default()
        },
        registries: Registries::new(Vec::new(), Egress::new(policy, "kiln").unwrap()),
        sealed: SealedStore::new(objects.unwrap(), &identity).unwrap(),
        pool: "default".parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        create_projects: true,
        attempts_lost_after: Duration::from_secs(90),
        fleet: Fleet::default(),
    }
}

/// Workers stay on their thread, so each has one with a runtime of its own.
fn run_control(client: Client, control: Control, stop: CancellationToken) {
    on_a_thread(async move || {
        let runtime = workers::runtime().unwrap();
        workers::control(&runtime, &client, control).unwrap().run(stop).await.unwrap();
    });
}

fn run_cell(client: Client, cell: CellId, slots: usize, activities: TestCell, stop: CancellationToken) {
    on_a_thread(async move || {
        let runtime = workers::runtime().unwrap();
        let tuner = TunerHolder::builder()
            .workflow_task_slot_supplier(FixedSizeSlotSupplier::new(2))
            .activity_task_slot_supplier(FixedSizeSlotSupplier::new(slots))
            .local_activity_task_slot_supplier(FixedSizeSlotSupplier::new(1))
            .nexus_task_slot_supplier(FixedSizeSlotSupplier::new(1))
            .build();
        let options = WorkerOptions::new(cell_task_queue(&cell))
            .register_activities(activities)
            .tuner(tuner)
            .graceful_shutdown_period(Duration::from_secs(1))
            .build();
        let mut worker = Worker::new(&runtime, client, options).unwrap();
        let shut_down = worker.shutdown_handle();
        tokio::spawn(async move {
            stop.cancelled().await;
            shut_down();
        });
        worker.run().await.unwrap();
    });
}

pub fn on_a_thread<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(work());
    });
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
