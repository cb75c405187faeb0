//! `kiln host plan`: how this machine would be split into guests, without starting any.
//!
//! Reads the machine and the settings, changes nothing. For both programs that run guests. [`Plan::of`] is pure.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::Serialize;
use vm::firecracker;

use crate::settings::{self, Settings};

/// What QEMU itself takes beside a guest's memory, MiB; measured at some 100 with a disk that is busy.
const QEMU_MIB: u64 = 256;
/// What the host keeps for itself: memory and processors for its agent, its page cache and what runs the guests' disks.
const HOST_MIB: u64 = 2048;
const GIB: u64 = 1 << 30;

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub processors: u64,
    pub memory_mib: u64,
    /// Set aside as huge pages.
    pub huge_pages_mib: u64,
    /// Free where the cells' directories are.
    pub disk_gib: u64,
}

/// A cell's part of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    pub cell: String,
    /// The first and the last processor it is bound to; none where cells are not pinned.
    pub processors: Option<(u64, u64)>,
}

/// How the machine would be split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub machine: Machine,
    pub vcpus: u64,
    pub memory_mib: u64,
    pub disk_gib: u64,
    /// How many such cells the machine carries, and what runs out first.
    pub fits: u64,
    pub limit: &'static str,
    pub cells: Vec<Share>,
    /// The most cells there may be, clones among them; none where there is no such limit.
    pub max_cells: Option<u64>,
    /// Why the cells of the settings cannot all run as they are set.
    pub problems: Vec<String>,
}

impl Machine {
    /// This one; disks are looked at where the first cell is, or here.
    ///
    /// # Errors
    /// When `/proc/meminfo` or the disk cannot be read.
    pub fn this(cells: &[PathBuf]) -> anyhow::Result<Self> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let kib = |name: &str| -> u64 {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let place = cells.iter().find_map(|dir| dir.ancestors().find(|dir| dir.is_dir())).unwrap_or(Path::new("."));
        let disk = statvfs(place)?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            processors: processors as u64,
            memory_mib: kib("MemTotal") >> 10,
            huge_pages_mib: (kib("HugePages_Total") * kib("Hugepagesize")) >> 10,
            disk_gib: disk.blocks_available() * disk.fragment_size() / GIB,
        })
    }
}

impl Plan {
    /// For the cells of the settings.
    pub fn of(machine: Machine, settings: &Settings) -> Self {
        let guest = &settings.guest;
        let (vcpus, disk_gib) = (u64::from(guest.vcpus), guest.disk_gib + guest.swap_gib);
        let (fits, limit) = capacity(&machine, guest);
        let cells: Vec<_> =
            settings.host.cells.iter().enumerate().map(|(place, dir)| share(place, dir, guest)).collect();
        let mut problems = Vec::new();
        let (named, max) = (cells.len() as u64, settings.host.max_cells as u64);
        if named > fits {
            problems.push(format!("host.cells names {named} cells and {fits} fit: {limit} is what runs out"));
        } else if max > fits {
            problems.push(format!("host.max_cells is {max} and {fits} fit: {limit} is what runs out"));
        }
        if settings.host.driver == "firecracker" {
            problems.extend(firecracker::unfit_size(guest.vcpus, guest.memory_mib, guest.huge_pages));
        }
        let max_cells = (max > 0).then_some(max);
        Self { machine, vcpus, memory_mib: guest.memory_mib, disk_gib, fits, limit, cells, max_cells, problems }
    }
}

/// How many guests the machine carries. Processors count where cells are pinned; elsewhere guests share them.
fn capacity(machine: &Machine, guest: &settings::Guest) -> (u64, &'static str) {
    let usable = machine.memory_mib.saturating_sub(HOST_MIB);
    let mut limits = vec![(machine.disk_gib / (guest.disk_gib + guest.swap_gib).max(1), "disk")];
    if guest.huge_pages {
        limits.push((machine.huge_pages_mib / guest.memory_mib.max(1), "memory in huge pages (vm.nr_hugepages)"));
    } else {
        limits.push((usable / (guest.memory_mib + QEMU_MIB), "memory"));
    }
    if guest.pin {
        limits.push((machine.processors / u64::from(guest.vcpus).max(1), "processors"));
    }
    limits.into_iter().min().unwrap_or((0, "memory"))
}

