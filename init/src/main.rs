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
//! One static binary with one dependency (`libc`), one thread and no runtime: what may block is done in a forked child with a deadline,
//! and the event loop is the only one that reaps. It brings a cell up and knows nothing of builds. Whatever goes wrong before the
//! daemons run is named on the console, then the guest powers off: the host starts it again or says why not.

mod blockdev;
mod buildkitd;
mod cache;
mod cards;
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
mod netlink;
mod network;
mod numbers;
mod owner;
mod runc;
mod settings;
mod stage1;
mod stage2;
mod stats;
mod steps;
mod supervisor;
mod swap;
mod sys;

use std::process::ExitCode;

/// What stage 1 passes to the second run of this binary.
const STAGE2: &str = "stage2";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    match std::path::Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("runc") => return runc::run(args.collect()),
        Some(name @ (steps::PLUGIN | steps::LOOPBACK)) => return steps::run(name),
        _ => {}
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
