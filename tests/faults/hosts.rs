//! A whole host is lost.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::host::OwnHost;
use crate::harness::invariants;
use crate::harness::running::{Running, outcomes, run};

/// Every process of one of two hosts is gone at once, and nobody is left there to say so: its builds run on the other one soon.
#[test]
fn faults_a_lost_hosts_builds_run_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let host = OwnHost::new(&dev.data, "lost", "lost-1", false);
    let agent = host.agent();
    host.until_cell_is(&dev, "ready");
    run(&dev, &["cells", "drain", "dev-1", "--wait"]).ok();
    let build = Running::begin(&dev, "lost", 10.0);
    assert_eq!(build.cell(), "lost-1");
    run(&dev, &["cells", "undrain", "dev-1", "--wait"]).ok();

    agent.kill_9();
    // The youngest first: so nobody is left who could say goodbye for another one.
    let here = processes_with(host.dir.to_str().unwrap());
    for pid in here.into_iter().rev() {
        // It may have gone with its parent.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    let lost = Instant::now();
    eventually("nothing is left of the host", Duration::from_secs(30), || build.steps().is_empty().then_some(()));
    eventually("the build runs again", Duration::from_secs(180), || (!build.steps().is_empty()).then_some(()));
    println!("a lost host's build runs again after {:.1} s", lost.elapsed().as_secs_f64());
    let result = build.succeeds(60);
    assert_eq!(outcomes(&result), ["cell_fault", "built"], "{result}");
    assert_eq!(result["attempts"][1]["cell"], "dev-1");

    // It comes back as it was: its Cell has waited for it.
    let _agent = host.agent();
    host.until_cell_is(&dev, "ready");
    invariants::hold(&dev, [&build]);
}
