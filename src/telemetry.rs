//! What Kiln says of itself: log lines on standard error, spans over OTLP where that is set.
//!
//! `KILN_LOG` filters both (`info`, `kiln=debug,activities::oci=trace`, …). Standard output belongs to the commands.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::settings::{self, LOG_FILTER};
use crate::terminal;

/// How long the last spans may take to leave when the process ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);
/// How long one export may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);

/// Hold it until the process ends, then [`Telemetry::flush`] it.
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

/// Starts telemetry for the whole process; `role` is the service name `kiln-<role>`. Call it once, inside the runtime.
///
/// # Errors
/// When `KILN_LOG` is no filter or the OTLP endpoint cannot be used.
pub fn start(settings: &settings::Telemetry, role: &str, default_filter: &str) -> anyhow::Result<Telemetry> {
    let filter = match std::env::var(LOG_FILTER) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).with_context(|| format!("{LOG_FILTER}={text} is no log filter"))?
        }
        _ => EnvFilter::new(default_filter),
    };
    let spans = match settings.otlp_endpoint.as_str() {
        "" => None,
        endpoint => Some(exporter(endpoint, role)?),
    };
    // It would report a standard error that cannot be written on standard error, and panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = match settings.log_format.as_str() {
        "json" => lines.json().flatten_event(true).boxed(),
        _ => lines.with_ansi(terminal::shows_colours(&io::stderr())).boxed(),
    };
    let exported = spans.as_ref().map(|spans| tracing_opentelemetry::layer().with_tracer(spans.tracer("kiln")));
    tracing_subscriber::registry().with(exported).with(lines).with(filter).try_init()?;
    Ok(Telemetry { spans })
}

fn exporter(endpoint: &str, role: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_DEADLINE)
        .build()
        .with_context(|| format!("telemetry.otlp_endpoint = {endpoint} cannot be used"))?;
    let resource = Resource::builder().with_service_name(format!("kiln-{role}")).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Telemetry {
    /// Sends what is left. What cannot be sent in time is lost, and said so.
    pub fn flush(self) {
        if let Some(Err(error)) = self.spans.map(|spans| spans.shutdown_with_timeout(FLUSH_PATIENCE)) {
            terminal::note(format_args!("kiln: the last spans were not exported: {error}"));
        }
    }
}
