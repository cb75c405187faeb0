//! What operators and faults ask of process cells: a restart of an idle one, and the way back of a build whose builder was killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::dev::{Dev, eventually, processes_with};
use super::harness::spine::{Ran, kiln, tree};
use super::report::{Sample, milliseconds};

const RESTARTS: usize = 10;
const KILLS: usize = 5;
/// A build that is not back by then is lost.
const PATIENCE: Duration = Duration::from_secs(180);

pub fn run(dir: &Path) {
    let dev = Dev::start(&dir.join("cells"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    restarts(&dev);
    kills(&dev);
}

fn restarts(dev: &Dev) {
    let times = (0..RESTARTS).map(|_| {
        let begun = Instant::now();
        ran(dev, &["cells", "restart", "dev-1", "--wait"]).ok();
        milliseconds(begun)
    });
    println!("restart of an idle cell, `kiln cells restart --wait`: {}", Sample::new(times.collect()).text());
}

/// `kill -9` of the only cell's builder in mid-build, until the step runs again.
fn kills(dev: &Dev) {
    let times = (0..KILLS).map(|n| {
        let marker = format!("kiln-bench-step-{n}");
        let context = tree(&[("Dockerfile", &format!("FROM busybox\nRUN sleep 600; : {marker}\n"))]);
        let path = context.path().to_str().unwrap();
        let up = ["up", path, "--project", "bench", "--key", &marker, "--detach", "--output", "json"];
        let id = ran(dev, &up).ok().json()["build_id"].as_str().unwrap().to_owned();
        // A shell becomes its last command unless something follows it.
        let step = || processes_with(&format!("; : {marker}")).into_iter().collect::<BTreeSet<u32>>();
        let first = eventually("the step runs", PATIENCE, || Some(step()).filter(|pids| !pids.is_empty()));
        let builder = builder(dev);
        let begun = Instant::now();
        kill(builder, Signal::SIGKILL).unwrap();
        eventually("the step runs again", PATIENCE, || step().difference(&first).next().map(drop));
        let time = milliseconds(begun);
        ran(dev, &["builds", "cancel", &id]).ok();
        eventually("the step has ended", PATIENCE, || step().is_empty().then_some(()));
        time
    });
    println!("kill -9 of the builder until its build runs again: {}", Sample::new(times.collect()).text());
}

/// The builder itself, not a guard that names it.
fn builder(dev: &Dev) -> Pid {
    let config = dev.data.join("cells/dev-1/kiln.toml");
    let named: BTreeSet<u32> = processes_with(config.to_str().unwrap()).into_iter().collect();
    let guards: BTreeSet<u32> = processes_with("__guard").into_iter().collect();
    let found = processes_with(" builder ").into_iter().find(|pid| named.contains(pid) && !guards.contains(pid));
    Pid::from_raw(found.expect("the cell has a builder").cast_signed())
}

fn ran(dev: &Dev, args: &[&str]) -> Ran {
    kiln(&dev.data, args).output().unwrap().into()
}
