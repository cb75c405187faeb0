//! Many builds while processes are killed at random and cells are drained and brought back: every build ends well, once.
//!
//! The seed is printed; `KILN_STORM_SEED` runs it again, as far as the processes' own timing allows. `KILN_STORM_BUILDS` says how many
//! builds there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::spine::{Ran, kiln, tree};

const CELLS: usize = 4;
const SLOTS: u64 = 2;
const BUILDS: usize = 40;
/// Between two strokes.
const PAUSE_MS: std::ops::Range<u64> = 500..2500;
/// A build that has not ended by then is lost.
const PATIENCE: Duration = Duration::from_secs(300);

/// Command lines of what is killed; each is started again by whoever keeps it.
const VICTIMS: [&str; 5] = [" builder ", "buildkitd --config", " host ", " control ", " api "];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(data: &Path, args: &[&str]) -> Ran {
    kiln(data, args).output().unwrap().into()
}

#[test]
fn faults_every_build_ends_well_once_in_a_storm_of_kills_and_drains() {
    let seed = number("KILN_STORM_SEED").unwrap_or_else(|| rand::rng().random());
    let builds = number("KILN_STORM_BUILDS").map_or(BUILDS, |builds| usize::try_from(builds).unwrap());
    println!("KILN_STORM_SEED={seed} KILN_STORM_BUILDS={builds}");
    let dir = tempfile::tempdir().unwrap();
    let args = ["--cells", &CELLS.to_string(), "--slots", &SLOTS.to_string(), "--seed", "busybox"];
    let dev = Dev::start(&dir.path().join("data"), &args);
    let over = AtomicBool::new(false);
    let (ended, strokes) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| storm(&dev, StdRng::seed_from_u64(seed), &over));
        // As many clients as there are slots, each with a build at a time.
        let clients = CELLS * SLOTS as usize;
        let crowd: Vec<_> = (0..clients)
            .map(|client| {
                let dev = &dev;
                scope.spawn(move || (client..builds).step_by(clients).map(|n| Ended::well(dev, n)).collect::<Vec<_>>())
            })
            .collect();
        let ended: Vec<Ended> = crowd.into_iter().flat_map(|client| client.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        (ended, storm.join().unwrap())
    });
    println!("{strokes:?}; {} starts for {builds} builds", ended.iter().map(|build| build.starts).sum::<u32>());
    assert_eq!(ended.len(), builds);
    cells_recover(&dev);
    for build in &ended {
        build.stands(&dev);
    }
    let digests: BTreeSet<&str> = ended.iter().map(|build| build.digest.as_str()).collect();
    assert_eq!(digests.len(), builds, "each is its own image");
}

/// Strikes until it is `over`; says how often at what.
fn storm(dev: &Dev, mut chance: StdRng, over: &AtomicBool) -> BTreeMap<&'static str, u32> {
    let mut strokes = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(chance.random_range(PAUSE_MS)));
        let what = chance.random_range(0..VICTIMS.len() + 2);
        let cell = format!("dev-{}", chance.random_range(1..=CELLS));
        let stroke = match VICTIMS.get(what) {
            Some(victim) => {
                let ours: BTreeSet<u32> = processes_with(dev.data.to_str().unwrap()).into_iter().collect();
                let guards: BTreeSet<u32> = processes_with("__guard").into_iter().collect();
                let found: Vec<u32> =
                    processes_with(victim).into_iter().filter(|p| ours.contains(p) && !guards.contains(p)).collect();
                if !found.is_empty() {
                    let pid = found[chance.random_range(0..found.len())];
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                }
                *victim
            }
            // Orders may come too late, twice or to an api that was just killed: none of that is an error here.
            None if what == VICTIMS.len() => {
                run(&dev.data, &["cells", "drain", &cell, "--deadline", "3s"]);
                run(&dev.data, &["cells", "drain", &cell, "--deadline", "3s"]);
                std::thread::sleep(Duration::from_millis(chance.random_range(PAUSE_MS)));
                run(&dev.data, &["cells", "undrain", &cell]);
                "drain"
            }
            None => {
                run(&dev.data, &["cells", "restart", &cell, "--deadline", "2s"]);
                "restart"
            }
        };
        *strokes.entry(stroke.trim()).or_default() += 1;
        slots_are_kept(dev);
    }
    strokes
}

