//! Build and Cell against the real dev server; only what runs in the cell is the test's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use activities::entities;
use axum::http::StatusCode;
use temporalio_client::{Client, UntypedWorkflow, WorkflowHandle};
use workflows::CellSeed;
use workflows::contract::{
    BuildStatus, CellClocks, CellState, CellStatus, FailureClass, INPUT_LIMIT, PoolName, QueuePatience, SignalOutcome,
};

use crate::harness::life::{Behaviour, TestHost};
use crate::harness::plane::{Act, Plane};

/// A plane whose cells push an image with the build's first tag as text.
async fn pushing_plane(cells: usize, slots: usize, deaf: usize) -> Plane {
    Plane::start(cells, slots, deaf, |input| Act::Push(input.input.tags[0].clone())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_published_once_per_key() {
    let plane = pushing_plane(1, 2, 0).await;
    let result = plane.build("k1", &plane.input("v1")).await.unwrap();
    assert_eq!(result.status, BuildStatus::Succeeded);
    assert_eq!(plane.registry.tag("app:v1"), result.digest.as_ref().map(ToString::to_string));
    assert_eq!(result.tags[0].outcome, "written");
    assert_eq!(result.placement[0].reason, "home cell 1 of 1, free");

    let again = plane.build("k1", &plane.input("v1")).await.unwrap();
    assert!(again.from_outcome);
    assert_eq!(again.digest, result.digest);
    assert_eq!(plane.seen.attempts.load(Ordering::Relaxed), 1, "the second start built nothing");
    assert_eq!(plane.registry.writes(), 1);

    let row = plane.store.build("build/shop/k1").await.unwrap().unwrap();
    assert_eq!(row.status, BuildStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_another_input_is_refused_by_field() {
    let plane = pushing_plane(1, 2, 0).await;
    plane.build("k1", &plane.input("v1")).await.unwrap();
    let mut other = plane.input("v1");
    other.args.insert("A".into(), "b".into());
    other.no_cache = true;
    let failure = plane.build("k1", &other).await.unwrap_err();
    assert_eq!(failure.class, "refused");
    assert!(failure.message.contains("these fields differ: args, no_cache"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_closes_as_failed_and_runs_again() {
    let tries = AtomicUsize::new(0);
    let plane = Plane::start(1, 1, 0, move |_| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => Act::Fail(FailureClass::UserError),
        _ => Act::Push("fixed".into()),
    })
    .await;
    let failure = plane.build("k", &plane.input("v1")).await.unwrap_err();
    assert_eq!(failure.class, "user_error");
    let result = failure.result.unwrap();
    assert_eq!((result.status, result.attempts.len()), (BuildStatus::Failed, 1));
    assert_eq!(plane.store.build("build/shop/k").await.unwrap().unwrap().status, BuildStatus::Failed);

    let again = plane.build("k", &plane.input("v1")).await.unwrap();
    assert_eq!(again.status, BuildStatus::Succeeded);
    assert!(!again.from_outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_fault_moves_the_build_and_three_end_it() {
    let plane = Plane::start(4, 1, 0, |input| match input.attempt.number {
        1 => Act::Fail(FailureClass::CellFault),
        _ if input.input.args.contains_key("ALWAYS") => Act::Fail(FailureClass::CellFault),
        _ => Act::Push("moved".into()),
    })
    .await;
    let result = plane.build("moves", &plane.input("v1")).await.unwrap();
    let outcomes: Vec<_> = result.attempts.iter().map(|a| a.outcome.as_str()).collect();
    assert_eq!(outcomes, ["cell_fault", "built"]);
    assert_ne!(result.attempts[0].cell, result.attempts[1].cell);

    let mut always = plane.input("v2");
    always.args.insert("ALWAYS".into(), String::new());
    let failure = plane.build("ends", &always).await.unwrap_err();
    assert_eq!(failure.class, "cell_fault");
    let cells: std::collections::BTreeSet<_> =
        failure.result.unwrap().attempts.into_iter().map(|attempt| attempt.cell).collect();
    assert_eq!(cells.len(), 3, "three different cells were tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_answer_of_two_cells_ends_the_build_as_the_users_error() {
    let plane = Plane::start(4, 1, 0, |input| {
        let cell = input.input.args.get("DIFFERS").map(|_| input.attempt.number.to_string()).unwrap_or_default();
        let kind = ["one", "other", "third"][input.attempt.number as usize % 3];
        let why = if cell.is_empty() { "option" } else { kind };
        Act::Answer(format!("cannot mount /tmp/mount{}: bad {why}", input.attempt.number))
    })
    .await;
    let failure = plane.build("same", &plane.input("v1")).await.unwrap_err();
    assert_eq!((failure.class.as_str(), failure.result.unwrap().attempts.len()), ("user_error", 2));

    let mut differs = plane.input("v2");
    differs.args.insert("DIFFERS".into(), String::new());
    let failure = plane.build("differs", &differs).await.unwrap_err();
    assert_eq!((failure.class.as_str(), failure.result.unwrap().attempts.len()), ("cell_fault", 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_does_not_pick_up_is_passed_over() {
    let plane = pushing_plane(1, 4, 2).await;
    let mut moved = 0;
    // Some projects have a deaf cell as their first home.
    for n in 0..6 {
        let mut input = plane.input(&format!("v{n}"));
        input.project = format!("p{n}").parse().unwrap();
        input.queue_patience_s = Some(QueuePatience::new(1).unwrap());
        let payload = serde_json::to_value(&input).unwrap();
        let handle = plane.start_raw(&format!("build/p{n}/k"), payload).await;
        let result = plane.result(handle.info()).await.unwrap();
        assert_eq!(result.placement.last().unwrap().outcome, "built");
        moved += usize::from(result.placement[0].outcome == "not_picked_up");
    }
    assert!(moved > 0, "no project had a deaf cell first: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_closes_as_cancelled_and_frees_its_slot() {
    let plane = Plane::start(1, 1, 0, |input| match input.input.args.contains_key("HANG") {
        true => Act::Hang,
        false => Act::Push("after".into()),
    })
    .await;
    let mut hanging = plane.input("v1");
    hanging.args.insert("HANG".into(), String::new());
    let handle = plane.start_build("hangs", &hanging).await;
    until(|| plane.seen.attempts.load(Ordering::Relaxed) == 1).await;
    handle.cancel(Default::default()).await.unwrap();
    assert_eq!(plane.result(handle.info()).await.unwrap_err().class, "cancelled");
    assert_eq!(plane.store.build("build/shop/hangs").await.unwrap().unwrap().status, BuildStatus::Cancelled);
    plane.build("after", &plane.input("v2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_input_is_refused_and_not_retried() {
    let plane = pushing_plane(1, 1, 0).await;
    for (id, input, expected) in [
        ("build/shop/a", serde_json::json!({"project": "shop"}), "missing field `snapshot`"),
        ("build/shop/b", serde_json::json!("nonsense"), "the build's input is malformed"),
        ("build/other/c", serde_json::to_value(plane.input("v1")).unwrap(), "they must be the same"),
        ("elsewhere", serde_json::to_value(plane.input("v1")).unwrap(), "must be build/<project>/<key>"),
    ] {
        let handle = plane.start_raw(id, input).await;
        let failure = plane.result(handle.info()).await.unwrap_err();
        assert_eq!(failure.class, "refused", "{id}");
        assert!(failure.message.contains(expected), "{id}: {}", failure.message);
    }
    for (key, seconds) in [("zero", 0), ("forever", u64::MAX)] {
        let mut input = serde_json::to_value(plane.input("v1")).unwrap();
        input["timeout_s"] = seconds.into();
        let handle = plane.start_raw(&format!("build/shop/{key}"), input).await;
        assert_eq!(plane.result(handle.info()).await.unwrap_err().class, "refused", "timeout_s {seconds}");
    }
    let mut untagged = plane.input("v1");
    untagged.tags = vec!["not a tag".into()];
    assert_eq!(plane.build("d", &untagged).await.unwrap_err().class, "refused");
    untagged.tags.clear();
    assert_eq!(plane.build("e", &untagged).await.unwrap_err().class, "refused");
    let mut long = plane.input("v1");
    long.args.insert("LONG".into(), "x".repeat(INPUT_LIMIT));
    let failure = plane.build("f", &long).await.unwrap_err();
    assert_eq!(failure.class, "refused");
    assert!(failure.message.contains("bytes of JSON and may have 262144"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_delays_publication_and_a_refusing_one_ends_it() {
    let plane = pushing_plane(1, 1, 0).await;
    plane.registry.fail_next(&[StatusCode::SERVICE_UNAVAILABLE; 3]);
    let result = plane.build("busy", &plane.input("v1")).await.unwrap();
    assert_eq!(result.tags[0].outcome, "written");

    plane.registry.fail_next(&[StatusCode::FORBIDDEN; 2]);
    let failure = plane.build("denied", &plane.input("v2")).await.unwrap_err();
    assert_eq!(failure.class, "user_error");
    assert!(failure.message.contains("refused access"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_the_registry_lost_is_built_once_more() {
    let plane = Plane::start(1, 1, 0, |input| match input.attempt.number {
        1 => Act::Lose("image".into()),
        _ => Act::Push("image".into()),
    })
    .await;
    let result = plane.build("k", &plane.input("v1")).await.unwrap();
    assert_eq!(result.tags[0].outcome, "written");
    assert_eq!(plane.seen.attempts.load(Ordering::Relaxed), 2);
    assert_eq!(plane.registry.tag("app:v1"), result.digest.map(|digest| digest.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_never_moves_to_a_build_that_started_earlier() {
    let plane = Plane::start(1, 2, 0, |input| match input.input.args.get("TEXT") {
        Some(text) => Act::Push(text.clone()),
        None => Act::Hang,
    })
    .await;
    let text = |text: &str| {
        let mut input = plane.input("latest");
        input.args = BTreeMap::from([("TEXT".into(), text.into())]);
        input
    };
    let newer = plane.build("newer", &text("newer")).await.unwrap();
    // An older build that ends later: its claim is that of an earlier start.
    let tag = format!("{}/app:latest", plane.registry.host);
    let claim = plane.store.claim_tag(&tag, 1, "build/shop/older", "run").await.unwrap();
    assert!(matches!(claim, activities::store::TagClaim::Superseded { .. }), "{claim:?}");
    assert_eq!(plane.registry.tag("app:latest"), newer.digest.map(|digest| digest.to_string()));
}

/// Real slots: 8 builds on 2 cells of 2 slots all end well, never more than 2 at once on a cell.
#[tokio::test(flavor = "multi_thread")]
async fn slots_are_never_exceeded_and_300_builds_all_end() {
    let plane = pushing_plane(2, 2, 0).await;
    let started = futures::future::join_all((0..300).map(|n| {
        let plane = &plane;
        async move { plane.start_build(&format!("k{n}"), &plane.input(&format!("v{n}"))).await }
    }))
    .await;
    for handle in started {
        let result = plane.result(handle.info()).await.unwrap();
        assert_eq!(result.status, BuildStatus::Succeeded);
    }
    assert!(plane.seen.most_at_once() <= 2, "{} at once", plane.seen.most_at_once());
    assert_eq!(plane.seen.attempts.load(Ordering::Relaxed), 300);
}

/// A drained cell gets no more builds until it is undrained; a malformed signal is recorded and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn operators_drain_cells_by_signal() {
    let plane = pushing_plane(2, 1, 0).await;
    plane.ops("c1", None);
    let cell = plane.start_cell("c1").await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    plane.signal(&cell, "drain", serde_json::json!({"deadline": "tomorrow"})).await;
    plane.signal(&cell, "drain", serde_json::json!({"deadline": "2020-01-01T00:00:00Z"})).await;
    plane.signal(&cell, "restart", serde_json::json!({"reason": "why not"})).await;
    plane.signal(&cell, "drain", serde_json::json!({"reason": "disk", "by": "ops"})).await;
    plane.signal(&cell, "drain", serde_json::json!({"reason": "again"})).await;
    plane.until_cell("c1", CellState::Draining).await;
    for n in 0..4 {
        let result = plane.build(&format!("k{n}"), &plane.input(&format!("v{n}"))).await.unwrap();
        assert_eq!(result.attempts[0].cell.as_str(), "c2");
    }
    let drained = |status: &CellStatus| status.drain.as_ref().is_some_and(|drain| drain.closed && drain.idle);
    let status = plane.until_status(&cell, drained).await;
    let became: Vec<_> = status.signals.iter().map(|record| (record.signal.as_str(), record.outcome)).collect();
    use SignalOutcome::{Done, Nothing, Refused};
    assert_eq!(
        became,
        [("drain", Refused), ("drain", Refused), ("restart", Refused), ("drain", Done), ("drain", Nothing)]
    );
    assert!(status.signals[1].note.contains("in the past"), "{status:#?}");
    assert!(status.signals[2].note.contains("no host"), "{status:#?}");
    plane.signal(&cell, "undrain", serde_json::Value::Null).await;
    plane.until_cell("c1", CellState::Ready).await;
}

fn states(status: &CellStatus) -> Vec<CellState> {
    let mut states: Vec<_> = status.transitions.iter().map(|transition| transition.state).collect();
    states.dedup();
    states
}

/// A ready cell with a host, whose starts make its builder well again where that `heals`.
struct Hosted {
    plane: Plane,
    ops: Arc<Behaviour>,
    host: Arc<TestHost>,
    cell: WorkflowHandle<Client, UntypedWorkflow>,
}

async fn hosted(heals: bool) -> Hosted {
    let plane = pushing_plane(1, 1, 0).await;
    let id = "h1".parse().unwrap();
    let ops = plane.ops("c1", Some(&id));
    let host = plane.host(&id, heals.then(|| ops.clone()));
    let cell = plane.start_cell("c1").await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    Hosted { plane, ops, host, cell }
}

/// Drain, stop, start, ready: by one signal, and only once for a duplicated one.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_through_the_host() {
    let Hosted { plane, host, cell, .. } = hosted(false).await;
    let payload = serde_json::json!({"reason": "kernel", "by": "ops"});
    plane.signal(&cell, "restart", payload.clone()).await;
    plane.signal(&cell, "restart", payload).await;
    let done = |status: &CellStatus| status.signals[0].outcome == SignalOutcome::Done;
    let status = plane.until_status(&cell, done).await;
    use CellState::{Draining, Ready, Starting, Stopped, Updating};
    assert_eq!(states(&status), [Ready, Draining, Stopped, Starting, Ready]);
    assert_eq!((host.stops.load(Ordering::Relaxed), host.starts.load(Ordering::Relaxed)), (1, 1));

    plane.signal(&cell, "update", serde_json::json!({"image": "2026-12"})).await;
    plane.signal(&cell, "update", serde_json::json!({"reason": "no image"})).await;
    let updated = |status: &CellStatus| status.signals[2].outcome == SignalOutcome::Done;
    let status = plane.until_status(&cell, updated).await;
    assert_eq!(status.image.as_deref(), Some("2026-12"));
    assert!(states(&status).contains(&Updating));
    assert_eq!(status.signals[3].outcome, SignalOutcome::Refused);
    for path in ["/snapshots/7/fs/image", "../image", "images/v2@sha256:0"] {
        plane.signal(&cell, "update", serde_json::json!({"image": path})).await;
    }
    let status = plane.until_status(&cell, |status| status.signals.len() == 7).await;
    assert!(status.signals[4..].iter().all(|signal| signal.outcome == SignalOutcome::Refused), "{status:?}");
    assert_eq!(status.image.as_deref(), Some("2026-12"), "a path is no image");
}

/// A machine that lost its power leaves a poll open, and the check goes there. Whether somebody lives there is known after a heartbeat's
/// time, not after the whole check's.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_a_dead_builder_took_is_given_up_by_its_heartbeats() {
    let Hosted { plane, ops, cell, .. } = hosted(true).await;
    ops.swallows.store(1, Ordering::Relaxed);
    plane.signal(&cell, "restart", serde_json::Value::Null).await;
    let done = |status: &CellStatus| status.signals.last().is_some_and(|record| record.outcome == SignalOutcome::Done);
    plane.until_status(&cell, done).await;
    assert_eq!(ops.starts.load(Ordering::Relaxed), 1, "nothing was restarted for it");
    let history = String::from_utf8(cell.fetch_history(Default::default()).to_json().await.unwrap()).unwrap();
    assert!(history.contains("TIMEOUT_TYPE_HEARTBEAT"), "{history}");
    assert!(!history.contains("TIMEOUT_TYPE_START_TO_CLOSE"), "{history}");
}

/// A builder that falls silent: its build moves on, the host restarts the cell, and the cell is ready again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cells_builds_move_on_and_its_host_restarts_it() {
    let plane = Plane::start(2, 1, 0, |input| match input.attempt.number {
        1 => Act::Hang,
        _ => Act::Push("elsewhere".into()),
    })
    .await;
    let id = "h1".parse().unwrap();
    let mut cells = Vec::new();
    for name in ["c1", "c2"] {
        let ops = plane.ops(name, Some(&id));
        let cell = plane.start_cell(name).await;
        plane.until_status(&cell, |status| status.state == CellState::Ready).await;
        cells.push((name, ops, cell));
    }
    let build = plane.start_build("k", &plane.input("v")).await;
    until(|| plane.seen.running() == 1).await;
    let on = plane.store.build("build/shop/k").await.unwrap().unwrap().cell.unwrap();
    let (_, ops, cell) = cells.iter().find(|(name, ..)| *name == on.as_str()).unwrap();
    let host = plane.host(&id, Some(ops.clone()));
    ops.deaf.store(true, Ordering::Relaxed);
    let result = plane.result(build.info()).await.unwrap();
    let outcomes: Vec<_> = result.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(outcomes, ["cell_fault", "built"]);
    assert!(result.attempts[0].message.as_ref().unwrap().contains("is unhealthy"), "{result:#?}");
    assert_ne!(result.attempts[1].cell, on);
    let ready_again = |status: &CellStatus| states(status).ends_with(&[CellState::Starting, CellState::Ready]);
    plane.until_status(cell, ready_again).await;
    assert_eq!(host.starts.load(Ordering::Relaxed), 1);
}

/// A wedged way: the host mends it, and the cell is ready again without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_wedged_cell_is_plugged_in_again() {
    let Hosted { plane, ops, host, cell } = hosted(true).await;
    host.unplugged.store(true, Ordering::Relaxed);
    ops.deaf.store(true, Ordering::Relaxed);
    use CellState::{Ready, Unhealthy};
    let status = plane.until_status(&cell, |status| states(status) == [Ready, Unhealthy, Ready]).await;
    assert!(status.transitions.iter().any(|t| t.what == "re-plugged: its tap was down"), "{status:#?}");
    assert_eq!((host.stops.load(Ordering::Relaxed), host.starts.load(Ordering::Relaxed)), (0, 0));
}

/// A daemon that answers but solves nothing: unhealthy, and without a host it comes back when it solves again.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_solve_makes_its_cell_unhealthy() {
    let plane = pushing_plane(1, 1, 0).await;
    let ops = plane.ops("c1", None);
    let cell = plane.start_cell("c1").await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    ops.sick.store(true, Ordering::Relaxed);
    plane.until_cell("c1", CellState::Unhealthy).await;
    let status = plane.cell_status(&cell).await;
    assert!(status.why.as_ref().unwrap().contains("does not solve"), "{status:#?}");
    ops.sick.store(false, Ordering::Relaxed);
    plane.until_cell("c1", CellState::Ready).await;
}

/// A builder that answers and cannot do what is asked is no silent one: what it says is told, and its way is not looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_cannot_do_what_is_asked_is_sick() {
    let plane = pushing_plane(1, 1, 0).await;
    let ops = plane.ops("c1", None);
    ops.full.store(true, Ordering::Relaxed);
    let cell = plane.start_cell("c1").await;
    let paused = |status: &CellStatus| status.state == CellState::Unhealthy && ops.checks.load(Ordering::Relaxed) >= 3;
    let status = plane.until_status(&cell, paused).await;
    assert_eq!(status.why.as_deref(), Some("its builder cannot take orders: no space left"));
    let history = String::from_utf8(cell.fetch_history(Default::default()).to_json().await.unwrap()).unwrap();
    let pauses = history.matches("TimerFiredEventAttributes").count();
    assert!(pauses >= 2, "{pauses} pauses between three checks");
    ops.full.store(false, Ordering::Relaxed);
    plane.until_cell("c1", CellState::Ready).await;
}

/// Waits for something that another task brings about.
pub async fn until(condition: impl Fn() -> bool) {
    within(Duration::from_secs(30), async || condition()).await;
}

/// … where it takes questions to the server to see that.
pub async fn until_so(holds: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(60), holds).await;
}

async fn within(patience: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(patience, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it did not come about within {patience:?}"));
}

/// The contract is plain JSON: the `temporal` command alone starts a build, asks for its status and reads its result.
#[tokio::test(flavor = "multi_thread")]
async fn the_temporal_command_starts_a_build_with_plain_json() {
    let plane = pushing_plane(1, 1, 0).await;
    let input = format!(
        r#"{{"project":"shop","snapshot":"{}","tags":["{}/app:cli"],"from_the_future":1}}"#,
        "0".repeat(64),
        plane.registry.host
    );
    let temporal = |args: &[&str]| {
        let output = std::process::Command::new(crate::harness::tool("temporal"))
            .args(args)
            .args(["--address", crate::harness::temporal::address(), "--namespace", &plane.namespace()])
            .args(["--workflow-id", "build/shop/by-cli"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    temporal(&["workflow", "start", "--type", "Build", "--task-queue", "control", "--input", &input]);
    let result = temporal(&["workflow", "result", "-o", "json"]);
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["result"]["status"], "succeeded", "{result}");
    let status = temporal(&["workflow", "query", "--type", "status", "-o", "json"]);
    assert!(status.contains("succeeded"), "{status}");
}

/// A cell is cloned while it goes on; its clone is deleted with its disk, and neither is done to what it is not for.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_made_and_deleted_by_its_host() {
    let plane = pushing_plane(1, 1, 0).await;
    let id = "h1".parse().unwrap();
    let host = plane.host(&id, None);
    plane.ops("c1", Some(&id));
    plane.ops("c1-b", Some(&id));
    let main = plane.start_cell_as("c1", |seed| CellSeed { host: Some(id.clone()), ..seed }).await;
    let ready = |status: &CellStatus| status.state == CellState::Ready;
    plane.until_status(&main, ready).await;
    let asked = async |signal: &str, payload: serde_json::Value| {
        let before = plane.cell_status(&main).await.signals.len();
        plane.signal(&main, signal, payload).await;
        let ended = |status: &CellStatus| {
            status.signals.get(before).is_some_and(|record| record.outcome != SignalOutcome::Accepted)
        };
        plane.until_status(&main, ended).await.signals[before].clone()
    };
    let made = asked("clone", serde_json::json!({"as": "c1-b", "by": "me", "reason": "load"})).await;
    assert_eq!(made.outcome, SignalOutcome::Done);
    assert_eq!(made.note, "c1-b: made in 9 ms, for 8 ms of which the disk held still");
    let taken = asked("clone", serde_json::json!({"as": "c1-b"})).await;
    assert_eq!((taken.outcome, taken.note.as_str()), (SignalOutcome::Refused, "c1-b: there is a cell c1-b already"));
    assert_eq!(asked("clone", serde_json::json!({})).await.outcome, SignalOutcome::Refused);
    assert_eq!(asked("clone", serde_json::json!({"as": "No Cell"})).await.outcome, SignalOutcome::Refused);
    let no_clone = asked("delete", serde_json::Value::Null).await;
    assert!(no_clone.note.contains("it is no clone"), "{no_clone:?}");
    assert_eq!(plane.cell_status(&main).await.state, CellState::Ready, "it went on");

    // As its host's agent starts it.
    let clone_of = Some("c1".parse().unwrap());
    let seed = |seed| CellSeed { host: Some(id.clone()), provision: true, clone_of, ..seed };
    let clone = plane.start_cell_as("c1-b", seed).await;
    plane.until_status(&clone, ready).await;
    // Listed from then on, and placed nowhere until its builder has said something itself.
    plane.until_cell("c1-b", CellState::Provisioning).await;
    plane.signal(&clone, "delete", serde_json::json!({"reason": "done"})).await;
    let gone = plane.until_status(&clone, |status| status.state == CellState::Deleted).await;
    assert_eq!(gone.signals.last().map(|record| record.outcome), Some(SignalOutcome::Done));
    assert!(host.clones.lock().unwrap().is_empty(), "and its disk with it");
    assert_eq!(host.stops.load(Ordering::Relaxed), 0, "in one order");
}

/// A store that is away as a cell is restarted: nobody waits for it, and it hears of the cell when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_holds_no_cell_up() {
    let Hosted { plane, host, cell, .. } = hosted(false).await;
    plane.announcements_fail(true).await;
    plane.signal(&cell, "restart", serde_json::Value::Null).await;
    let done = |status: &CellStatus| status.signals[0].outcome == SignalOutcome::Done;
    plane.until_status(&cell, done).await;
    assert_eq!(host.starts.load(Ordering::Relaxed), 1);
    plane.announcements_fail(false).await;
    plane.signal(&cell, "drain", serde_json::Value::Null).await;
    plane.until_cell("c1", CellState::Draining).await;
}

/// News that nobody hears are told again beside the watch: it goes on, and a builder that falls silent is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_watched_while_its_store_is_away() {
    let Hosted { plane, ops, host, cell } = hosted(true).await;
    plane.announcements_fail(true).await;
    plane.signal(&cell, "drain", serde_json::Value::Null).await;
    plane.until_status(&cell, |status| status.drain.as_ref().is_some_and(|drain| drain.idle)).await;
    let history = async || String::from_utf8(cell.fetch_history(Default::default()).to_json().await.unwrap()).unwrap();
    let told_in_vain = async |times: usize| {
        until_so(async || history().await.matches("TimerFiredEventAttributes").count() >= times).await;
    };
    told_in_vain(2).await;
    let so_far = history().await;
    assert_eq!(so_far.matches(r#"{"name":"presence"}"#).count(), 2, "until the drain, and since then: {so_far}");
    ops.deaf.store(true, Ordering::Relaxed);
    let lost = |status: &CellStatus| states(status).contains(&CellState::Unhealthy);
    plane.until_status(&cell, lost).await;
    let started = |status: &CellStatus| states(status).ends_with(&[CellState::Starting, CellState::Draining]);
    plane.until_status(&cell, started).await;
    assert_eq!(host.starts.load(Ordering::Relaxed), 1);
    plane.announcements_fail(false).await;
    plane.until_cell("c1", CellState::Draining).await;
}

/// A store that is away as a cell is retired: the Cell ends when placement and the pool have heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_ends_when_its_deletion_is_told() {
    let plane = pushing_plane(1, 1, 0).await;
    let id = "h1".parse().unwrap();
    plane.ops("c1", Some(&id));
    plane.host(&id, None);
    let name: PoolName = "default".parse().unwrap();
    let member = serde_json::json!({"cell": "c1", "platform": "linux/amd64", "slots": 1});
    entities::join_pool(&plane.client, &name, &serde_json::from_value(member).unwrap()).await.unwrap();
    let members = async || plane.store.pool_view(&name).await.unwrap().map(|view| view.members.len());
    until_so(async || members().await == Some(1)).await;
    let cell = plane.start_cell("c1").await;
    plane.until_status(&cell, |status| status.state == CellState::Ready).await;
    plane.announcements_fail(true).await;
    plane.signal(&cell, "retire", serde_json::Value::Null).await;
    let history = async || String::from_utf8(cell.fetch_history(Default::default()).to_json().await.unwrap()).unwrap();
    // Stopped, in vain announced, and about to be announced again.
    until_so(async || {
        let so_far = history().await;
        assert!(!so_far.contains("WorkflowExecutionCompleted"), "nobody tells it any more");
        let mut events = so_far.split("\"event_id\"").skip_while(|event| !event.contains(r#"{"name":"stop_cell"}"#));
        events.any(|event| event.contains("ActivityTaskCompleted")) && events.any(|e| e.contains("TimerStarted"))
    })
    .await;
    plane.announcements_fail(false).await;
    plane.until_cell("c1", CellState::Deleted).await;
    until_so(async || members().await == Some(0) && history().await.contains("WorkflowExecutionCompleted")).await;
}

/// A day that ends while the host copies the cell's disk: the cell is watched on, and starts over when the clone is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_starts_over_only_when_its_clone_is_made() {
    let plane = pushing_plane(1, 1, 0).await;
    let id = "h1".parse().unwrap();
    let host = plane.host(&id, None);
    plane.ops("c1", Some(&id));
    let seed = |seed: CellSeed| {
        let clocks = CellClocks { roll_ms: 3_000, ..seed.clocks };
        CellSeed { host: Some(id.clone()), clocks, ..seed }
    };
    let main = plane.start_cell_as("c1", seed).await;
    plane.until_status(&main, |status| status.state == CellState::Ready).await;
    host.copies_slowly.store(true, Ordering::Relaxed);
    plane.signal(&main, "clone", serde_json::json!({"as": "c1-b"})).await;
    let history = async || String::from_utf8(main.fetch_history(Default::default()).to_json().await.unwrap()).unwrap();
    until_so(async || history().await.contains("TimerFired")).await;
    // Answered by the run whose day is over.
    assert_eq!(plane.cell_status(&main).await.state, CellState::Ready);
    let so_far = history().await;
    assert!(so_far.contains("clone_cell") && !so_far.contains("ContinuedAsNew"), "it waits for its clone");
    assert_eq!(so_far.matches(r#"{"name":"presence"}"#).count(), 1, "it is watched on");
    host.copies_slowly.store(false, Ordering::Relaxed);
    let done = |status: &CellStatus| status.signals.last().is_some_and(|r| r.outcome == SignalOutcome::Done);
    plane.until_status(&main, done).await;
    until_so(async || !history().await.contains(r#""continued_execution_run_id":"""#)).await;
    assert!(done(&plane.cell_status(&main).await), "and what was said of it is kept");
}
