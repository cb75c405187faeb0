//! What the clock's checks find, in the process's Prometheus registry.

use std::sync::LazyLock;

use prometheus::{Gauge, IntCounterVec, opts};

use crate::metrics::register;

pub static OFFSET_SECONDS: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "How far the clock was behind the time servers at the last check; negative: ahead.";
    register(Gauge::new("kiln_clock_offset_seconds", help))
});
static CHECKS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Checks of the clock: right, slewed, stepped, left wrong, no server answered.";
    register(IntCounterVec::new(opts!("kiln_clock_checks_total", help), &["outcome"]))
});

pub fn checked(outcome: &str) {
    CHECKS.with_label_values(&[outcome]).inc();
}
