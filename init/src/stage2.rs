//! Stage 2, in the root image: what must be there before anything can be started, in order.
//!
//! ```text
//! modules ─► mounts ─► config disk ─► hostname, network ─► swap ─► cgroups ─► event loop
//! ```
//!
//! Each step that fails ends the machine with one line that names it. Modules that only RUN steps need are loaded beside buildkitd's
//! start, by the event loop.

use crate::settings::Settings;
use crate::supervisor::Timeline;
use crate::{cgroups, console, machine, modules, network, supervisor, swap, sys};

/// Always the second disk, after the root image.
const CONFIG_DEVICE: &str = "/dev/vdb";

/// Runs the cell until it is stopped.
pub fn run(stage1_ms: Option<std::ffi::OsString>) -> Result<(), String> {
    let mut timeline = Timeline::new(stage1_ms.and_then(|ms| ms.to_str()?.parse().ok()).unwrap_or_default());
    timeline.mark("stage2");
    modules::load("/lib/modules/early.list");
    if machine::has_vsock() {
        modules::load("/lib/modules/vsock.list");
    }
    timeline.mark("modules");
    mounts()?;
    let settings = Settings::read(CONFIG_DEVICE).map_err(|error| format!("config disk: {error}"))?;
    settings.unknown.iter().for_each(|field| console::say(&format!("config disk: unknown field '{field}', ignored")));
    settings.write_files("/run/kiln").map_err(|error| format!("cannot write the cell's files: {error}"))?;
    sys::set_hostname(&settings.id).map_err(|error| format!("cannot set the hostname: {error}"))?;
    network::set_up(&settings.network)?;
    if let Some(device) = &settings.swap_device {
        swap::turn_on(device).map_err(|error| format!("cannot swap to {device}: {error}"))?;
    }
    cgroups::set_up(&settings.slices)?;
    timeline.mark("set up");
    supervisor::run(settings, timeline)
}

fn mounts() -> Result<(), String> {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV;
    let table: [(&str, &str, libc::c_ulong, &str); 7] = [
        ("tmpfs", "/run", quiet, "mode=0755"),
        ("tmpfs", "/var", quiet, "mode=0755"),
        ("tmpfs", "/root", quiet, "mode=0700"),
        ("devpts", "/dev/pts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", quiet, "mode=1777"),
        ("mqueue", "/dev/mqueue", quiet | libc::MS_NOEXEC, ""),
        ("cgroup2", "/sys/fs/cgroup", quiet | libc::MS_NOEXEC, "nsdelegate,memory_recursiveprot"),
    ];
    for (kind, target, flags, data) in table {
        sys::mount(kind, target, kind, flags, data).map_err(|error| format!("cannot mount {target}: {error}"))?;
    }
    Ok(())
}
