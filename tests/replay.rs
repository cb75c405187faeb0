//! Committed histories replayed with today's workflow code: a change that a running workflow would not survive fails here.
//!
//! The files in `tests/histories/` are written by the SDK itself: `KILN_RECORD_HISTORIES=1 cargo test --test all replay` runs the
//! scenes below against the dev server and writes those that are missing. A committed file is never written again: a change
//! that breaks it needs a patch in the workflow, not another history.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use activities::entities;
use activities::store::ProjectSettings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use temporalio_client::{UntypedWorkflow, WorkflowHistory};
use temporalio_sdk::workflow_replayer::{WorkflowReplayer, WorkflowReplayerOptions};
use workflows::contract::{
    CellState, CellStatus, FailureClass, HostId, PoolName, PoolView, SignalOutcome, pool_workflow_id,
};
use workflows::{Build, Cell, CellSeed, Pool};

use crate::harness::plane::{Act, Plane};
use crate::workflows::{until, until_so};

fn histories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories")
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_histories_replay() {
    if std::env::var_os("KILN_RECORD_HISTORIES").is_some() {
        record().await;
    }
    let mut texts = Vec::new();
    for file in std::fs::read_dir(histories()).unwrap() {
        let path = file.unwrap().path();
        texts.push(std::fs::read_to_string(&path).unwrap());
        let history = WorkflowHistory::from_json(texts.last().unwrap().as_bytes()).unwrap();
        let options = WorkflowReplayerOptions::new()
            .register_workflow::<Build>()
            .unwrap()
            .register_workflow::<Cell>()
            .unwrap()
            .register_workflow::<Pool>()
            .unwrap()
            .build();
        let replayer = WorkflowReplayer::new(options).unwrap();
        replayer.replay_workflow(history).await.unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
    }
    let replayed = texts.len();
    assert!(replayed >= 13, "only {replayed} histories");
    for patch in ["replug", "forgotten", "unanswered", "audited"] {
        let mark = STANDARD.encode(format!(r#"{{"id":"{patch}","deprecated":false}}"#));
        assert!(texts.iter().any(|text| text.contains(&mark)), "no history goes by the branch {patch}");
    }
}

async fn record() {
    let plane = Plane::start(3, 1, 0, |input| match input.input.args.get("ACT").map(String::as_str) {
        Some("user_error") => Act::Fail(FailureClass::UserError),
        Some("fault_once") if input.attempt.number == 1 => Act::Fail(FailureClass::CellFault),
        Some("lose_once") if input.attempt.number == 1 => Act::Lose("lost".into()),
        Some("hang") => Act::Hang,
        _ => Act::Push("image".into()),
    })
    .await;
    for name in ["succeeded", "user_error", "fault_once", "lose_once", "refused"] {
        let mut input = plane.input(name);
        input.args.insert("ACT".into(), name.into());
        if name == "refused" {
            input.tags.clear();
        }
        let handle = plane.start_build(name, &input).await;
        let _ = plane.result(handle.info()).await;
        write(&format!("build_{name}"), &handle).await;
    }
    let mut hanging = plane.input("cancelled");
    hanging.args.insert("ACT".into(), "hang".into());
    let handle = plane.start_build("cancelled", &hanging).await;
    until(|| plane.seen.running() == 1).await;
    handle.cancel(Default::default()).await.unwrap();
    let _ = plane.result(handle.info()).await;
    write("build_cancelled", &handle).await;
    record_cells(&plane).await;
    record_guests(&plane).await;
    record_started_anew(&plane).await;
    record_waiting(&plane).await;
    record_pool(&plane).await;
}

/// A build that waits at its project's cap and is woken.
async fn record_waiting(plane: &Plane) {
    let project = "shop".parse().unwrap();
    let settings = ProjectSettings { max_concurrent_builds: Some(1), ..ProjectSettings::default() };
    plane.store.set_project(&project, &settings).await.unwrap();
    let mut hanging = plane.input("first");
    hanging.args.insert("ACT".into(), "hang".into());
    let first = plane.start_build("first", &hanging).await;
    until(|| plane.seen.running() == 1).await;
    let second = plane.start_build("second", &plane.input("second")).await;
    let waits = async || plane.store.longest_waiting(&project).await.unwrap().is_some();
    until_so(waits).await;
    first.cancel(Default::default()).await.unwrap();
    plane.result(second.info()).await.unwrap();
    write("build_waited", &second).await;
}

/// Cells that join and leave, settings, and what cannot be read.
async fn record_pool(plane: &Plane) {
    let name: PoolName = "default".parse().unwrap();
    let pool = plane.client.get_workflow_handle::<UntypedWorkflow>(pool_workflow_id(&name));
    for cell in ["c1", "c2"] {
        let member = serde_json::json!({"cell": cell, "platform": "linux/amd64", "slots": 1});
        entities::join_pool(&plane.client, &name, &serde_json::from_value(member).unwrap()).await.unwrap();
    }
    plane.signal(&pool, "set", serde_json::json!({"homes": 0})).await;
    plane.signal(&pool, "set", serde_json::json!({"homes": 2})).await;
    plane.signal(&pool, "remove", serde_json::json!({"cell": "c2"})).await;
    let settled = |view: &PoolView| view.settings.homes == 2 && view.members.len() == 1;
    until_so(async || plane.store.pool_view(&name).await.unwrap().is_some_and(|view| settled(&view))).await;
    write("pool_set_up", &pool).await;
    // The one before is of a release whose Pools left the audit log alone; as below of Cells.
    write("pool_audited", &pool).await;
}

/// A cell drained, undrained, restarted and updated; and one whose daemon stops solving.
async fn record_cells(plane: &Plane) {
    let id = "h1".parse().unwrap();
    plane.ops("c1", Some(&id));
    plane.host(&id, None);
    let cell = plane.start_cell("c1").await;
    let ready = |status: &CellStatus| status.state == CellState::Ready && status.drain.is_none();
    plane.until_status(&cell, ready).await;
    plane.signal(&cell, "drain", serde_json::json!({"deadline": "tomorrow"})).await;
    plane.signal(&cell, "drain", serde_json::json!({"reason": "disk"})).await;
    plane.until_status(&cell, |status| status.drain.as_ref().is_some_and(|drain| drain.idle)).await;
    plane.signal(&cell, "undrain", serde_json::Value::Null).await;
    plane.until_status(&cell, ready).await;
    for (n, (signal, payload)) in
        [("restart", serde_json::Value::Null), ("update", serde_json::json!({"image": "i2"}))].into_iter().enumerate()
    {
        plane.signal(&cell, signal, payload).await;
        let done = |status: &CellStatus| status.signals.get(n + 3).is_some_and(|r| r.outcome == SignalOutcome::Done);
        plane.until_status(&cell, done).await;
    }
    write("cell_operated", &cell).await;
    write("cell_audited", &cell).await;

    let ops = plane.ops("c2", Some(&id));
    let sick = plane.start_cell("c2").await;
    plane.until_status(&sick, ready).await;
    ops.sick.store(true, Ordering::Relaxed);
    plane.until_status(&sick, |status| status.taken_out).await;
    write("cell_taken_out", &sick).await;
}

/// A cell that is plugged in again and cloned; and a clone that is deleted.
async fn record_guests(plane: &Plane) {
    let id: HostId = "h3".parse().unwrap();
    let ops = plane.ops("c3", Some(&id));
    let host = plane.host(&id, Some(ops.clone()));
    let on_host = |seed| CellSeed { host: Some("h3".parse().unwrap()), ..seed };
    let main = plane.start_cell_as("c3", on_host).await;
    let ready = |status: &CellStatus| status.state == CellState::Ready;
    plane.until_status(&main, ready).await;
    host.unplugged.store(true, Ordering::Relaxed);
    ops.deaf.store(true, Ordering::Relaxed);
    let plugged_in = |status: &CellStatus| status.transitions.iter().any(|t| t.what.starts_with("re-plugged"));
    plane.until_status(&main, |status| plugged_in(status) && ready(status)).await;
    plane.signal(&main, "clone", serde_json::json!({"as": "c3-b"})).await;
    let done = |status: &CellStatus| status.signals.last().is_some_and(|r| r.outcome == SignalOutcome::Done);
    plane.until_status(&main, done).await;
    write("cell_plugged_in_and_cloned", &main).await;

    plane.ops("c3-b", Some(&id));
    let clone_of = Some("c3".parse().unwrap());
    let clone = plane.start_cell_as("c3-b", |seed| CellSeed { provision: true, clone_of, ..on_host(seed) }).await;
    plane.until_status(&clone, ready).await;
    plane.signal(&clone, "delete", serde_json::Value::Null).await;
    plane.until_status(&clone, |status| status.state == CellState::Deleted).await;
    write("cell_clone_deleted", &clone).await;
}

/// A cell whose machine is started anew: its builder is another one, and the first check goes to the former one's open poll.
async fn record_started_anew(plane: &Plane) {
    let id: HostId = "h4".parse().unwrap();
    let ops = plane.ops("c4", Some(&id));
    plane.host(&id, Some(ops.clone()));
    let on_host = |seed| CellSeed { host: Some("h4".parse().unwrap()), ..seed };
    let cell = plane.start_cell_as("c4", on_host).await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    ops.swallows.store(1, Ordering::Relaxed);
    plane.signal(&cell, "restart", serde_json::Value::Null).await;
    let done = |status: &CellStatus| status.signals.last().is_some_and(|r| r.outcome == SignalOutcome::Done);
    plane.until_status(&cell, done).await;
    assert_eq!(ops.swallows.load(Ordering::Relaxed), 0);
    assert_eq!(ops.starts.load(Ordering::Relaxed), 1, "the check that nobody answered restarted nothing");
    // The committed `cell_started_anew` is of a release whose Cells waited for the whole check.
    write("cell_in_doubt", &cell).await;
}

async fn write<W: temporalio_common::HasWorkflowDefinition>(
    name: &str,
    handle: &temporalio_client::WorkflowHandle<temporalio_client::Client, W>,
) {
    let path = histories().join(format!("{name}.json"));
    if !path.exists() {
        let json = handle.fetch_history(Default::default()).to_json().await.unwrap();
        std::fs::create_dir_all(histories()).unwrap();
        std::fs::write(path, json).unwrap();
    }
}
