//! Prometheus metrics, the same way in every role: one registry a process, served on `/metrics` where the settings say so.
//!
//! What the api counts stands here; what the `activities` crate counts, beside what it counts. All of them reach the same
//! registry. The Temporal SDK's own metrics need an exporter of their own and are not among them.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use prometheus::{HistogramVec, IntCounter, IntGauge, IntGaugeVec, TextEncoder, histogram_opts, opts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::listen::{self, Limits, Listener};

/// Scrapers there are few of.
const CONNECTIONS: usize = 64;
const LIMITS: Limits = Limits { idle: Duration::from_secs(60), stall: Duration::from_secs(30) };

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

/// Always 1: which role and version this process is.
static INFO: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register(IntGaugeVec::new(opts!("kiln_info", "The role and version of this process."), &["role", "version"]))
});

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

/// Serves `/metrics` of this role, and what else it has to show, on `listen` (`host:port`) until `stop`; nothing when
/// `listen` is empty. Returns the address.
pub async fn serve(
    role: &str,
    listen: &str,
    more: Router,
    stop: CancellationToken,
) -> std::io::Result<Option<SocketAddr>> {
    INFO.with_label_values(&[role, env!("CARGO_PKG_VERSION")]).set(1);
    if listen.is_empty() {
        return Ok(None);
    }
    let listener = Listener::on(TcpListener::bind(listen).await?, None, &[], CONNECTIONS);
    let address = listener.local_addr()?;
    let app = more.route("/metrics", get(async || text()));
    tokio::spawn(listen::serve(listener, app, LIMITS, stop));
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_serves_its_metrics_until_it_stops() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let stop = CancellationToken::new();
        let address = serve("builder", "127.0.0.1:0", Router::new(), stop.clone()).await.unwrap().unwrap();
        let text = reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap();
        assert!(text.contains(r#"kiln_info{role="builder","#), "{text}");
        assert_eq!(serve("builder", "", Router::new(), stop.clone()).await.unwrap(), None);
        let taken = serve("builder", &address.to_string(), Router::new(), stop.clone()).await;
        assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        stop.cancel();
    }
}
