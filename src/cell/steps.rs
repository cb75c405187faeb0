//! What each step of a cell of processes may take, as in a guest: this program is what buildkitd runs as its runc and as the plugin of
//! its network, by names that lie in the cell's directory.
//!
//! ```text
//! <cell dir>/bin/runc ────────────► this program: puts the limits into the step's bundle, becomes runc-real
//!               /runc-real ───────► the pinned runc
//!               /step-limits.conf   the limits, and the cgroup of the cell's steps
//!               /kiln-step, /loopback ─► this program: the network of a step
//! ```
//!
//! The cgroup of all steps of the cell is made here with its own limits, in whatever hierarchies the machine has. What the kernel of
//! this machine cannot limit is said in the cell's log, and by `kiln cells show`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_init::runc::{self, Controllers};
use kiln_init::settings::StepLimits;
use kiln_init::steps::{LOOPBACK, PLUGIN};

use super::plan::{Plan, StepShare};

const CGROUPS: &str = "/sys/fs/cgroup";
/// Steps go before the daemons when memory is short.
const OOM_SCORE: i64 = 500;
/// Of the machine's memory, in percent, for all steps of a cell that has no limit of its own; as `deploy/systemd` has it.
const MEMORY_PERCENT: u64 = 80;

/// Where buildkitd finds what it runs for steps.
pub fn programs(plan: &Plan) -> PathBuf {
    plan.dir.join("bin")
}

/// Puts the programs in place and makes the cgroup of the steps. Gives what cannot be limited on this machine.
///
/// # Errors
/// When a file cannot be written: steps would have no limits at all.
pub fn set_up(plan: &Plan) -> anyhow::Result<Vec<String>> {
    let dir = programs(plan);
    put_programs(plan, &dir).with_context(|| format!("cannot put the programs of steps into {}", dir.display()))?;
    let controllers = Controllers::of_machine(plan.cgroup().trim_start_matches('/'));
    let limits = cgroup_limits(&plan.steps, memory_of_machine(), controllers);
    let refused = limit(Path::new(CGROUPS), &plan.cgroup(), controllers, &limits);
    // Swap is known to be counted by a file of the cgroup, once that is there.
    let controllers = Controllers::of_machine(plan.cgroup().trim_start_matches('/'));
    let missing = controllers.missing().into_iter().map(str::to_owned);
    Ok(missing.chain(refused).collect())
}

fn put_programs(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    let links = [(runc::NAME, &own), (runc::REAL, &plan.tools.runc), (PLUGIN, &own), (LOOPBACK, &own)];
    for (name, program) in links {
        std::os::unix::fs::symlink(program, dir.join(name))?;
    }
    fs::write(dir.join(runc::RULES_FILE), runc::rules_of(&step_limits(&plan.steps), &plan.cgroup()))?;
    Ok(())
}

fn step_limits(share: &StepShare) -> StepLimits {
    StepLimits {
        memory: (share.step_memory_bytes > 0).then_some(share.step_memory_bytes),
        pids: share.step_processes,
        weight: share.step_cpu_weight,
        oom_score: OOM_SCORE,
    }
}

/// What is written into the cgroup of all steps, by file; with cgroup v1 the file's controller comes first.
fn cgroup_limits(share: &StepShare, machine: u64, controllers: Controllers) -> Vec<(&'static str, String)> {
    let memory = if share.memory_bytes > 0 { share.memory_bytes } else { machine / 100 * MEMORY_PERCENT };
    let (swap, processes) = (share.swap_bytes, share.processes.to_string());
    let limits = match controllers.unified {
        true => [
            (controllers.memory, "memory.max", memory.to_string()),
            (controllers.memory, "memory.swap.max", swap.to_string()),
            (controllers.pids, "pids.max", processes),
            (controllers.cpu, "cpu.weight", share.cpu_weight.to_string()),
        ],
        // Memory first: the limit of both together is not below it.
        false => [
            (controllers.memory, "memory/memory.limit_in_bytes", memory.to_string()),
            (controllers.swap, "memory/memory.memsw.limit_in_bytes", memory.saturating_add(swap).to_string()),
            (controllers.pids, "pids/pids.max", processes),
            (controllers.cpu, "cpu/cpu.shares", (share.cpu_weight * 1024 / 100).max(2).to_string()),
        ],
    };
    limits.into_iter().filter(|(has, ..)| *has).map(|(_, file, value)| (file, value)).collect()
}

