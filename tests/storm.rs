//! Many builds while processes are killed at random and cells are drained and brought back: every build ends well, once.
//!
//! The seed is printed; `KILN_STORM_SEED` runs it again, as far as the processes' own timing allows. `KILN_STORM_BUILDS` says how many
//! builds there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::invariants;
use crate::harness::running::{Running, Until, run};

const CELLS: usize = 4;
const SLOTS: u64 = 2;
const BUILDS: usize = 40;
/// How long a build's step takes.
const STEP_S: f64 = 2.0;
/// Between two strokes.
const PAUSE_MS: std::ops::Range<u64> = 500..2500;
/// A build that has not ended by then is lost.
const PATIENCE: Duration = Duration::from_secs(300);

/// Command lines of what is killed; each is started again by whoever keeps it.
const VICTIMS: [&str; 6] = [" builder ", "buildkitd --config", "__cell-init --config", " host ", " control ", " api "];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The seed of what is left to chance.
pub fn seed() -> u64 {
    number("KILN_STORM_SEED").unwrap_or_else(|| rand::rng().random())
}

#[test]
fn faults_every_build_ends_well_once_in_a_storm_of_kills_and_drains() {
    let seed = seed();
    let builds = number("KILN_STORM_BUILDS").map_or(BUILDS, |builds| usize::try_from(builds).unwrap());
    println!("KILN_STORM_SEED={seed} KILN_STORM_BUILDS={builds}");
    let dir = tempfile::tempdir().unwrap();
    let args = ["--cells", &CELLS.to_string(), "--slots", &SLOTS.to_string(), "--seed", "busybox"];
    let dev = Dev::under_faults(&dir.path().join("data"), &args);
    let over = AtomicBool::new(false);
    let (ended, strokes) = std::thread::scope(|scope| {
        let until = Until(&over);
        let storm = scope.spawn(|| storm(&dev, StdRng::seed_from_u64(seed), &over));
        // As many clients as there are slots, each with a build at a time.
        let clients = CELLS * SLOTS as usize;
        let crowd: Vec<_> = (0..clients)
            .map(|client| {
                let dev = &dev;
                scope.spawn(move || (client..builds).step_by(clients).map(|n| ends_well(dev, n)).collect::<Vec<_>>())
            })
            .collect();
        let ended: Vec<(Running<'_>, u32)> = crowd.into_iter().flat_map(|client| client.join().unwrap()).collect();
        drop(until);
        (ended, storm.join().unwrap())
    });
    println!("{strokes:?}; {} starts for {builds} builds", ended.iter().map(|(_, starts)| starts).sum::<u32>());
    assert_eq!(ended.len(), builds);
    cells_recover(&dev);
    invariants::hold(&dev, ended.iter().map(|(build, _)| build));
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
                run(dev, &["cells", "drain", &cell, "--deadline", "3s"]);
                run(dev, &["cells", "drain", &cell, "--deadline", "3s"]);
                std::thread::sleep(Duration::from_millis(chance.random_range(PAUSE_MS)));
                run(dev, &["cells", "undrain", &cell]);
                "drain"
            }
            None => {
                run(dev, &["cells", "restart", &cell, "--deadline", "2s"]);
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
    let listed = run(dev, &["cells", "ls", "--output", "json"]);
    if listed.code == 0 {
        for cell in listed.json()["cells"].as_array().unwrap() {
            assert!(cell["busy"].as_u64().unwrap() <= SLOTS, "{cell}");
        }
    }
}

/// Starts build `n` again and again until it has succeeded, as CI does, always with the same key; how often that was.
fn ends_well(dev: &Dev, n: usize) -> (Running<'_>, u32) {
    let build = Running::of(dev, &format!("n{n}"), STEP_S);
    let begun = Instant::now();
    for starts in 1.. {
        let ran = build.up(&[]);
        if ran.code == 0 {
            assert_eq!(ran.json()["build_id"], build.id.as_str());
            return (build, starts);
        }
        assert_eq!(ran.code, 75, "build {n}: {}", ran.all());
        assert!(begun.elapsed() < PATIENCE, "build {n} does not end well: {}", ran.all());
    }
    unreachable!("it is started until it ends well")
}

/// When nobody strikes any more, every cell is ready, undrained and empty without anybody's help; what was drained last is undrained.
fn cells_recover(dev: &Dev) {
    for n in 1..=CELLS {
        let cell = format!("dev-{n}");
        eventually(&format!("{cell} is ready and empty"), Duration::from_secs(180), || {
            let shown = run(dev, &["cells", "show", &cell, "--output", "json"]);
            let view = (shown.code == 0).then(|| shown.json())?;
            if view["status"]["state"] == "draining" {
                run(dev, &["cells", "undrain", &cell]);
            }
            let empty = view["busy"] == 0 && view["builds"].as_array().is_some_and(Vec::is_empty);
            (view["status"]["state"] == "ready" && view["status"]["drain"].is_null() && empty).then_some(())
        });
    }
}
