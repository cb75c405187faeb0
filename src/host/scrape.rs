//! `GET /cells/<cell>/metrics` of the agent: the metrics of a guest's builder, which only its host can reach.
//!
//! ```text
//! Prometheus ─► agent (telemetry.metrics_listen) ─► guest's own address, port 9464 ─► its builder
//! ```
//!
//! What a guest answers is bounded in size and time: a step that broke out of its namespaces could have written it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use activities::vm::find_clones;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use workflows::contract::CellId;

use crate::cell::{GuestNetwork, METRICS};
use crate::settings::Settings;

const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is passed on, bytes; a builder's own has some 50 KB.
const LARGEST: usize = 4 << 20;

struct Guests {
    cells: Vec<PathBuf>,
    http: reqwest::Client,
}

/// The routes of the agent beside its own metrics; none where cells are no guests.
///
/// # Errors
/// When no HTTP client can be made.
pub fn routes(settings: &Settings) -> reqwest::Result<Router> {
    if settings.host.driver == "process" {
        return Ok(Router::new());
    }
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    let guests = Guests { cells: settings.host.cells.clone(), http: http.build()? };
    Ok(Router::new().route("/cells/{cell}/metrics", get(scrape)).with_state(Arc::new(guests)))
}

async fn scrape(State(guests): State<Arc<Guests>>, Path(cell): Path<String>) -> Response {
    let Some(address) = cell.parse().ok().and_then(|cell| guests.address(&cell)) else {
        return (StatusCode::NOT_FOUND, format!("this host has no guest {cell}\n")).into_response();
    };
    match guests.read(&format!("http://{address}:{METRICS}/metrics")).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(why) => {
            (StatusCode::BAD_GATEWAY, format!("the builder of {cell} does not answer: {why}\n")).into_response()
        }
    }
}

impl Guests {
    /// The guest's own address at its last start.
    fn address(&self, cell: &CellId) -> Option<std::net::Ipv4Addr> {
        let named = |dir: &PathBuf| dir.file_name().is_some_and(|name| name == cell.as_str());
        let dir = self.cells.iter().cloned().chain(find_clones(&self.cells)).find(named)?;
        GuestNetwork::address_of(&dir)
    }

    async fn read(&self, url: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let mut answer =
            self.http.get(url).send().await.and_then(|answer| answer.error_for_status()).map_err(failed)?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if text.len() + chunk.len() > LARGEST {
                return Err(format!("its answer has more than {LARGEST} bytes"));
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_passed_on_up_to_its_limit() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let guest = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = guest.local_addr().unwrap();
        let app = Router::new()
            .route("/metrics", get(async || "kiln_up 1\n"))
            .route("/large", get(async || vec![b'#'; LARGEST + 1]))
            .route("/away", get(async || axum::response::Redirect::to("/metrics")));
        tokio::spawn(async move { axum::serve(guest, app).await.unwrap() });
        let guests = Guests {
            cells: vec![],
            http: reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap(),
        };
        assert_eq!(guests.read(&format!("http://{at}/metrics")).await.unwrap(), b"kiln_up 1\n");
        assert!(guests.read(&format!("http://{at}/large")).await.unwrap_err().contains("more than"));
        assert!(
            guests.read(&format!("http://{at}/away")).await.is_ok_and(|text| text.is_empty()),
            "nothing is followed"
        );
    }

    #[test]
    fn only_cells_of_the_host_are_asked_at_the_address_of_their_start() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let cell = dir.path().join("c1");
        std::fs::create_dir(&cell).unwrap();
        let guests = Guests { cells: vec![cell.clone()], http: reqwest::Client::new() };
        let address = |name: &str| guests.address(&name.parse().unwrap());
        assert_eq!(address("c1"), None, "it was never started");
        std::fs::write(cell.join("subnet"), "10.64.3.0/24").unwrap();
        assert_eq!(address("c1"), Some([10, 64, 3, 2].into()));
        assert_eq!(address("c2"), None);
    }
}
