//! What the shipper counts, in the process's Prometheus registry.

use std::sync::LazyLock;

use prometheus::{IntCounter, IntGauge};

use crate::metrics::register;

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
