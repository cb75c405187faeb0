//! What the shipper counts, in the process's Prometheus registry.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntGauge};

/// Bytes in the spool: what waits for the receiver, and acknowledged records of segments still written to.
pub static SPOOL_BYTES: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("kiln_log_spool_bytes", "Bytes of build logs in the spool.")));
/// Records left out of builds' logs, for whatever reason.
pub static CUT_RECORDS: LazyLock<IntCounter> = LazyLock::new(|| {
    register(IntCounter::new(
        "kiln_log_cut_records_total",
        "Log records left out: spool full, over the cap, slow disk.",
    ))
});

/// Metrics are declared once, with constant names: a failure is a mistake in this file, found by the first test that runs.
#[expect(clippy::expect_used, reason = "a metric's declaration is wrong or right at every start alike")]
fn register<M: Collector + Clone + 'static>(made: prometheus::Result<M>) -> M {
    let metric = made.expect("a metric's declaration");
    prometheus::register(Box::new(metric.clone())).expect("a metric's name is its own");
    metric
}
