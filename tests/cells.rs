//! Cells under an operator's hands and under faults, on a real installation: `kiln dev` with everything in it.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::clocks::outage;
use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::host::programs;
use crate::harness::running::{Running, outcomes, run};
use crate::harness::spine::tree;
use crate::harness::{invariants, tool};

const TWO_CELLS: &[&str] = &["--cells", "2", "--slots", "1", "--seed", "busybox"];
/// What a build's step takes that is hit in its middle, seconds.
const LONG: f64 = 20.0;

fn cell(dev: &Dev, id: &str) -> Value {
    run(dev, &["cells", "show", id, "--output", "json"]).json()
}

fn until_state(dev: &Dev, id: &str, state: &str, patience: u64) {
    eventually(&format!("{id} is {state}"), Duration::from_secs(patience), || {
        (cell(dev, id)["status"]["state"] == state).then_some(())
    });
}

fn all_ready(dev: &Dev) {
    for id in ["dev-1", "dev-2"] {
        until_state(dev, id, "ready", 60);
    }
}

/// The builder of a cell, which is no guard's ward's command line.
fn builder(dev: &Dev, id: &str) -> Pid {
    let config = dev.data.join("cells").join(id).join("kiln.toml");
    let of_both =
        processes_with(" builder ").into_iter().filter(|pid| processes_with(config.to_str().unwrap()).contains(pid));
    let found: Vec<u32> = of_both.filter(|pid| !processes_with("__guard").contains(pid)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    Pid::from_raw(found[0].cast_signed())
}

/// What the runbook says, as it says it: with `kiln`, `temporal` and `tctl`.
#[test]
fn cells_are_drained_and_undrained_as_the_runbook_says() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    all_ready(&dev);
    let build = Running::begin(&dev, "moved", LONG);
    let on = build.cell();
    let other = if on == "dev-1" { "dev-2" } else { "dev-1" };

    // The deadline comes before the step ends: the build moves, and the drain ends.
    let drained = run(&dev, &["cells", "drain", &on, "--deadline", "2s", "--reason", "disk", "--wait"]).ok();
    assert_eq!(drained.stdout, format!("{on}: drain done\n"), "{}", drained.all());
    assert!(drained.stderr.contains("still there: faults/moved"), "{}", drained.all());
    let ended = build.succeeds(120);
    assert_eq!(outcomes(&ended), ["cell_fault", "built"]);
    assert!(ended["attempts"][0]["message"].as_str().unwrap().contains("is drained: disk"), "{ended}");
    assert_eq!(ended["attempts"][1]["cell"], *other);

    let last = run(&dev, &["cells", "drain", other]);
    assert_eq!(last.code, 3, "{}", last.all());
    assert!(last.stderr.contains("--force"), "{}", last.all());
    let past = run(&dev, &["cells", "drain", other, "--deadline", "-5m"]);
    assert_eq!(past.code, 2, "{}", past.all());
    assert_eq!(run(&dev, &["cells", "drain", "nobody"]).code, 2);

    let table = run(&dev, &["cells", "ls"]).ok().stdout;
    let row = table.lines().find(|line| line.starts_with(&on)).unwrap().to_owned();
    assert!(table.starts_with("CELL") && row.contains("draining"), "{table}");

    signal_with_temporal(&dev, &on, &["--name", "undrain"]);
    until_state(&dev, &on, "ready", 30);
    let payload = r#"{"reason":"disk replacement","by":"me"}"#;
    tctl(&dev, &["workflow", "signal", "-w", &format!("cell/default/{on}"), "-n", "drain", "-i", payload]);
    until_state(&dev, &on, "draining", 30);
    tctl(&dev, &["workflow", "signal", "-w", &format!("cell/default/{on}"), "-n", "drain", "-i", "{\"deadline\":7}"]);
    let refused = eventually("the malformed signal is recorded", Duration::from_secs(30), || {
        let signals = cell(&dev, &on)["status"]["signals"].as_array().unwrap().clone();
        signals.last().filter(|record| record["outcome"] == "refused").cloned()
    });
    assert_eq!(refused["signal"], "drain");
    let status = tctl(&dev, &["workflow", "query", "-w", &format!("cell/default/{on}"), "-qt", "status"]);
    assert!(status.contains("disk replacement"), "{status}");
    let undrained = run(&dev, &["cells", "undrain", &on, "--wait"]).ok();
    assert_eq!(undrained.stdout, format!("{on}: undrain done\n"));
    let acts = audited(&dev, &on);
    for act in [
        "operator POST /v1/cells/{cell}/drain ok",
        "operator (settings) signal drain ok",
        "me signal drain ok",
        "a client of Temporal signal drain refused",
        "a client of Temporal signal undrain ok",
    ] {
        assert!(acts.iter().any(|seen| seen.ends_with(act)), "{act}: {acts:#?}");
    }
    invariants::hold(&dev, [&build]);
}