/// No cell ever says that it runs more than it has slots for.
fn slots_are_kept(dev: &Dev) {
    let listed = run(&dev.data, &["cells", "ls", "--output", "json"]);
    if listed.code == 0 {
        for cell in listed.json().as_array().into_iter().flatten() {
            assert!(cell["busy"].as_u64().unwrap() <= SLOTS, "{cell}");
        }
    }
}

/// A build that ended well, as its user saw it.
struct Ended {
    n: usize,
    id: String,
    digest: String,
    starts: u32,
    context: tempfile::TempDir,
}

impl Ended {
    /// Starts build `n` again and again until it has succeeded, as CI does, always with the same key.
    fn well(dev: &Dev, n: usize) -> Self {
        let context = tree(&[("Dockerfile", &dockerfile(n))]);
        let begun = Instant::now();
        for starts in 1.. {
            let ran = up(dev, context.path(), n);
            if ran.code == 0 {
                let told = ran.json();
                let text = |field: &str| told[field].as_str().unwrap().to_owned();
                return Self { n, id: text("build_id"), digest: text("digest"), starts, context };
            }
            assert_eq!(ran.code, 75, "build {n}: {}", ran.all());
            assert!(begun.elapsed() < PATIENCE, "build {n} does not end well: {}", ran.all());
        }
        unreachable!("it is started until it ends well")
    }

    /// What is published is what was told; the log is whole; the same key builds nothing more.
    fn stands(&self, dev: &Dev) {
        let Self { n, id, digest, .. } = self;
        let shown = run(&dev.data, &["builds", "show", id, "--output", "json"]).ok().json();
        let result = &shown["result"];
        assert_eq!(
            (&shown["status"], &result["digest"]),
            (&"succeeded".into(), &Value::from(digest.as_str())),
            "{shown}"
        );
        let tags: Vec<&Value> = result["tags"].as_array().unwrap().iter().map(|tag| &tag["outcome"]).collect();
        assert_eq!(tags, ["written"], "{shown}");
        assert_eq!(super::failpoints::digest_of(dev, "storm", &format!("n{n}")), **digest, "build {n}: {shown}");
        // Its end may still be on its way.
        let begun = Instant::now();
        let log = loop {
            let log = run(&dev.data, &["builds", "logs", id]).ok().stdout;
            if log.contains(&format!("end of {n}")) {
                break log;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "build {n}: {shown}\nits log has no end:\n{log}");
            std::thread::sleep(Duration::from_millis(200));
        };
        // The winning attempt's lines in their order; one that was cut off before may have left some.
        let last = log.rfind(&format!("line 1 of {n}")).expect("the first line is there");
        let lines: Vec<usize> = (1..=20).filter_map(|line| log[last..].find(&format!("line {line} of {n}"))).collect();
        assert!(lines.len() == 20 && lines.is_sorted(), "build {n}: {log}");
        let again = up(dev, self.context.path(), *n).ok().json();
        assert_eq!(again["digest"], **digest, "build {n}: {again}");
        let log = run(&dev.data, &["builds", "logs", id]).ok().stdout;
        assert!(log.contains(&format!("end of {n}")), "the log is that of the run that built: {log}");
    }
}

fn dockerfile(n: usize) -> String {
    format!(
        "FROM busybox\nRUN for i in $(seq 1 20); do echo \"line $i of {n}\"; sleep 0.1; done; echo \"end of {n}\"; echo {n} > /n\n"
    )
}

fn up(dev: &Dev, context: &Path, n: usize) -> Ran {
    let (key, tag) = (format!("n{n}"), format!("{}/storm:n{n}", dev.ready.registry));
    run(
        &dev.data,
        &["up", context.to_str().unwrap(), "--project", "storm", "--key", &key, "-t", &tag, "--output", "json"],
    )
}

/// When nobody strikes any more, every cell is ready, undrained and empty without anybody's help; what was drained last is undrained.
fn cells_recover(dev: &Dev) {
    for n in 1..=CELLS {
        let cell = format!("dev-{n}");
        eventually(&format!("{cell} is ready and empty"), Duration::from_secs(180), || {
            let shown = run(&dev.data, &["cells", "show", &cell, "--output", "json"]);
            let view = (shown.code == 0).then(|| shown.json())?;
            if view["status"]["state"] == "draining" {
                run(&dev.data, &["cells", "undrain", &cell]);
            }
            let empty = view["busy"] == 0 && view["builds"].as_array().is_some_and(Vec::is_empty);
            (view["status"]["state"] == "ready" && view["status"]["drain"].is_null() && empty).then_some(())
        });
    }
}
