//! `kiln-init`: PID 1 of a cell's guest, and by other names what buildkitd runs for each step: the wrapper around runc, the network.
//!
//! ```text
//! kernel ─► initrd: stage 1 ─► root image: stage 2 ─► event loop: disk check, buildkitd, builder, control channel ─► power off
//!           virtio, erofs      mounts, config disk,
//!           modules            network, cgroups
//! buildkitd ─► runc (this binary by another name) ─► the real runc, with the cell's limits in the bundle
//!           └► kiln-step (likewise) ─► a network of the step's own
//! ```
//!
//! In a cell of processes `kiln` itself takes the place of this binary: the same wrapper and the same network of steps,
//! called by the same names ([`call_by_name`]).
//!
//! One static binary with one dependency (`libc`), one thread and no runtime: what may block is done in a forked child with a deadline,
//! and the event loop is the only one that reaps. It brings a cell up and knows nothing of builds. Whatever goes wrong before the
//! daemons run is named on the console, then the guest powers off: the host starts it again or says why not.

mod blockdev;
mod buildkitd;
mod cache;
pub mod cards;
mod cgroups;
mod cleanup;
mod console;
mod control;
mod daemon;
mod freeze;
mod jobs;
mod json;
mod machine;
mod modules;
pub mod netlink;
mod network;
mod numbers;
mod owner;
pub mod runc;
pub mod settings;
mod stage1;
mod stage2;
mod stats;
pub mod steps;
mod supervisor;
mod swap;
mod sys;

use std::ffi::OsStr;
use std::process::ExitCode;

/// What stage 1 passes to the second run of this binary.
const STAGE2: &str = "stage2";

/// Runs what buildkitd calls this program for, if it was called by one of those names.
pub fn call_by_name(program: &OsStr, args: impl Iterator<Item = std::ffi::OsString>) -> Option<ExitCode> {
    let path = std::path::Path::new(program);
    match path.file_name().and_then(OsStr::to_str) {
        Some(runc::NAME) => Some(runc::run(path, args.collect())),
        Some(name @ (steps::PLUGIN | steps::LOOPBACK)) => Some(steps::run(name)),
        _ => None,
    }
}

/// PID 1 of a guest, unless it was called by another name.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if let Some(code) = call_by_name(&name, std::env::args_os().skip(1)) {
        return code;
    }
    if std::process::id() != 1 {
        eprintln!("kiln-init: this is the PID 1 of a cell's guest and runs nowhere else");
        return ExitCode::from(2);
    }
    console::open();
    std::panic::set_hook(Box::new(|panic| machine::die(&format!("panic: {panic}"))));
    let ended = if args.next().is_some_and(|arg| arg == STAGE2) { stage2::run(args.next()) } else { stage1::run() };
    match ended {
        Ok(()) => machine::power_off(),
        Err(why) => machine::die(&why),
    }
}
