//! Placement, pools, caps and fairness against the real dev server and store; only what runs in the cells is the test's.

use std::sync::atomic::Ordering;

use activities::entities;
use activities::store::ProjectSettings;
use serde::de::DeserializeOwned;
use temporalio_client::{Client, UntypedQuery, UntypedWorkflow, WorkflowHandle, WorkflowTerminateOptions};
use temporalio_common::data_converters::{PayloadConverter, RawValue};
use workflows::contract::{
    BuildInput, BuildStatus, BuildView, CellHint, CellState, PoolMember, PoolName, PoolStatus, PoolView,
    pool_workflow_id,
};

use crate::harness::plane::{Act, Plane};
use crate::workflows::until;

fn default_pool() -> PoolName {
    "default".parse().unwrap()
}

fn member(cell: &str) -> PoolMember {
    serde_json::from_value(serde_json::json!({"cell": cell, "platform": "linux/amd64", "slots": 1})).unwrap()
}

async fn query<T: DeserializeOwned + 'static>(of: &WorkflowHandle<Client, UntypedWorkflow>) -> T {
    let raw = RawValue::from_value(&(), &PayloadConverter::serde_json());
    let answer = of.query(UntypedQuery::new("status"), raw, Default::default()).await.unwrap();
    serde_json::from_slice(&answer.payloads[0].data).unwrap()
}

/// Waits for something that the store or a workflow comes to say.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("{what}: not within 30 s"))
}

