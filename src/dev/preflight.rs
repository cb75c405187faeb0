//! What this machine must be able to do, checked before anything is started; each refusal is one line that says what to do.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Cells need namespaces, mounts, bridges and firewall rules.
pub fn root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "kiln dev needs root (namespaces, overlayfs, bridges): run it with sudo"
    );
    Ok(())
}

/// BuildKit's layers are overlayfs mounts below the data directory.
pub fn overlayfs(data: &Path) -> anyhow::Result<()> {
    let probe = data.join("overlayfs-probe");
    let result = try_overlay(&probe);
    let _ = std::fs::remove_dir_all(&probe);
    result.with_context(|| {
        format!(
            "no overlayfs on {} (kernel without it, or a file system that cannot carry it): choose another --data-dir",
            data.display()
        )
    })
}

fn try_overlay(probe: &Path) -> anyhow::Result<()> {
    let dir = |name: &str| probe.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir_all(dir(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir("lower").display(),
        dir("upper").display(),
        dir("work").display()
    );
    mount(Some("overlay"), &dir("merged"), Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    umount2(&dir("merged"), MntFlags::MNT_DETACH)?;
    Ok(())
}
