//! How this crate's metrics reach the process's Prometheus registry.

use prometheus::core::Collector;

/// Metrics are declared once, with constant names: a failure is a mistake where they are declared, found by the first test that runs.
#[expect(clippy::expect_used, reason = "a metric's declaration is wrong or right at every start alike")]
pub(crate) fn register<M: Collector + Clone + 'static>(made: prometheus::Result<M>) -> M {
    let metric = made.expect("a metric's declaration");
    prometheus::register(Box::new(metric.clone())).expect("a metric's name is its own");
    metric
}
