//! Builds while things are killed, stopped, cut off and lost: each ends well elsewhere or again, and the invariants hold.
//!
//! Outages and clocks are those of [`crate::harness::clocks`]: a tenth or so in `make test`, the true ones in `make faults`.

mod cancels;
mod drains;
mod entities;
mod hosts;
mod kills;
mod release;
mod store;
mod temporal;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::dev::{Dev, processes_with};
use crate::harness::tool;

const TWO_CELLS: &[&str] = &["--cells", "2", "--slots", "1", "--seed", "busybox"];

/// The one process whose command line has both texts and that is no guard of another.
fn process(text: &str, also: &str) -> Pid {
    let of_both = processes_with(text).into_iter().filter(|pid| processes_with(also).contains(pid));
    let found: Vec<u32> = of_both.filter(|pid| !processes_with("__guard").contains(pid)).collect();
    assert_eq!(found.len(), 1, "{text:?} and {also:?}: {found:?}");
    Pid::from_raw(found[0].cast_signed())
}

fn kill_9(pid: Pid) {
    kill(pid, Signal::SIGKILL).unwrap();
}

/// `tctl workflow ARGS` by somebody who knows nothing of Kiln.
fn tctl(dev: &Dev, args: &[&str]) -> String {
    let mut command = std::process::Command::new(tool("tctl"));
    command.args(["--ns", &dev.ready.namespace, "--address", &dev.ready.temporal, "workflow"]).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn terminate(dev: &Dev, id: &str) {
    tctl(dev, &["terminate", "-w", id, "-re", "a test"]);
}

/// To its very beginning: nothing that it did counts.
fn reset(dev: &Dev, id: &str) {
    tctl(dev, &["reset", "-w", id, "--reset_type", "FirstWorkflowTask", "--reason", "a test"]);
}