/// Who did what to a cell and with what result, by `kiln audit`.
fn audited(dev: &Dev, cell: &str) -> Vec<String> {
    let listed = run(dev, &["audit", "--output", "json"]).ok().stdout;
    let entries = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_cell = entries.filter(|entry| entry["subject"].as_str().unwrap().ends_with(cell));
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    of_cell.map(|entry| ["principal", "action", "result"].map(|field| text(&entry, field)).join(" ")).collect()
}

fn signal_with_temporal(dev: &Dev, cell: &str, args: &[&str]) {
    let id = format!("cell/default/{cell}");
    let output = Command::new(tool("temporal"))
        .args(["workflow", "signal", "--workflow-id", &id, "--address", &dev.ready.temporal])
        .args(["--namespace", &dev.ready.namespace])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn tctl(dev: &Dev, args: &[&str]) -> String {
    let output = Command::new(tool("tctl"))
        .args(["--ns", &dev.ready.namespace, "--address", &dev.ready.temporal])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A builder that stands still, as behind a wedged network: its build is elsewhere before its attempt counts as lost. On the true clocks: the
/// quick ones leave no time between the two.
#[test]
fn cells_a_wedged_cells_build_moves_on() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    all_ready(&dev);
    let build = Running::begin(&dev, "wedged", LONG);
    let on = build.cell();
    let stopped = builder(&dev, &on);
    let begun = Instant::now();
    kill(stopped, Signal::SIGSTOP).unwrap();
    eventually("the cell is seen to be unhealthy", Duration::from_secs(60), || {
        let table = run(&dev, &["cells", "ls"]).stdout;
        table.lines().any(|line| line.starts_with(&on) && !line.contains(" ready ")).then_some(())
    });
    println!("seen after {:?}", begun.elapsed());
    let ended = build.succeeds(120);
    // The process may be gone: a host restarts its cell.
    let _ = kill(stopped, Signal::SIGCONT);
    assert_eq!(outcomes(&ended), ["cell_fault", "built"], "{ended}");
    assert!(ended["attempts"][0]["message"].as_str().unwrap().contains("is unhealthy"), "{ended}");
    until_state(&dev, &on, "ready", 60);
    invariants::hold(&dev, [&build]);
}

/// An outage of Temporal condemns no cell: each is ready afterwards without ever having been anything else.
#[test]
fn cells_a_temporal_outage_restarts_none() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    all_ready(&dev);
    let epochs: Vec<Value> = ["dev-1", "dev-2"].iter().map(|id| cell(&dev, id)["epoch"].clone()).collect();
    let data = dev.data.to_str().unwrap();
    let server = processes_with("server start-dev")
        .into_iter()
        .find(|pid| processes_with(data).contains(pid) && !processes_with("__guard").contains(pid));
    let server = Pid::from_raw(server.unwrap().cast_signed());
    kill(server, Signal::SIGSTOP).unwrap();
    // The outage itself, not a wait for something.
    std::thread::sleep(outage(120));
    kill(server, Signal::SIGCONT).unwrap();
    // A build tells that both are of use; the cells' own checks are over when presence is back.
    for id in ["dev-1", "dev-2"] {
        eventually("presence is back", Duration::from_secs(90), || {
            (cell(&dev, id)["status"]["present"] == true).then_some(())
        });
        let status = &cell(&dev, id)["status"];
        let states: Vec<&str> =
            status["transitions"].as_array().unwrap().iter().map(|t| t["state"].as_str().unwrap()).collect();
        assert!(!states.contains(&"unhealthy"), "{status}");
    }
    let after: Vec<Value> = ["dev-1", "dev-2"].iter().map(|id| cell(&dev, id)["epoch"].clone()).collect();
    assert_eq!(after, epochs, "no builder was started again");
}

