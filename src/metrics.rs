//! Prometheus metrics, the same way in every role: one registry a process, served on `/metrics` where the settings say so.
//!
//! Counters stand here when roles share them or a module counts something of its own; the Temporal SDK has its own exporter.

use std::net::SocketAddr;
use std::sync::LazyLock;

use axum::Router;
use axum::routing::get;
use prometheus::{HistogramVec, IntCounter, IntGauge, TextEncoder, histogram_opts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Requests answered, by route, method and status, with the time to the head of the answer.
pub static HTTP_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let buckets = vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
    let options = histogram_opts!("kiln_http_request_seconds", "Time to the head of an HTTP answer.", buckets);
    register(HistogramVec::new(options, &["method", "route", "status"]))
});
pub static EVENT_STREAMS: LazyLock<IntGauge> =
    LazyLock::new(|| register(IntGauge::new("kiln_event_streams", "Open event streams of builds.")));
pub static LOG_BYTES_RECEIVED: LazyLock<IntCounter> =
    LazyLock::new(|| register(IntCounter::new("kiln_log_received_bytes_total", "Bytes of log records received.")));
pub static BUILDS_STARTED: LazyLock<IntCounter> =
    LazyLock::new(|| register(IntCounter::new("kiln_builds_started_total", "Build runs this api has started.")));

/// Metrics are declared once, with constant names: a failure is a mistake in this file, found by the first test that runs.
#[expect(clippy::expect_used, reason = "a metric's declaration is wrong or right at every start alike")]
fn register<M: prometheus::core::Collector + Clone + 'static>(made: prometheus::Result<M>) -> M {
    let metric = made.expect("a metric's declaration");
    prometheus::register(Box::new(metric.clone())).expect("a metric's name is its own");
    metric
}

/// All metrics of this process in Prometheus' text format.
pub fn text() -> String {
    // Fails only for metrics without a name or with a foreign type, which the registry does not take.
    TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap_or_default()
}

/// Serves `/metrics` on `listen` (`host:port`) until `stop`; does nothing when `listen` is empty. Returns the address.
pub async fn serve(listen: &str, stop: CancellationToken) -> std::io::Result<Option<SocketAddr>> {
    if listen.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let app = Router::new().route("/metrics", get(async || text()));
    tokio::spawn(async move {
        let ended = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = ended {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
    Ok(Some(address))
}