async fn view(plane: &Plane, holds: impl Fn(&PoolView) -> bool) -> PoolView {
    let look = async || plane.store.pool_view(&default_pool()).await.unwrap().filter(|view| holds(view));
    eventually("the pool's view", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_where_its_project_is_warm_until_that_cache_is_lost() {
    let plane = Plane::start(4, 2, 0, |input| Act::Push(input.input.tags[0].clone())).await;
    let first = plane.build("k1", &plane.input("v1")).await.unwrap();
    assert!(!first.placement[0].warm);
    assert_eq!(first.placement[0].reason, "home cell 1 of 3, free");
    let cell = first.placement[0].cell.clone();
    let second = plane.build("k2", &plane.input("v2")).await.unwrap();
    assert_eq!((&second.placement[0].cell, second.placement[0].warm), (&cell, true));
    assert_eq!(second.placement[0].reason, "home cell 1 of 3, warm and free");

    let hints = plane.store.cells(&default_pool()).await.unwrap();
    let hint = hints.into_iter().find(|hint| hint.cell == cell).unwrap();
    plane.store.report_cell(&CellHint { generation: hint.generation + 1, ..hint }).await.unwrap();
    let third = plane.build("k3", &plane.input("v3")).await.unwrap();
    assert_eq!((&third.placement[0].cell, third.placement[0].warm), (&cell, false), "home, but its cache is another");
    assert!(plane.build("k4", &plane.input("v4")).await.unwrap().placement[0].warm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_at_its_cap_waits_and_says_so() {
    let plane = Plane::start(2, 2, 0, |input| match input.input.args.contains_key("HANG") {
        true => Act::Hang,
        false => Act::Push("after".into()),
    })
    .await;
    let project = "shop".parse().unwrap();
    plane.store.create_project(&project).await.unwrap();
    let settings = ProjectSettings { max_concurrent_builds: Some(1), ..ProjectSettings::default() };
    plane.store.set_project(&project, &settings).await.unwrap();
    let mut hanging = plane.input("v1");
    hanging.args.insert("HANG".into(), String::new());
    let first = plane.start_build("hangs", &hanging).await;
    until(|| plane.seen.running() == 1).await;

    let second = plane.start_build("waits", &plane.input("v2")).await;
    let waiting = eventually("the second build waits", async || query::<BuildView>(&second).await.waiting).await;
    assert_eq!(waiting, "the project has 1 builds running and may have 1 (max_concurrent_builds)");
    let row = plane.store.build("build/shop/waits").await.unwrap().unwrap();
    assert_eq!((row.status, row.cell), (BuildStatus::Queued, None), "lists show it");

    let mut elsewhere = plane.input("v3");
    elsewhere.project = "other".parse().unwrap();
    let other = plane.start_raw("build/other/k", serde_json::to_value(&elsewhere).unwrap()).await;
    plane.result(other.info()).await.unwrap();
    assert_eq!(plane.seen.attempts.load(Ordering::Relaxed), 2, "other projects are not held up, the capped one is");

    first.cancel(Default::default()).await.unwrap();
    assert_eq!(plane.result(second.info()).await.unwrap().status, BuildStatus::Succeeded);
    assert_eq!(query::<BuildView>(&second).await.waiting, None);
    let history = second.fetch_history(Default::default()).to_json().await.unwrap();
    assert!(String::from_utf8_lossy(&history).contains("look_again"), "the end of the first woke it");
}

/// Fifty builds of one project are in a cell's line; another project's one build does not wait for them all.
#[tokio::test(flavor = "multi_thread")]
async fn a_project_with_many_builds_in_a_line_does_not_starve_another() {
    let plane = Plane::start(1, 1, 0, |input| match input.input.args.contains_key("HANG") {
        true => Act::Hang,
        false => Act::Push(input.input.tags[0].clone()),
    })
    .await;
    let start = async |project: &str, key: &str, hang: bool| {
        let mut input: BuildInput = plane.input(key);
        input.project = project.parse().unwrap();
        if hang {
            input.args.insert("HANG".into(), String::new());
        }
        plane.start_raw(&format!("build/{project}/{key}"), serde_json::to_value(&input).unwrap()).await
    };
    let first = start("many", "first", true).await;
    until(|| plane.seen.running() == 1).await;
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    let many = futures::future::join_all(keys.iter().map(|key| start("many", key, false))).await;
    in_line(&plane, 50).await;
    let one = start("one", "k", false).await;
    in_line(&plane, 51).await;
    first.cancel(Default::default()).await.unwrap();
    for handle in many.iter().chain([&one]) {
        plane.result(handle.info()).await.unwrap();
    }
    let order = plane.seen.order.lock().unwrap().clone();
    let at = order.iter().position(|id| id == "build/one/k").unwrap();
    assert!(at <= 15, "it was served as number {at} of {}", order.len());
}

/// Waits until the server has so many builds in the line of cell `c1`.
async fn in_line(plane: &Plane, builds: i64) {
    use temporalio_common::protos::temporal::api::enums::v1::TaskQueueType;
    use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
    use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeTaskQueueRequest;
    let request = || DescribeTaskQueueRequest {
        namespace: plane.namespace(),
        task_queue: Some(TaskQueue { name: "cell-c1".into(), ..Default::default() }),
        task_queue_type: TaskQueueType::Activity.into(),
        report_stats: true,
        ..Default::default()
    };
    eventually("the line", async || {
        let mut service = plane.client.connection().workflow_service();
        let answer = service.describe_task_queue(tonic::Request::new(request())).await.unwrap().into_inner();
        answer.stats.filter(|stats| stats.approximate_backlog_count >= builds)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_join_their_pool_and_operators_set_it_by_signal() {
    let plane = Plane::start(2, 1, 0, |input| Act::Push(input.input.tags[0].clone())).await;
    entities::join_pool(&plane.client, &default_pool(), &member("c2")).await.unwrap();
    let joined = view(&plane, |view| view.members.len() == 1).await;
    for n in 0..4 {
        let result = plane.build(&format!("k{n}"), &plane.input(&format!("v{n}"))).await.unwrap();
        assert_eq!(result.attempts[0].cell.as_str(), "c2", "c1 has a hint and is no member");
    }
    entities::join_pool(&plane.client, &default_pool(), &member("c1")).await.unwrap();
    entities::join_pool(&plane.client, &default_pool(), &member("c2")).await.unwrap();
    let pool: WorkflowHandle<Client, UntypedWorkflow> =
        plane.client.get_workflow_handle(pool_workflow_id(&default_pool()));
    plane.signal(&pool, "add", serde_json::json!({"cell": "NO"})).await;
    plane.signal(&pool, "set", serde_json::json!({"homes": 0})).await;
    plane.signal(&pool, "set", serde_json::json!({"home": 2})).await;
    plane.signal(&pool, "set", serde_json::json!({"homes": 2, "tenancy": "shared"})).await;
    plane.signal(&pool, "remove", serde_json::json!({"cell": "c2"})).await;
    let set = view(&plane, |view| view.members.len() == 1 && view.version > joined.version).await;
    assert_eq!((set.members, set.settings.homes), (vec![member("c1")], 2));
    assert_eq!(plane.build("last", &plane.input("last")).await.unwrap().attempts[0].cell.as_str(), "c1");

    let status: PoolStatus = query(&pool).await;
    let said: Vec<&str> = status.changes.iter().map(|change| change.what.as_str()).collect();
    let (refused, done): (Vec<&str>, Vec<&str>) = said.iter().partition(|what| what.contains("refused"));
    assert_eq!(done, ["added c2", "added c1", "set", "removed c2"]);
    assert!(refused.iter().any(|what| what.starts_with("add refused: ")), "{said:?}");
    assert!(refused.contains(&"set refused: homes is 0: must be 1 to 8"), "{said:?}");
    assert!(refused.iter().any(|what| what.contains("unknown field `home`")), "{said:?}");
}

/// A Pool that an operator terminated goes on from what it last wrote, as soon as a cell joins.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_pool_goes_on_where_it_was() {
    let plane = Plane::start(1, 1, 0, |_| Act::Hang).await;
    let pool: WorkflowHandle<Client, UntypedWorkflow> =
        plane.client.get_workflow_handle(pool_workflow_id(&default_pool()));
    entities::join_pool(&plane.client, &default_pool(), &member("c1")).await.unwrap();
    plane.signal(&pool, "set", serde_json::json!({"line": 7})).await;
    let before = view(&plane, |view| view.settings.line == 7).await;
    pool.terminate(WorkflowTerminateOptions::default()).await.unwrap();
    entities::join_pool(&plane.client, &default_pool(), &member("c2")).await.unwrap();
    let after = view(&plane, |view| view.members.len() == 2).await;
    assert!(after.version > before.version && after.settings.line == 7, "{after:?}");
}

/// Whoever retires a cell has not to tell its pool as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_retired_cell_leaves_its_pool() {
    let plane = Plane::start(1, 1, 0, |_| Act::Hang).await;
    let host = "h1".parse().unwrap();
    plane.ops("c1", Some(&host));
    plane.host(&host, None);
    let cell = plane.start_cell("c1").await;
    for name in ["c1", "c2"] {
        entities::join_pool(&plane.client, &default_pool(), &member(name)).await.unwrap();
    }
    view(&plane, |view| view.members.len() == 2).await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    plane.signal(&cell, "retire", serde_json::Value::Null).await;
    assert_eq!(view(&plane, |view| view.members.len() == 1).await.members, vec![member("c2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_pool_is_refused_and_an_empty_one_says_so() {
    let plane = Plane::start(1, 1, 0, |input| Act::Push(input.input.tags[0].clone())).await;
    let project = "shop".parse().unwrap();
    plane.store.create_project(&project).await.unwrap();
    let settings = ProjectSettings { pool: Some("absent".parse().unwrap()), ..ProjectSettings::default() };
    plane.store.set_project(&project, &settings).await.unwrap();
    let failure = plane.build("k", &plane.input("v")).await.unwrap_err();
    assert_eq!(failure.class, "refused");
    assert!(failure.message.contains("pool absent does not exist; there are: default"), "{}", failure.message);

    plane.store.set_project(&project, &ProjectSettings::default()).await.unwrap();
    plane.report(1, 1, CellState::Draining).await;
    let waits = plane.start_build("waits", &plane.input("v")).await;
    let why = eventually("it waits", async || query::<BuildView>(&waits).await.waiting).await;
    assert_eq!(why, "none of the 1 cells of pool default takes builds for linux/amd64: 1 draining");
    plane.report(1, 1, CellState::Ready).await;
    plane.result(waits.info()).await.unwrap();
}
