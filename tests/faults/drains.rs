//! Drains, restarts and their repetitions while builds come and go: a drain always ends, and once it is acknowledged nothing starts on
//! the cell until it is undrained.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::TWO_CELLS;
use crate::harness::clocks::either;
use crate::harness::dev::{Dev, eventually};
use crate::harness::invariants;
use crate::harness::running::{Running, Until, run};

/// How long a drained cell is watched.
const WATCHED: Duration = Duration::from_secs(2);

#[test]
fn faults_an_acknowledged_drain_holds_while_builds_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    let over = AtomicBool::new(false);
    let builds: Vec<Running<'_>> = std::thread::scope(|scope| {
        let until = Until(&over);
        // One more than there are slots.
        let clients: Vec<_> = (0..3)
            .map(|client| {
                scope.spawn({
                    let (dev, over) = (&dev, &over);
                    move || crowd(dev, client, over)
                })
            })
            .collect();
        for n in 0..either(4, 12) {
            drained(&dev, &format!("dev-{}", 1 + n % 2), n);
        }
        drop(until);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    println!("{} builds", builds.len());
    invariants::hold(&dev, &builds);
}

/// Builds one after the other until it is `over`; a drain moves some of them, and they end well all the same.
fn crowd<'dev>(dev: &'dev Dev, client: usize, over: &AtomicBool) -> Vec<Running<'dev>> {
    let mut builds = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let build = Running::of(dev, &format!("d{client}-{}", builds.len()), 1.0);
        build.up(&[]).ok();
        builds.push(build);
    }
    builds
}

/// Drains a cell by two orders, restarts it when its turn comes, and lets it go again.
fn drained(dev: &Dev, cell: &str, n: u64) {
    run(dev, &["cells", "drain", cell, "--deadline", "10s"]).ok();
    // The later order is the one that stands.
    run(dev, &["cells", "drain", cell, "--deadline", "1s", "--wait"]).ok();
    let show = || run(dev, &["cells", "show", cell, "--output", "json"]).ok().json();
    // Its builder's last word may still be on its way.
    eventually("the drained cell is idle", Duration::from_secs(10), || (show()["busy"] == 0).then_some(()));
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let shown = show();
        assert_eq!((&shown["busy"], &shown["status"]["drain"]["idle"]), (&0.into(), &true.into()), "{shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
    run(dev, &["cells", "undrain", cell, "--wait"]).ok();
    if n % 2 == 1 {
        run(dev, &["cells", "restart", cell, "--deadline", "1s", "--wait"]).ok();
    }
}
