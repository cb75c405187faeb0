//! What users rely on, measured side by side with what they would use instead, in one run: `make bench`.
//!
//! Everything runs on this machine, its data on tmpfs, so that the disk's moods are left out. Each figure is printed with its
//! counterpart and their ratio; nothing is asserted. The rows are those of `docs/PERFORMANCE.md`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the answers are those of the benchmark's own servers")]

#[path = "kiln/admit.rs"]
mod admit;
#[path = "kiln/cells.rs"]
mod cells;
#[path = "kiln/guests.rs"]
mod guests;
#[path = "../tests/harness/mod.rs"]
#[expect(dead_code, reason = "made for tests, which use more of it")]
mod harness;
#[path = "kiln/history.rs"]
mod history;
#[path = "kiln/orchestration.rs"]
mod orchestration;
#[path = "../activities/src/store/tests/postgres.rs"]
#[expect(dead_code, reason = "made for tests, which use more of it")]
mod postgres;
#[path = "kiln/report.rs"]
mod report;
#[path = "kiln/snapshots.rs"]
mod snapshots;
#[path = "kiln/temporal_server.rs"]
mod temporal_server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use activities::temporal::{Frontend, connect_patiently};
use harness::dev::Dev;
use harness::spine::{Ran, kiln, tree};
use report::{Sample, milliseconds, row, timed};
use temporalio_client::{Client, UntypedWorkflow, WorkflowGetResultOptions, WorkflowStartOptions};
use temporalio_common::data_converters::{PayloadConverter, RawValue};

/// Runs of each side of the cached build.
const CACHED_RUNS: usize = 300;
/// Steps that do something in the cached build's Dockerfile.
const STEPS: usize = 8;
/// Cold transfers of each context.
const CONTEXT_RUNS: usize = 5;

fn main() {
    // `cargo test` runs benchmarks as well, with no wish to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if wanted("orchestration") {
        runtime.block_on(orchestration::run());
    }
    if wanted("postgres") {
        runtime.block_on(orchestration::run_on_postgres());
    }
    if wanted("history") {
        runtime.block_on(history::run());
    }
    let dir = tempfile::Builder::new().prefix("kiln-bench-").tempdir_in("/dev/shm").unwrap();
    if wanted("admit") {
        runtime.block_on(admit::run(dir.path()));
    }
    if wanted("cells") {
        cells::run(dir.path());
    }
    if wanted("guests") {
        guests::run(dir.path());
    }
    if !["cached", "snapshots", "contexts"].into_iter().any(wanted) {
        return;
    }
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "2", "--seed", "busybox"]);
    if wanted("cached") {
        runtime.block_on(cached_build(&dev));
        idle_builder(&dev);
    }
    if wanted("snapshots") {
        snapshots::run(&dev, dir.path());
    }
    if wanted("contexts") {
        contexts(&dev, dir.path());
    }
}

/// All parts, or those named on the command line: `make bench ONLY=snapshots`.
fn wanted(part: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|argument| argument == part)
}

/// A fully cached build, workflow start to result, beside `buildctl` running the same build with push.
async fn cached_build(dev: &Dev) {
    let mut dockerfile = String::from("FROM busybox\nCOPY a.txt /\n");
    (1..STEPS).for_each(|n| dockerfile.push_str(&format!("RUN echo {n} > /{n}\n")));
    let dir = tree(&[("Dockerfile", &dockerfile), ("a.txt", "x")]);
    let up: Ran = kiln(&dev.data, &["up", dir.path().to_str().unwrap(), "--project", "bench", "--output", "json"])
        .output()
        .unwrap()
        .into();
    let id = up.ok().json()["build_id"].as_str().unwrap().to_owned();
    let show: Ran = kiln(&dev.data, &["builds", "show", &id, "--output", "json"]).output().unwrap().into();
    let input = show.ok().json()["input"].clone();
    let client = connect_patiently(&Frontend::plain(&dev.ready.temporal, &dev.ready.namespace), "bench").await.unwrap();
    let (mut ours, mut theirs, mut publish) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..CACHED_RUNS + 3 {
        let (time, published) = workflow(&client, &input, n).await;
        let direct = buildctl_cached(dev, dir.path());
        // The first ones warm both sides up.
        if n >= 3 {
            ours.push(time);
            theirs.push(direct);
            publish.push(published);
            if time > 1000.0 {
                println!("  run {n} took {time:.0} ms, of which publish {published:.0}");
            }
        }
    }
    row("cached build, start to result", &Sample::new(ours), &Sample::new(theirs), "buildctl");
    let publish = Sample::new(publish);
    println!("  of which publish: median {:.0} ms, p99 {:.0} ms", publish.at(0.5), publish.at(0.99));
}

