//! What the forwarder counts, in the process's Prometheus registry.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, histogram_opts, opts};

use super::unresolved::Trouble;
use crate::metrics::register;

/// Queries of daemons and steps, by where their answer came from.
static QUERIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help =
        "Queries for names: answered from the cache, by an upstream, stale; failed; refused; dropped as too many.";
    register(IntCounterVec::new(opts!("kiln_dns_queries_total", help), &["answer"]))
});
static UPSTREAM_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let buckets = vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0];
    let options = histogram_opts!("kiln_dns_upstream_seconds", "Time of one exchange with an upstream.", buckets);
    register(HistogramVec::new(options, &["upstream", "outcome"]))
});
static CACHE_ENTRIES: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("kiln_dns_cache_entries", "Answers in the cache of names.")));
static CACHE_BYTES: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("kiln_dns_cache_bytes", "Bytes that the cache of names takes.")));

/// Where an answer came from, or what became of the query.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Cache,
    Upstream,
    Stale,
    Failed,
    Refused,
    Dropped,
}

pub fn answered(answer: Answer) {
    let label = match answer {
        Answer::Cache => "cache",
        Answer::Upstream => "upstream",
        Answer::Stale => "stale",
        Answer::Failed => "failed",
        Answer::Refused => "refused",
        Answer::Dropped => "dropped",
    };
    QUERIES.with_label_values(&[label]).inc();
}

pub fn asked<T>(upstream: SocketAddr, took: Duration, outcome: &Result<T, Trouble>) {
    let outcome = match outcome {
        Ok(_) => "answered",
        Err(Trouble::Silent | Trouble::Unreachable(_)) => "silent",
        Err(Trouble::Said(_) | Trouble::Garbled(_)) => "failed",
    };
    UPSTREAM_SECONDS.with_label_values(&[upstream.to_string().as_str(), outcome]).observe(took.as_secs_f64());
}

pub fn cached((entries, bytes): (usize, usize)) {
    CACHE_ENTRIES.set(i64::try_from(entries).unwrap_or(i64::MAX));
    CACHE_BYTES.set(i64::try_from(bytes).unwrap_or(i64::MAX));
}
