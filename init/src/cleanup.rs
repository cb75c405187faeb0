//! What a buildkitd that was killed leaves behind: the processes of its steps and their mounts. Its next life starts without them.

use std::fs;

use crate::{buildkitd, cgroups, console, sys};

pub fn after_buildkitd() {
    for group in cgroups::OF_BUILDKITD {
        let _ = fs::write(cgroups::procs_of(group).replace("cgroup.procs", "cgroup.kill"), "1");
    }
    cgroups::kill_builds();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in below(buildkitd::ROOT, &mounts) {
        if let Err(error) = sys::unmount(point, libc::MNT_DETACH) {
            console::say(&format!("cannot unmount {point}: {error}"));
        }
    }
    let _ = fs::remove_file(buildkitd::SOCKET);
}

/// Mount points below a directory, innermost first, from the text of `/proc/self/mountinfo`.
fn below<'a>(root: &str, mountinfo: &'a str) -> Vec<&'a str> {
    let inside = |point: &&str| point.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    let mut points: Vec<_> = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).filter(inside).collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    #[test]
    fn inner_mounts_come_first_and_neighbours_stay() {
        let mountinfo = "1 0 8:1 / /data rw - ext4 /dev/vdc rw\n2 1 0:40 / /data/buildkit/x/rootfs rw - overlay o rw\n\
                         3 2 0:41 / /data/buildkit/x/rootfs/proc rw - proc p rw\n4 1 0:42 / /data/buildkit2 rw - tmpfs t rw\n";
        let found = super::below("/data/buildkit", mountinfo);
        assert_eq!(found, ["/data/buildkit/x/rootfs/proc", "/data/buildkit/x/rootfs"]);
    }
}