/// Milliseconds from start to result, and of publish alone.
async fn workflow(client: &Client, input: &serde_json::Value, n: usize) -> (f64, f64) {
    let begun = Instant::now();
    let raw = RawValue::from_value(input, &PayloadConverter::serde_json());
    let options = WorkflowStartOptions::new("control", format!("build/bench/run-{n}")).build();
    let handle = client.start_workflow(UntypedWorkflow::new("Build"), raw, options).await.unwrap();
    let result: serde_json::Value = loop {
        // One long poll may answer late: it is asked again.
        let asked = handle.get_result(WorkflowGetResultOptions::default());
        if let Ok(result) = tokio::time::timeout(Duration::from_secs(2), asked).await {
            break result.unwrap().to_value(&PayloadConverter::serde_json());
        }
    };
    let time = milliseconds(begun);
    assert_eq!(result["cache"]["cached_steps"], result["cache"]["total_steps"], "{result}");
    (time, result["timings"]["publish"].as_f64().unwrap())
}

fn buildctl(dev: &Dev, dir: &Path) -> Command {
    let mut command = Command::new(harness::tool("buildctl"));
    command.arg("--addr").arg(format!("unix://{}", dev.ready.cells[0].buildkit_socket.display()));
    command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0", "--opt", "cmdline=dockerfile.v0"]);
    command.arg("--local").arg(format!("context={}", dir.display()));
    command.arg("--local").arg(format!("dockerfile={}", dir.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn buildctl_cached(dev: &Dev, dir: &Path) -> f64 {
    let name = format!("type=image,name={}/bench-direct,push=true,push-by-digest=true", dev.ready.registry);
    let mut command = buildctl(dev, dir);
    command.args(["--output", &name]);
    let begun = Instant::now();
    assert!(command.status().unwrap().success());
    milliseconds(begun)
}

/// Resident memory of an idle builder.
fn idle_builder(dev: &Dev) {
    for pid in harness::dev::processes_with(" builder --config") {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        if status.contains("kiln")
            && std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains(dev.data.to_str().unwrap()))
        {
            let rss = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
            println!(
                "builder, after {CACHED_RUNS} builds: {}",
                rss.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
            );
        }
    }
}

/// Cold context transfers through the `buildkit` crate alone, beside buildctl on the same daemon.
fn contexts(dev: &Dev, dir: &Path) {
    let example = PathBuf::from(env!("CARGO_BIN_EXE_kiln")).parent().unwrap().join("examples/context");
    assert!(example.exists(), "{} is missing: cargo build -p buildkit --example context", example.display());
    let small = dir.join("small");
    for n in 0..20_000 {
        let path = small.join(format!("d{}/f{n}", n % 200));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![u8::try_from(n % 251).unwrap(); 1500]).unwrap();
    }
    let large = dir.join("large");
    std::fs::create_dir_all(&large).unwrap();
    std::fs::write(
        large.join("file"),
        (0..400_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect::<Vec<u8>>(),
    )
    .unwrap();
    for (what, context) in [("context of 20,000 files / 30 MB", &small), ("context of one 400 MB file", &large)] {
        std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
        let (mut wall, mut cpu) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for run in 0..CONTEXT_RUNS {
            let mut ours = Command::new(&example);
            ours.arg(&dev.ready.cells[0].buildkit_socket).arg(context).stdout(Stdio::null()).stderr(Stdio::null());
            let mut sides = [(ours, &mut wall.0, &mut cpu.0), (buildctl(dev, context), &mut wall.1, &mut cpu.1)];
            // In turns, so that neither always has the other's caches to warm up.
            sides.rotate_left(run % 2);
            for (mut command, wall, cpu) in sides {
                prune(dev);
                let (time, used) = timed(&mut command);
                wall.push(time);
                cpu.push(used);
            }
        }
        pairs(&format!("{what}, wall"), &wall);
        pairs(&format!("{what}, client CPU"), &cpu);
        row(&format!("{what}, wall"), &Sample::new(wall.0), &Sample::new(wall.1), "buildctl");
        row(&format!("{what}, client CPU"), &Sample::new(cpu.0), &Sample::new(cpu.1), "buildctl");
    }
}

/// What a machine that others use too can tell: each run beside its neighbour, and how busy it was.
fn pairs(what: &str, (ours, theirs): &(Vec<f64>, Vec<f64>)) {
    let ratios = Sample::new(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{what}: ratio of pairs {:.2} ({:.2} to {:.2}), load {}",
        ratios.at(0.5),
        ratios.at(0.0),
        ratios.at(1.0),
        load.split_whitespace().next().unwrap_or_default()
    );
}

fn prune(dev: &Dev) {
    let address = format!("unix://{}", dev.ready.cells[0].buildkit_socket.display());
    let pruned = Command::new(harness::tool("buildctl")).args(["--addr", &address, "prune", "--all"]).output().unwrap();
    assert!(pruned.status.success());
}
