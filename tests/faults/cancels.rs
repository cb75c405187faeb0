//! Many builds cancelled at random moments: each is cancelled or has succeeded, nothing is left, and its key builds again.
//!
//! The seed is printed; `KILN_STORM_SEED` runs it again, as far as the processes' own timing allows.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::harness::clocks::either;
use crate::harness::dev::Dev;
use crate::harness::invariants;
use crate::harness::running::{Running, run};
use crate::storm::seed;

/// How long a build's step takes, and how long after its start it is cancelled at the latest.
const STEP_S: f64 = 2.0;
const LATEST_MS: u64 = 4_000;

#[test]
fn faults_a_storm_of_cancels_leaves_nothing_behind() {
    let (seed, count) = (seed(), either(12, 60));
    println!("KILN_STORM_SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), &["--cells", "2", "--slots", "2", "--seed", "busybox"]);
    let plan: Vec<(String, Vec<u64>)> = (0..count).map(|n| (format!("c{n}"), strokes(&mut chance))).collect();
    let mut builds = Vec::new();
    // More than there are slots: some are cancelled in a line.
    for some in plan.chunks(6) {
        std::thread::scope(|scope| {
            let cancelled: Vec<_> = some.iter().map(|(key, at)| scope.spawn(|| cancelled(&dev, key, at))).collect();
            builds.extend(cancelled.into_iter().map(|build| build.join().unwrap()));
        });
    }
    let ended: Vec<String> =
        builds.iter().map(|build| build.result(120)["status"].as_str().unwrap().to_owned()).collect();
    println!("{ended:?}");
    assert!(ended.iter().all(|status| ["cancelled", "succeeded"].contains(&status.as_str())), "{ended:?}");
    invariants::hold(&dev, &builds);
    for (build, status) in builds.iter().zip(&ended) {
        if status == "cancelled" {
            build.up(&[]).ok();
        }
    }
    invariants::hold(&dev, &builds);
}

/// When a build is cancelled, milliseconds after its start: some of them twice.
fn strokes(chance: &mut StdRng) -> Vec<u64> {
    let times = chance.random_range(1..=2);
    (0..times).map(|_| chance.random_range(0..LATEST_MS)).collect()
}

fn cancelled<'dev>(dev: &'dev Dev, key: &str, at: &[u64]) -> Running<'dev> {
    let build = Running::start(dev, key, STEP_S);
    std::thread::scope(|scope| {
        for at in at {
            scope.spawn(|| {
                // The moment is what the test is about, not a wait for something.
                std::thread::sleep(Duration::from_millis(*at));
                // It may have ended meanwhile.
                run(dev, &["builds", "cancel", &build.id]);
            });
        }
    });
    build
}
