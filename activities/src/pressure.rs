//! How much of the time the two halves of a build machine stand still for want of something: the kernel's pressure stall information of
//! the slices (<https://docs.kernel.org/accounting/psi.html>), in a guest and on a plain machine under `deploy/systemd`.
//!
//! ```text
//! /sys/fs/cgroup/kiln-builds.slice               kiln-init puts it there in a guest
//! /sys/fs/cgroup/kiln.slice/kiln-builds.slice    systemd nests a slice by its name
//! ```
//!
//! Read when it is asked for, by Prometheus or by a build that does not move; nothing is kept.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, opts};

const CGROUPS: &str = "/sys/fs/cgroup";
const SLICES: [&str; 2] = ["daemons", BUILDS];
const BUILDS: &str = "builds";
const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];
/// A slice that stands still for less of the last minute is merely busy.
const STANDSTILL: f64 = 0.3;

/// The slices of this machine, where it has them.
#[derive(Debug, Clone)]
pub struct Slices(PathBuf);

impl Default for Slices {
    fn default() -> Self {
        Self::below(Path::new(CGROUPS))
    }
}

/// What a slice's processes waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standstill {
    pub resource: &'static str,
    /// The part of the last minute in which not one of them could go on, 0 to 1.
    pub share: f64,
}

impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the steps on this cell stood still {:.0} % of the last minute for want of {}",
            self.share * 100.0,
            self.resource
        )
    }
}

impl Slices {
    pub fn below(cgroups: &Path) -> Self {
        Self(cgroups.to_owned())
    }

    /// What the steps of all builds stand still for now, if they do.
    pub fn standstill(&self) -> Option<Standstill> {
        let share =
            |resource| self.share(BUILDS, resource, "full", "avg60").map(|share| Standstill { resource, share });
        let worst = RESOURCES.into_iter().filter_map(share).max_by(|a, b| a.share.total_cmp(&b.share));
        worst.filter(|worst| worst.share >= STANDSTILL)
    }

    /// Where the slice lies: looked for each time, as systemd removes a slice that nothing runs in.
    fn dir(&self, slice: &str) -> Option<PathBuf> {
        let name = format!("kiln-{slice}.slice");
        [self.0.join("kiln.slice").join(&name), self.0.join(&name)].into_iter().find(|dir| dir.is_dir())
    }

    /// `full`: none of the slice's processes could go on; `some`: at least one could not.
    fn share(&self, slice: &str, resource: &str, kind: &str, window: &str) -> Option<f64> {
        let text = fs::read_to_string(self.dir(slice)?.join(format!("{resource}.pressure"))).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let percent = line.split_whitespace().find_map(|word| word.strip_prefix(window)?.strip_prefix('='))?;
        Some(percent.parse::<f64>().ok()? / 100.0)
    }
}

/// `kiln_slice_pressure`, read at each scrape; nothing on a machine without slices.
pub struct PressureMetric {
    slices: Slices,
    gauge: GaugeVec,
}

impl PressureMetric {
    /// # Errors
    /// Never, unless the declaration in here is wrong.
    pub fn new(slices: Slices) -> prometheus::Result<Self> {
        let help = "Part of the last 10 s in which some or all (full) processes of a slice waited for a resource.";
        let gauge = GaugeVec::new(opts!("kiln_slice_pressure", help), &["slice", "resource", "kind"])?;
        Ok(Self { slices, gauge })
    }
}

impl Collector for PressureMetric {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for slice in SLICES {
            for resource in RESOURCES {
                for kind in ["some", "full"] {
                    if let Some(share) = self.slices.share(slice, resource, kind, "avg10") {
                        self.gauge.with_label_values(&[slice, resource, kind]).set(share);
                    }
                }
            }
        }
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps stand still for memory for this part of the last minute, percent.
    fn machine(memory: f64, parent: &str) -> tempfile::TempDir {
        let cgroups = tempfile::tempdir().unwrap();
        for slice in SLICES {
            let dir = cgroups.path().join(parent).join(format!("kiln-{slice}.slice"));
            fs::create_dir_all(&dir).unwrap();
            for resource in RESOURCES {
                let full = if (slice, resource) == (BUILDS, "memory") { memory } else { 0.5 };
                let text = format!(
                    "some avg10=50.00 avg60=9.00 avg300=0.00 total=5\nfull avg10=25.00 avg60={full:.2} avg300=0.00 total=5\n"
                );
                fs::write(dir.join(format!("{resource}.pressure")), text).unwrap();
            }
        }
        cgroups
    }

    #[test]
    fn what_the_steps_wait_for_is_named() {
        let (pressed, busy) = (machine(83.4, ""), machine(12.0, ""));
        let standstill = Slices::below(pressed.path()).standstill().unwrap();
        assert_eq!(
            standstill.to_string(),
            "the steps on this cell stood still 83 % of the last minute for want of memory"
        );
        assert_eq!(Slices::below(busy.path()).standstill(), None);
        assert_eq!(Slices::below(Path::new("/nowhere")).standstill(), None);
    }

    #[test]
    fn slices_are_found_where_systemd_nests_them() {
        let systemd = machine(83.4, "kiln.slice");
        assert_eq!(Slices::below(systemd.path()).standstill().unwrap().resource, "memory");
    }

    #[test]
    fn both_slices_are_measured() {
        let machine = machine(1.0, "kiln.slice");
        let families = PressureMetric::new(Slices::below(machine.path())).unwrap().collect();
        let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
        for slice in SLICES {
            let line = format!(r#"kiln_slice_pressure{{kind="full",resource="io",slice="{slice}"}} 0.25"#);
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 12);
        let nowhere = PressureMetric::new(Slices::below(Path::new("/nowhere"))).unwrap();
        assert!(nowhere.collect().iter().all(|family| family.get_metric().is_empty()));
    }
}
