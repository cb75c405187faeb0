//! Stage 1, in the initrd: just enough modules to mount the root image, then this binary again from there.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{STAGE2, console, modules, sys};

const ROOT_DEVICE: &str = "/dev/vda";
/// How long the root disk may take to appear once its driver is loaded.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// Returns only when the root image cannot be entered.
pub fn run() -> Result<(), String> {
    let started = sys::uptime_ms();
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        sys::mount(kind, target, kind, 0, "").map_err(|error| format!("cannot mount {target}: {error}"))?;
    }
    console::open();
    modules::load("/modules.list");
    wait_for(ROOT_DEVICE)?;
    sys::mount(ROOT_DEVICE, "/newroot", "erofs", libc::MS_RDONLY | libc::MS_NODEV, "")
        .map_err(|error| format!("cannot mount the root image {ROOT_DEVICE}: {error}"))?;
    empty_initrd();
    switch_root().map_err(|error| format!("cannot enter the root image: {error}"))?;
    let error = Command::new("/sbin/kiln-init").arg(STAGE2).arg(started.to_string()).exec();
    Err(format!("cannot run /sbin/kiln-init of the root image: {error}"))
}

/// Devices appear a moment after their driver was loaded.
fn wait_for(device: &str) -> Result<(), String> {
    let step = Duration::from_millis(5);
    for _ in 0..DISK_PATIENCE.as_millis() / step.as_millis() {
        if Path::new(device).exists() {
            return Ok(());
        }
        std::thread::sleep(step);
    }
    Err(format!("there is no root disk {device}"))
}

/// What lies in the initrd takes memory for as long as the machine runs.
fn empty_initrd() {
    let _ = std::fs::remove_dir_all("/modules");
    let _ = std::fs::remove_file("/init");
}

fn switch_root() -> std::io::Result<()> {
    for dir in ["proc", "sys", "dev"] {
        sys::mount(&format!("/{dir}"), &format!("/newroot/{dir}"), "", libc::MS_MOVE, "")?;
    }
    std::env::set_current_dir("/newroot")?;
    sys::mount(".", "/", "", libc::MS_MOVE, "")?;
    sys::chroot_here()?;
    std::env::set_current_dir("/")
}