/// Makes the cgroup and limits it; says what the kernel refused.
fn limit(root: &Path, cgroup: &str, controllers: Controllers, limits: &[(&'static str, String)]) -> Vec<String> {
    let cgroup = cgroup.trim_start_matches('/');
    if controllers.unified {
        hand_down(root, cgroup);
    }
    let written = limits.iter().filter_map(|(file, value)| {
        let path = match (controllers.unified, file.split_once('/')) {
            (false, Some((controller, file))) => root.join(controller).join(cgroup).join(file),
            _ => root.join(cgroup).join(file),
        };
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let error = made.and_then(|()| write_existing(&path, value)).err()?;
        // A kernel that counts no swap has no such file; that is said once.
        (!file.ends_with("memory.swap.max")).then(|| format!("{file}: {error}"))
    });
    written.collect()
}

/// The kernel's files are there or are not; none is made.
fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::File::options().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// Lets all cgroups above the steps' pass their controllers on. Where one refuses, the limits below it say so.
fn hand_down(root: &Path, cgroup: &str) {
    let mut at = root.to_owned();
    for part in Path::new(cgroup) {
        for controller in ["+cpu", "+memory", "+pids"] {
            let _ = write_existing(&at.join("cgroup.subtree_control"), controller);
        }
        at.push(part);
        let _ = fs::create_dir(&at);
    }
    for controller in ["+cpu", "+memory", "+pids"] {
        let _ = write_existing(&at.join("cgroup.subtree_control"), controller);
    }
}

/// Bytes; nothing known is no limit.
fn memory_of_machine() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    total.map_or(u64::MAX / 2, |kib: u64| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Controllers = Controllers { unified: true, memory: true, swap: true, pids: true, cpu: true };

    #[test]
    fn all_steps_together_have_the_same_limits_in_either_version_of_cgroups() {
        let share = StepShare { swap_bytes: 7, ..StepShare::default() };
        let text = |controllers| {
            let limits = cgroup_limits(&share, 1000, controllers);
            limits.iter().map(|(file, value)| format!("{file} {value}")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(text(ALL), "memory.max 800\nmemory.swap.max 7\npids.max 16384\ncpu.weight 100");
        let split = Controllers { unified: false, ..ALL };
        assert_eq!(
            text(split),
            "memory/memory.limit_in_bytes 800\nmemory/memory.memsw.limit_in_bytes 807\npids/pids.max 16384\ncpu/cpu.shares 1024"
        );
        let chosen = cgroup_limits(&StepShare { memory_bytes: 5, ..share }, 1000, Controllers { cpu: false, ..ALL });
        assert_eq!(chosen.len(), 3);
        assert_eq!(chosen[0].1, "5");
    }

    /// Directories in place of the kernel's.
    #[test]
    fn what_the_kernel_refuses_is_said() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = root.path().join("pids/kiln-0a");
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("pids.max"), "max").unwrap();
        let split = Controllers { unified: false, ..ALL };
        let limits = cgroup_limits(&StepShare::default(), 1000, split);
        let refused = limit(root.path(), "/kiln-0a", split, &limits);
        assert_eq!(fs::read_to_string(cgroup.join("pids.max")).unwrap(), "16384");
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert!(refused[0].starts_with("memory/memory.limit_in_bytes: "), "{refused:?}");
    }

    #[test]
    fn steps_are_run_by_this_program_with_the_pinned_runc() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { dir: dir.path().to_owned(), ..Plan::example() };
        let bin = programs(&plan);
        for _ in 0..2 {
            put_programs(&plan, &bin).unwrap();
        }
        let link = |name: &str| fs::read_link(bin.join(name)).unwrap();
        assert_eq!(link(runc::REAL), plan.tools.runc);
        assert_eq!(
            [runc::NAME, PLUGIN, LOOPBACK].map(link),
            [std::env::current_exe().unwrap(), std::env::current_exe().unwrap(), std::env::current_exe().unwrap()]
        );
        let rules = fs::read_to_string(bin.join(runc::RULES_FILE)).unwrap();
        assert_eq!(rules, format!("max 4096 100 500 {}\n", plan.cgroup()));
    }
}
