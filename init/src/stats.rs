//! Numbers of the machine, for the host's metrics and for tests.

use std::fs;

use crate::cgroups::{BUILDS, DAEMONS, ROOT};
use crate::numbers::number_behind;

/// `name=value` words: memory in kB, processes and bytes by slice, PSI (share of the last 10 s in which everything stood still, percent).
pub fn line() -> String {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut words = vec![
        word("mem_total_kb", number_behind(&meminfo, "MemTotal:")),
        word("mem_available_kb", number_behind(&meminfo, "MemAvailable:")),
        word("swap_free_kb", number_behind(&meminfo, "SwapFree:")),
        word("init_rss_kb", number_behind(&status, "VmRSS:")),
    ];
    for (short, slice) in [("daemons", DAEMONS), ("builds", BUILDS)] {
        let number = |file: &str| read(slice, file).and_then(|text| text.trim().parse::<u64>().ok());
        words.push(word(&format!("{short}.memory"), number("memory.current")));
        words.push(word(&format!("{short}.pids"), number("pids.current")));
        let events = read(slice, "memory.events").unwrap_or_default();
        words.push(word(&format!("{short}.oom_kills"), number_behind(&events, "oom_kill ")));
        for resource in ["cpu", "memory", "io"] {
            let full = read(slice, &format!("{resource}.pressure")).and_then(|text| full_avg10(&text));
            words.push(word(&format!("{short}.{resource}_full"), full));
        }
    }
    words.join(" ")
}

fn word(name: &str, value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| format!("{name}=-"), |value| format!("{name}={value}"))
}

fn read(slice: &str, file: &str) -> Option<String> {
    fs::read_to_string(format!("{ROOT}/{slice}/{file}")).ok()
}

fn full_avg10(text: &str) -> Option<String> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split(' ').find_map(|word| word.strip_prefix("avg10=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_pressure_is_found() {
        let pressure = "some avg10=9.00 avg60=0 avg300=0 total=5\nfull avg10=4.25 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(full_avg10(pressure).as_deref(), Some("4.25"));
    }
}
