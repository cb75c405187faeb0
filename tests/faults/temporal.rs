//! Temporal away from all, and builders cut off from it.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{TWO_CELLS, process};
use crate::harness::clocks::{self, either, outage};
use crate::harness::dev::{Dev, eventually};
use crate::harness::host::OwnHost;
use crate::harness::link::{Link, State};
use crate::harness::roles::Role;
use crate::harness::running::{Running, outcomes, run};
use crate::harness::{free_port, invariants};

/// Temporal stands still for a minute: the running build is not restarted.
#[test]
fn faults_a_minute_without_temporal_restarts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    let server = process("server start-dev", dev.data.to_str().unwrap());
    for (key, seconds) in [("ends-meanwhile", 3.0), ("outlives-it", outage(60).as_secs_f64() + 4.0)] {
        let build = Running::begin(&dev, key, seconds);
        kill(server, Signal::SIGSTOP).unwrap();
        // The outage itself, not a wait for something.
        sleep(outage(60));
        kill(server, Signal::SIGCONT).unwrap();
        let result = build.succeeds(60);
        assert_eq!(outcomes(&result), ["built"], "{result}");
        invariants::hold(&dev, [&build]);
    }
}

/// Temporal is not there for five minutes: the attempt ends by itself, and the build ends well once, wherever it was tried again.
#[test]
fn faults_five_minutes_without_temporal_cost_an_attempt_and_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let link = Link::to(&format!("127.0.0.1:{port}"));
    let (port, address) = (port.to_string(), format!("--set=temporal.address={}", link.address()));
    let args = [TWO_CELLS, &["--temporal-port", &port, &address]].concat();
    let dev = Dev::under_faults(&dir.path().join("data"), &args);
    // A builder's poll is back some ten seconds after the outage: that long the build may lie before it.
    let build = Running::start_with(&dev, "away", either(20, 90) as f64, &["--queue-patience", "60s"]);
    build.until_begun();
    link.set(State::Cut);
    // The outage itself, not a wait for something.
    sleep(outage(300));
    assert!(build.steps().is_empty(), "what is cut off has stopped by itself");
    link.set(State::Passes);
    let result = build.succeeds(300);
    assert_eq!(outcomes(&result), ["cell_fault", "built"], "{result}");
    invariants::hold(&dev, [&build]);
}

/// A builder alone is cut off, and its Cell is too patient to notice: the attempt's own clock ends its solve before the server gives
/// the build to another cell. At no time do two steps of the build run.
#[test]
fn faults_an_attempt_that_is_cut_off_ends_before_the_next_one_begins() {
    let dir = tempfile::tempdir().unwrap();
    let args = [TWO_CELLS, &["--set=cell.clocks.lost_after_ms=3600000"]].concat();
    let dev = Dev::start(&dir.path().join("data"), &[clocks::flags(), &args].concat());
    let link = Link::to(&dev.ready.temporal);
    dev.reconfigure(Role::Builder("dev-1"), &[("temporal", "address", link.address().into())]);
    run(&dev, &["cells", "drain", "dev-2", "--wait"]).ok();
    let build = Running::begin(&dev, "cut-off", either(22, 90) as f64);
    run(&dev, &["cells", "undrain", "dev-2", "--wait"]).ok();
    link.set(State::Stalls);
    let result = eventually("the build has ended", Duration::from_secs(300), || {
        assert!(build.steps().len() <= 1, "two attempts build at once");
        build.ended()
    });
    assert_eq!((outcomes(&result), cells(&result)), (vec!["cell_fault", "built"], vec!["dev-1", "dev-2"]), "{result}");
    assert!(result["attempts"][0]["message"].as_str().unwrap().contains("fell silent"), "{result}");
    link.set(State::Passes);
    invariants::hold(&dev, [&build]);
}

/// A whole host is cut off but lives: its build goes elsewhere, and what the zombie has finished meanwhile is never published, also not
/// when it comes back.
#[test]
fn faults_what_a_cut_off_host_builds_is_never_published() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let link = Link::to(&dev.ready.temporal);
    let host = OwnHost::new(&dev.data, "far", "far-1", true);
    host.reach_temporal_at(&link.address());
    let _agent = host.agent();
    host.until_cell_is(&dev, "ready");
    run(&dev, &["cells", "drain", "dev-1", "--wait"]).ok();
    // Done before its own clock ends it; in truth after its Cell has given it up.
    let build = Running::begin(&dev, "zombie", either(11, 45) as f64);
    run(&dev, &["cells", "undrain", "dev-1", "--wait"]).ok();
    link.set(State::Stalls);
    let result = build.succeeds(300);
    assert_eq!((outcomes(&result), cells(&result)), (vec!["cell_fault", "built"], vec!["far-1", "dev-1"]), "{result}");
    link.set(State::Passes);
    host.until_cell_is(&dev, "ready");
    invariants::hold(&dev, [&build]);
}

fn cells(result: &Value) -> Vec<&str> {
    result["attempts"].as_array().unwrap().iter().map(|attempt| attempt["cell"].as_str().unwrap()).collect()
}
