//! `kill -9` of what a build runs on.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::{TWO_CELLS, kill_9, process, tctl};
use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::invariants;
use crate::harness::running::{Running, outcomes};

#[test]
fn faults_a_killed_builders_build_is_tried_again_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = Running::begin(&dev, "builder", 6.0);
    let config = dev.data.join("cells").join(build.cell()).join("kiln.toml");
    kill_9(process(" builder ", config.to_str().unwrap()));
    // Long before the attempt's heartbeat limit.
    let result = build.succeeds(40);
    assert_eq!(outcomes(&result), ["cell_fault", "built"]);
    assert_eq!(result["tags"][0]["outcome"], "written");
    invariants::hold(&dev, [&build]);
}

/// The server has given it a build, and it has not read that yet: nothing of it is on its disk.
#[test]
fn faults_a_build_whose_builder_dies_as_it_is_given_is_tried_again_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let config = dev.data.join("cells/dev-1/kiln.toml");
    let builder = process(" builder ", config.to_str().unwrap());
    kill(builder, Signal::SIGSTOP).unwrap();
    let build = Running::start(&dev, "given", 1.0);
    eventually("the server has given it to the builder", Duration::from_secs(10), || {
        tctl(&dev, &["describe", "-w", "build/faults/given"]).contains("kiln-builder dev-1 ").then_some(())
    });
    kill_9(builder);
    // Long before the attempt's heartbeat limit.
    let result = build.succeeds(40);
    assert_eq!(outcomes(&result), ["cell_fault", "built"]);
    let message = result["attempts"][0]["message"].as_str().unwrap();
    assert_eq!(message, "the builder of cell dev-1 ended as the build was given to it");
    invariants::hold(&dev, [&build]);
}

#[test]
fn faults_a_killed_buildkitds_build_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = Running::begin(&dev, "buildkitd", 6.0);
    let config = dev.data.join("cells").join(build.cell()).join("buildkitd.toml");
    kill_9(process("buildkitd --config", config.to_str().unwrap()));
    let result = build.succeeds(60);
    assert_eq!(outcomes(&result), ["cell_fault", "built"]);
    invariants::hold(&dev, [&build]);
}

#[test]
fn faults_a_killed_host_agent_costs_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = Running::begin(&dev, "agent", 6.0);
    let guards = processes_with("__guard --namespaces");
    kill_9(process(" host ", dev.data.join("host.toml").to_str().unwrap()));
    eventually("another agent has adopted both cells", Duration::from_secs(30), || {
        let log = std::fs::read_to_string(dev.data.join("logs/host.log")).unwrap_or_default();
        (log.matches("adopted").count() == 2).then_some(())
    });
    let result = build.succeeds(40);
    assert_eq!(outcomes(&result), ["built"]);
    invariants::hold(&dev, [&build]);
    drop(build);
    let ours = processes_with(dev.data.to_str().unwrap());
    let kept = guards.iter().filter(|guard| ours.contains(guard)).count();
    assert_eq!(kept, 2, "the cells' guards are the same");
    let footprint = dev.footprint();
    dev.kill_9();
    footprint.is_gone();
}

/// Control and api have nothing of their own to lose: a build and the one who follows it go on.
#[test]
fn faults_killed_control_and_api_cost_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = Running::of(&dev, "roles", 6.0);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| build.up(&[]));
        eventually("the step runs", Duration::from_secs(60), || (!build.steps().is_empty()).then_some(()));
        let data = dev.data.to_str().unwrap();
        kill_9(process(" api --config", data));
        kill_9(process(" control --config", data));
        assert_eq!(follower.join().unwrap().ok().json()["attempts"], 1);
    });
    invariants::hold(&dev, [&build]);
}
