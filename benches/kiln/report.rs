//! What the rows have in common: samples, ratios, CPU time.

use std::process::Command;
use std::time::Instant;

/// Sorted milliseconds, printed as median, 99th percentile and worst.
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    pub fn at(&self, share: f64) -> f64 {
        let index = ((self.0.len() - 1) as f64 * share).round() as usize;
        self.0[index]
    }

    pub fn text(&self) -> String {
        let (median, p99, max) = (self.at(0.5), self.at(0.99), self.at(1.0));
        format!("median {median:.0} ms, p99 {p99:.0} ms, max {max:.0} ms (n={})", self.0.len())
    }
}

pub fn row(what: &str, ours: &Sample, theirs: &Sample, against: &str) {
    println!(
        "{what}: {} | {against}: {} | median {:+.0} ms, p99 {:+.0} ms, ratio {:.2}",
        ours.text(),
        theirs.text(),
        ours.at(0.5) - theirs.at(0.5),
        ours.at(0.99) - theirs.at(0.99),
        ours.at(0.5) / theirs.at(0.5),
    );
}

pub fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Wall and CPU milliseconds of a process.
pub fn timed(command: &mut Command) -> (f64, f64) {
    let before = children_cpu();
    let begun = Instant::now();
    assert!(command.status().unwrap().success(), "{command:?}");
    (milliseconds(begun), children_cpu() - before)
}

/// CPU milliseconds of all children that were waited for.
fn children_cpu() -> f64 {
    cpu(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)
}

/// CPU milliseconds of this process.
pub fn own_cpu() -> f64 {
    cpu(nix::sys::resource::UsageWho::RUSAGE_SELF)
}

fn cpu(who: nix::sys::resource::UsageWho) -> f64 {
    let usage = nix::sys::resource::getrusage(who).unwrap();
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    of(usage.user_time()) + of(usage.system_time())
}

/// CPU milliseconds of a running process, in steps of 10 ms.
pub fn process_cpu(pid: u32) -> f64 {
    ticks(pid, 0..2).expect("the process runs")
}

/// The same of a process with its children, those that have ended too. Children of these are not counted.
pub fn family_cpu(pid: u32) -> f64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let running = children.split_whitespace().filter_map(|child| ticks(child.parse().ok()?, 0..2));
    ticks(pid, 0..4).expect("the process runs") + running.sum::<f64>()
}

/// The sum of some of a process's four times, its own in user and system mode and those of the children it has waited for.
fn ticks(pid: u32, times: std::ops::Range<usize>) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let all = after_name.split(' ').skip(11);
    Some(all.skip(times.start).take(times.len()).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0)
}
