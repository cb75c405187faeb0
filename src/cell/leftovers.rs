//! What a former life of the cell may have left on the host: mounts, cgroups, and state that names processes which are gone.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::plan::Plan;
use crate::terminal;

/// Removes it all. Nothing here can keep a cell from starting, so failures are only said.
pub fn clear(plan: &Plan) {
    let root = plan.buildkit_root();
    mounts_below(&root, &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        .iter()
        .for_each(|mount| unmount(mount));
    let _ = fs::remove_file(&plan.socket);
    // Names of network namespaces that ended with their cell.
    let _ = fs::remove_dir_all(root.join("net/cni"));
    remove_cgroups(plan);
}

/// Removes the cgroups of the cell's steps, which no process is in any more.
pub fn remove_cgroups(plan: &Plan) {
    cgroups(&plan.cgroup()).iter().for_each(|cgroup| remove_cgroup(cgroup));
}

/// Mount points below `root`, innermost first, from the text of `/proc/<pid>/mountinfo`.
///
/// A cell's mounts end with its mount namespace; these come from a daemon that was run without one.
fn mounts_below(root: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let point = |line: &str| line.split(' ').nth(4).map(|point| PathBuf::from(point.replace("\\040", " ")));
    let mut found: Vec<_> = mountinfo.lines().filter_map(point).filter(|point| point.starts_with(root)).collect();
    found.reverse();
    found
}

fn unmount(point: &Path) {
    if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
        terminal::note(format_args!("cannot unmount {}: {error}", point.display()));
    }
}

/// The cell's cgroup in each hierarchy: one below the root with cgroup v2, one a controller with v1.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = name.trim_start_matches('/');
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(name)).filter(|path| path.is_dir()).collect()
}

/// A cgroup is removed by `rmdir`, its children first; the kernel refuses while a process is in it.
fn remove_cgroup(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    if let Err(error) = fs::remove_dir(path) {
        terminal::note(format_args!("cannot remove the cgroup {}: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_mounts_come_first_and_neighbours_stay() {
        let mountinfo = "22 1 8:1 / /data rw - ext4 /dev/a rw\n\
                         31 22 0:40 / /data/my\\040cell/buildkit/run/x/rootfs rw - overlay overlay rw\n\
                         32 31 0:41 / /data/my\\040cell/buildkit/run/x/rootfs/proc rw - proc proc rw\n\
                         33 22 0:42 / /data/my\\040cell/buildkit2 rw - tmpfs tmpfs rw\n";
        let found = mounts_below(Path::new("/data/my cell/buildkit"), mountinfo);
        assert_eq!(
            found,
            [Path::new("/data/my cell/buildkit/run/x/rootfs/proc"), Path::new("/data/my cell/buildkit/run/x/rootfs"),]
        );
    }
}
