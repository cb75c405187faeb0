//! Somebody terminates or resets workflows behind Kiln's back.

use std::time::Duration;

use serde_json::Value;

use super::{TWO_CELLS, reset, tctl, terminate};
use crate::harness::dev::{Dev, eventually};
use crate::harness::invariants;
use crate::harness::running::{Running, outcomes, run};

/// Its cell is free again within seconds, and the key builds again.
#[test]
fn faults_a_terminated_build_frees_its_cell_and_its_key_builds_again() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let build = Running::begin(&dev, "terminated", 8.0);
    terminate(&dev, "build/faults/terminated");
    eventually("the step has ended", Duration::from_secs(30), || build.steps().is_empty().then_some(()));
    assert!(!build.log().contains(&build.line(20)), "it was stopped, it did not end");
    let again = build.up(&[]).ok();
    assert_eq!(again.json()["status"], "succeeded", "{}", again.all());
    build.succeeds(10);
    invariants::hold(&dev, [&build]);
}

/// The new run builds, the former one's attempt publishes nothing.
#[test]
fn faults_a_reset_build_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = Running::begin(&dev, "reset", 6.0);
    let first = build.show()["run_id"].clone();
    reset(&dev, "build/faults/reset");
    let result = build.succeeds(90);
    assert_eq!(outcomes(&result), ["built"]);
    assert_ne!(build.show()["run_id"], first, "it is the new run that ended");
    assert_eq!(result["tags"][0]["outcome"], "written");
    invariants::hold(&dev, [&build]);
}

/// Cell and Pool, terminated and reset while a build runs: it does not notice, and both take orders again.
#[test]
fn faults_a_terminated_or_reset_cell_and_pool_cost_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    for (key, strike) in [("terminated", terminate as fn(&Dev, &str)), ("reset", reset)] {
        let build = Running::begin(&dev, key, 8.0);
        let cell = build.cell();
        let entities = [format!("cell/default/{cell}"), "pool/default".to_owned()];
        let before: Vec<String> = entities.iter().map(|id| run_of(&dev, id).expect("it runs")).collect();
        entities.iter().for_each(|id| strike(&dev, id));
        for (id, before) in entities.iter().zip(&before) {
            eventually(&format!("another run of {id}"), Duration::from_secs(120), || {
                run_of(&dev, id).filter(|now| now != before)
            });
        }
        let result = build.succeeds(60);
        assert_eq!(outcomes(&result), ["built"], "{key}: {result}");
        takes_orders(&dev, &cell);
        invariants::hold(&dev, [&build]);
    }
}

/// The run that is open under a workflow id.
fn run_of(dev: &Dev, id: &str) -> Option<String> {
    let described: Value = serde_json::from_str(&tctl(dev, &["describe", "-w", id])).unwrap();
    let info = &described["workflowExecutionInfo"];
    (info["status"] == "Running").then(|| info["execution"]["runId"].as_str().unwrap().to_owned())
}

fn takes_orders(dev: &Dev, cell: &str) {
    eventually("the Cell drains", Duration::from_secs(60), || {
        (run(dev, &["cells", "drain", cell, "--wait"]).code == 0).then_some(())
    });
    run(dev, &["cells", "undrain", cell, "--wait"]).ok();
    // The one it is not, then the one it was.
    for homes in [2, 3] {
        run(dev, &["pools", "set", "default", "--homes", &homes.to_string()]).ok();
        eventually("the Pool has taken its settings up", Duration::from_secs(60), || {
            let shown = run(dev, &["pools", "show", "default", "--output", "json"]).ok().json();
            (shown["settings"]["homes"] == homes && shown["cells"].as_array()?.len() == 2).then_some(())
        });
    }
}
