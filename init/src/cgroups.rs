//! The two halves of the machine, as cgroup v2 trees.
//!
//! ```text
//! /
//! ├── kiln-daemons.slice      weight 1000, a floor of memory, no swap
//! │   ├── init                PID 1 and its helpers
//! │   ├── buildkitd
//! │   ├── runc                what starts and ends steps, with a weight of 25 to buildkitd's 100
//! │   └── builder
//! └── kiln-builds.slice       idle (what the daemons leave), the rest of memory, all of swap
//!     └── buildkit/<id>       one RUN step, limits set by the runc wrapper
//! ```

use std::fs;
use std::io;

use crate::numbers::memory_total;
use crate::settings::Slices;

pub const ROOT: &str = "/sys/fs/cgroup";
pub const DAEMONS: &str = "kiln-daemons.slice";
pub const BUILDS: &str = "kiln-builds.slice";
/// Those of the daemons slice in which what belongs to buildkitd runs.
pub const OF_BUILDKITD: [&str; 2] = ["buildkitd", RUNC];
pub const RUNC: &str = "runc";
const CONTROLLERS: &str = "+cpu +cpuset +memory +io +pids";
/// Below this a build slice would be of no use, whatever the floor.
const LEAST_FOR_BUILDS: u64 = 64 << 20;

pub fn set_up(slices: &Slices) -> Result<(), String> {
    let total = memory_total().map_err(|error| format!("cannot read how much memory there is: {error}"))?;
    for (file, value) in plan(slices, total) {
        write(&file, &value).map_err(|error| format!("cgroup: cannot write '{value}' to {file}: {error}"))?;
    }
    Ok(())
}

/// What is written, in order; a file that ends with a slash is a directory to be made.
fn plan(slices: &Slices, total: u64) -> Vec<(String, String)> {
    let line = |file: &str, value: String| (file.to_owned(), value);
    let builds = slices.builds_memory.unwrap_or(total.saturating_sub(slices.daemons_floor)).max(LEAST_FOR_BUILDS);
    // The kernel kills in a slice only at its hard limit: the soft one alone makes a step crawl for ever. It stands just below, so that
    // page cache is given up before the limit is met.
    let soft = builds - builds / 32;
    // An idle group makes way at once; by weight alone a daemon that wakes waits for the step's turn to end.
    let processor = match slices.builds_weight {
        None => line("kiln-builds.slice/cpu.idle", "1".into()),
        Some(weight) => line("kiln-builds.slice/cpu.weight", weight.to_string()),
    };
    vec![
        line("kiln-daemons.slice/init/", String::new()),
        line("kiln-daemons.slice/buildkitd/", String::new()),
        line("kiln-daemons.slice/builder/", String::new()),
        line("kiln-daemons.slice/runc/", String::new()),
        line("kiln-builds.slice/", String::new()),
        line("kiln-daemons.slice/init/cgroup.procs", "1".into()),
        line("cgroup.subtree_control", CONTROLLERS.into()),
        line("kiln-daemons.slice/cgroup.subtree_control", CONTROLLERS.into()),
        line("kiln-builds.slice/cgroup.subtree_control", CONTROLLERS.into()),
        line("kiln-daemons.slice/cpu.weight", slices.daemons_weight.to_string()),
        // In buildkitd's own group eight steps that start leave it a ninth of its time.
        line("kiln-daemons.slice/runc/cpu.weight", "25".into()),
        line("kiln-daemons.slice/memory.min", slices.daemons_floor.to_string()),
        line("kiln-daemons.slice/memory.swap.max", "0".into()),
        processor,
        line("kiln-builds.slice/memory.max", builds.to_string()),
        line("kiln-builds.slice/memory.high", soft.to_string()),
        line("kiln-builds.slice/pids.max", slices.builds_pids.to_string()),
    ]
}

fn write(file: &str, value: &str) -> io::Result<()> {
    let path = format!("{ROOT}/{file}");
    if path.ends_with('/') { fs::create_dir_all(path) } else { fs::write(path, value) }
}

/// Kills every process of the steps: those of a buildkitd that was killed live on without it.
pub fn kill_builds() {
    let _ = fs::write(format!("{ROOT}/{BUILDS}/cgroup.kill"), "1");
}

/// The file through which a process joins a daemon's cgroup.
pub fn procs_of(daemon: &str) -> String {
    format!("{ROOT}/{DAEMONS}/{daemon}/cgroup.procs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(builds_memory: Option<u64>) -> Slices {
        Slices { daemons_weight: 1000, daemons_floor: 256 << 20, builds_weight: None, builds_memory, builds_pids: 9 }
    }

    fn value(plan: &[(String, String)], file: &str) -> u64 {
        plan.iter().find(|(name, _)| name == file).unwrap().1.parse().unwrap()
    }

    #[test]
    fn builds_get_what_the_daemons_floor_leaves() {
        let plan = plan(&slices(None), 1536 << 20);
        assert_eq!(value(&plan, "kiln-builds.slice/memory.max"), 1280 << 20);
        assert!(value(&plan, "kiln-builds.slice/memory.high") < 1280 << 20);
        assert_eq!(value(&plan, "kiln-daemons.slice/memory.min"), 256 << 20);
    }

    #[test]
    fn steps_make_way_for_the_daemons_unless_they_have_a_weight() {
        let plan = |builds_weight| plan(&Slices { builds_weight, ..slices(None) }, 1 << 30);
        let has = |plan: &[(String, String)], file: &str| plan.iter().any(|(name, _)| name == file);
        assert_eq!(value(&plan(None), "kiln-builds.slice/cpu.idle"), 1);
        assert_eq!(value(&plan(Some(70)), "kiln-builds.slice/cpu.weight"), 70);
        // The kernel takes no weight for an idle group.
        assert!(
            !has(&plan(None), "kiln-builds.slice/cpu.weight") && !has(&plan(Some(70)), "kiln-builds.slice/cpu.idle")
        );
    }

    #[test]
    fn a_small_machine_still_has_a_builds_slice() {
        assert_eq!(value(&plan(&slices(None), 128 << 20), "kiln-builds.slice/memory.max"), LEAST_FOR_BUILDS);
        assert_eq!(value(&plan(&slices(Some(1 << 30)), 128 << 20), "kiln-builds.slice/memory.max"), 1 << 30);
    }
}