/// A Cell that was terminated comes back through its builder, and looks at what runs before it says ready.
#[test]
fn cells_a_terminated_cell_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    all_ready(&dev);
    tctl(&dev, &["workflow", "terminate", "-w", "cell/default/dev-1", "-re", "a test"]);
    // The terminated one answers no signal any more.
    let undrained = eventually("another Cell takes orders", Duration::from_secs(120), || {
        let ran = run(&dev, &["cells", "undrain", "dev-1"]);
        (ran.code == 0).then_some(ran.stdout)
    });
    assert_eq!(undrained, "dev-1: undrain nothing to do: it is not draining\n");
    until_state(&dev, "dev-1", "ready", 60);
}

/// The next builder ends what its Cell asked of the killed one, whatever the disk has lost: with an hour until a heartbeat counts as
/// missed, the Cell would else look for an hour at nobody.
#[test]
fn cells_a_killed_builders_successor_is_known_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--cells", "1", "--slots", "1", "--seed", "busybox", "--set=cell.clocks.lost_after_ms=3600000"];
    let dev = Dev::start(&dir.path().join("data"), &args);
    until_state(&dev, "dev-1", "ready", 60);
    let epoch = || cell(&dev, "dev-1")["status"]["epoch"].as_u64().unwrap();
    let first = epoch();
    kill(builder(&dev, "dev-1"), Signal::SIGKILL).unwrap();
    eventually("the Cell has checked the next builder", Duration::from_secs(120), || (epoch() > first).then_some(()));
    assert_eq!(cell(&dev, "dev-1")["status"]["state"], "ready");
}

/// Restart and update in one line each: stopped and started through the host, verified, and everything still cached.
#[test]
fn cells_are_restarted_and_updated_with_their_cache() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let context = tree(&[("Dockerfile", "FROM busybox\nRUN echo once > /once\n")]);
    let up = |key: &str| {
        let path = context.path().to_str().unwrap();
        let id = run(&dev, &["up", path, "--project", "cells", "--key", key, "--output", "json"]).ok().json();
        let shown = run(&dev, &["builds", "show", id["build_id"].as_str().unwrap(), "--output", "json"]).ok().json();
        let cache = shown["result"]["cache"].clone();
        (cache["cached_steps"].clone(), cache["total_steps"].clone())
    };
    up("first");
    let epoch = || cell(&dev, "dev-1")["epoch"].as_u64().unwrap();
    let before = epoch();

    let begun = Instant::now();
    let restarted = run(&dev, &["cells", "restart", "dev-1", "--reason", "a test", "--wait"]).ok();
    println!("restarted in {:?}", begun.elapsed());
    assert_eq!(restarted.stdout, "dev-1: restart done\n", "{}", restarted.all());
    assert_eq!(epoch(), before + 1);
    let (cached, total) = up("after-restart");
    assert_eq!(cached, total);

    let image = programs(&dev.data.join("images/next"));
    let path = dev.data.join("images/next").display().to_string();
    let refused = run(&dev, &["cells", "update", "dev-1", "--image", &path]);
    assert_eq!(refused.code, 2, "a path is no name: {}", refused.all());
    assert_eq!(epoch(), before + 1);
    let updated = run(&dev, &["cells", "update", "dev-1", "--image", &image, "--wait"]).ok();
    assert_eq!(updated.stdout, "dev-1: update done\n", "{}", updated.all());
    assert_eq!((epoch(), cell(&dev, "dev-1")["status"]["image"].as_str()), (before + 2, Some(image.as_str())));
    let (cached, total) = up("after-update");
    assert_eq!(cached, total);
}
