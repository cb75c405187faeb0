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
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum()
}
