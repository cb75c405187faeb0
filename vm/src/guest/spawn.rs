//! Starting a guest's program: in a session of its own, so that nothing that ends its starter ends the guest.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::VmError;
use crate::machine::{Accel, Files, Machine, Vmm, VmmKind};
use crate::qemu::{self, QEMU};
use crate::{Process, firecracker};

/// Starts it; `id` is the guest's.
pub async fn spawn(machine: &Machine, files: &Files, id: &str) -> Result<Process, VmError> {
    let failed = |source| VmError::Spawn { program: named(&machine.vmm), source };
    let mut command = program(machine).map_err(failed)?;
    match &machine.vmm {
        Vmm::Qemu(accel) => {
            let tsc_khz = if *accel == Accel::Tcg { qemu::tsc_khz().await } else { None };
            command.args(qemu::arguments(machine, *accel, tsc_khz));
        }
        Vmm::Firecracker(_) => drop(command.args(firecracker::arguments(files, id))),
    }
    let (output, errors) = outputs(machine.vmm.kind(), files).map_err(failed)?;
    command.stdout(output).stderr(errors);
    let pinned = processors(&machine.pinned_to).map_err(failed)?;
    let enter = move || {
        nix::unistd::setsid()?;
        if let Some(pinned) = &pinned {
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), pinned)?;
        }
        Ok(())
    };
    // SAFETY: both calls are async-signal-safe and allocate nothing.
    unsafe { command.pre_exec(enter) };
    // A dropped handle leaves the process running; the runtime reaps it when it ends.
    let child = command.spawn().map_err(failed)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    // Ended within this instant: its log says why.
    Ok(Process::find(pid).unwrap_or(Process { pid, started: 0 }))
}

/// The program, and where it comes from, for people.
fn named(vmm: &Vmm) -> String {
    match vmm {
        Vmm::Qemu(_) => format!("{QEMU} (package qemu-system-x86)"),
        Vmm::Firecracker(program) => {
            format!("{} (from https://github.com/firecracker-microvm/firecracker/releases)", program.display())
        }
    }
}

/// The guest's program, or its supervisor with the program as its argument.
fn program(machine: &Machine) -> io::Result<Command> {
    let program: OsString = match &machine.vmm {
        Vmm::Qemu(_) => QEMU.into(),
        Vmm::Firecracker(program) => program.into(),
    };
    let Some(supervisor) = &machine.supervisor else {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        return Ok(command);
    };
    let (guard, arguments) = supervisor.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(guard);
    command.args(arguments).arg(program).stdin(supervisor.stdin.try_clone()?);
    Ok(command)
}

/// What it prints. Firecracker prints what the guest writes to its console; its own words go to its log, which has to be there.
fn outputs(vmm: VmmKind, files: &Files) -> io::Result<(File, File)> {
    let log = File::create(files.vmm_log(vmm))?;
    match vmm {
        VmmKind::Qemu => Ok((log.try_clone()?, log)),
        VmmKind::Firecracker => Ok((appended(&files.console())?, appended(&files.vmm_log(vmm))?)),
    }
}

fn appended(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn processors(pinned_to: &[usize]) -> io::Result<Option<nix::sched::CpuSet>> {
    if pinned_to.is_empty() {
        return Ok(None);
    }
    let mut set = nix::sched::CpuSet::new();
    for processor in pinned_to {
        set.set(*processor)?;
    }
    Ok(Some(set))
}
