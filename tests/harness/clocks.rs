//! How quick the clocks of an installation under faults run, and how long outages last.
//!
//! What is promised is told in minutes. `make test` cannot wait for them: there outages are a tenth as long, and the clocks that must
//! tell a short outage from a long one are quicker too. `KILN_TRUE_TIMES=1`, which `deploy/faults` sets, leaves everything as it is
//! in production.

use std::time::Duration;

/// A fifth of the attempts' true times and a third of presence: a tenth of either would take a busy machine's breath for a fault.
const QUICK: &[&str] = &[
    "--set=attempts.heartbeat_ms=1000",
    "--set=attempts.cut_off_after_ms=15000",
    "--set=attempts.lost_after_ms=18000",
    "--set=cell.clocks.heartbeat_ms=1000",
    "--set=cell.clocks.lost_after_ms=4000",
    "--set=cell.clocks.host_patience_ms=6000",
    "--set=cell.clocks.retry_ms=3000",
];

pub fn are_true() -> bool {
    std::env::var_os("KILN_TRUE_TIMES").is_some_and(|value| value == "1")
}

/// What `kiln dev` has to be told for them.
pub fn flags() -> &'static [&'static str] {
    if are_true() { &[] } else { QUICK }
}

/// An outage that is promised to be endured for so many seconds.
pub fn outage(seconds: u64) -> Duration {
    if are_true() { Duration::from_secs(seconds) } else { Duration::from_millis(seconds * 100) }
}

/// A time that follows from the clocks, with the quick ones and with the true ones.
pub fn either(quick: u64, in_truth: u64) -> u64 {
    if are_true() { in_truth } else { quick }
}