fn share(place: usize, dir: &Path, guest: &settings::Guest) -> Share {
    let (place, each) = (place as u64, u64::from(guest.vcpus));
    let cell = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Share { cell, processors: guest.pin.then(|| (place * each, (place + 1) * each - 1)) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "machine   {} processors, {} MiB of memory ({} in huge pages), {} GiB of disk free",
            machine.processors, machine.memory_mib, machine.huge_pages_mib, machine.disk_gib
        )?;
        writeln!(
            f,
            "a cell    {} processors, {} MiB of memory, {} GiB of disk",
            self.vcpus, self.memory_mib, self.disk_gib
        )?;
        writeln!(f, "fits      {} cells; {} is what runs out first", self.fits, self.limit)?;
        for share in &self.cells {
            match share.processors {
                Some((first, last)) => writeln!(f, "  {}  processors {first} to {last}", share.cell)?,
                None => writeln!(f, "  {}  all processors", share.cell)?,
            }
        }
        if let Some(most) = self.max_cells {
            writeln!(f, "at most   {most} cells, clones among them (host.max_cells)")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "problem   {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large() -> Machine {
        Machine { processors: 256, memory_mib: 540_000, huge_pages_mib: 0, disk_gib: 4000 }
    }

    fn settings(cells: usize) -> Settings {
        let mut settings = Settings::default();
        settings.host.cells = (1..=cells).map(|n| format!("/cells/c{n}").into()).collect();
        settings.guest =
            settings::Guest { vcpus: 32, memory_mib: 65_536, disk_gib: 400, pin: true, ..settings::Guest::default() };
        settings
    }

    #[test]
    fn a_large_host_is_split_in_eight() {
        let plan = Plan::of(large(), &settings(8));
        assert!(plan.problems.is_empty(), "{:?}", plan.problems);
        insta::assert_snapshot!(plan.to_string(), @r"
        machine   256 processors, 540000 MiB of memory (0 in huge pages), 4000 GiB of disk free
        a cell    32 processors, 65536 MiB of memory, 400 GiB of disk
        fits      8 cells; memory is what runs out first
          c1  processors 0 to 31
          c2  processors 32 to 63
          c3  processors 64 to 95
          c4  processors 96 to 127
          c5  processors 128 to 159
          c6  processors 160 to 191
          c7  processors 192 to 223
          c8  processors 224 to 255
        ");
    }

    #[test]
    fn clones_have_to_fit_as_well() {
        let mut settings = settings(4);
        settings.host.max_cells = 8;
        let plan = Plan::of(large(), &settings);
        assert!(
            plan.problems.is_empty() && plan.to_string().contains("at most   8 cells, clones among them"),
            "{plan}"
        );
        settings.host.max_cells = 9;
        assert_eq!(Plan::of(large(), &settings).problems, ["host.max_cells is 9 and 8 fit: memory is what runs out"]);
    }

    #[test]
    fn what_firecracker_does_not_take_is_a_problem_of_its_cells() {
        let problems = |driver: &str, change: fn(&mut settings::Guest)| {
            let mut settings = settings(2);
            settings.host.driver = driver.into();
            change(&mut settings.guest);
            Plan::of(Machine { huge_pages_mib: 400_000, ..large() }, &settings).problems
        };
        let many = |guest: &mut settings::Guest| guest.vcpus = 64;
        let odd = |guest: &mut settings::Guest| (guest.huge_pages, guest.memory_mib) = (true, 65_537);
        assert_eq!(problems("firecracker", many), ["a guest of Firecracker has at most 32 processors, not 64"]);
        let said = "with huge pages, which have 2 MiB, a guest's memory cannot be 65537 MiB";
        assert_eq!(problems("firecracker", odd), [said]);
        assert_eq!(problems("firecracker", |guest| guest.huge_pages = true), [""; 0]);
        assert_eq!((problems("qemu", many), problems("qemu", odd)), (vec![], vec![]));
    }

    #[test]
    fn what_runs_out_is_named() {
        let limit = |change: fn(&mut Settings)| {
            let mut settings = settings(9);
            change(&mut settings);
            let plan = Plan::of(large(), &settings);
            (plan.fits, plan.limit, plan.problems.len())
        };
        assert_eq!(limit(|settings| settings.guest.memory_mib = 1024), (8, "processors", 1));
        assert_eq!(limit(|settings| settings.guest.disk_gib = 1000), (4, "disk", 1));
        assert_eq!(limit(|settings| settings.guest.huge_pages = true).0, 0);
        assert_eq!(limit(|settings| (settings.guest.pin, settings.guest.memory_mib) = (false, 8192)).2, 0);
    }
}
