//! `kiln api`: the front door. HTTP/JSON for clients and cells, server-sent events for progress, and the receiver of build logs.
//!
//! It is stateless beside the store, Temporal, object storage and the directory of running builds' logs. Handlers translate: what
//! a request means is decided in the `activities` crate, what a build does in its workflow. Every request but those for `/healthz` and
//! `/openapi.json` has a principal ([`principal`]), and a handler reaches the api's parts only through an extractor that says what the
//! principal may do ([`access`]).

mod access;
mod audit;
mod builds;
mod cells;
mod engine;
mod error;
mod extract;
mod keyring;
mod logs;
mod oidc;
mod openapi;
mod pools;
mod principal;
mod projects;
mod quotas;
mod secrets;
mod snapshots;
mod sweep;
#[cfg(test)]
mod tests;
mod tokens;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use activities::objects::ObjectStore;
use activities::sealed::Recipient;
use activities::snapshots::SnapshotService;
use activities::store::{ProjectRow, Store};
use anyhow::Context as _;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::MethodRouter;
use axum::{Extension, Json, Router};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use workflows::contract::{FailureClass, INPUT_LIMIT, ProjectName};

use crate::listen::{self, Limits, Listener};
use crate::metrics;
use crate::settings::Settings;
use access::{Gate, OperatorAccess, PublicAccess, delete, get, post, put};
pub use audit::AuditEntry;
pub use cells::{CellInfo, CellOrder, CellOrdered, CellView};
use engine::Engine;
use error::ApiError;
use extract::BodyLimit;
use keyring::Keyring;
use logs::LogHub;
use oidc::Exchange;
pub use oidc::{ClaimRule, ExchangeRequest, Exchanged, LONGEST_S, SHORTEST_S, TrustInfo, TrustRule};
pub use tokens::{TokenInfo, TokenIssued, TokenRequest, Whoami};
use watch::Watcher;

/// How long a request may take, but for event streams. The longest is a manifest with thousands of packs to look up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// What a connection may leave undone. An event stream says something every few seconds, and no other request takes
/// as long as [`REQUEST_TIMEOUT`].
const LIMITS: Limits = Limits { idle: Duration::from_secs(30), stall: Duration::from_secs(150) };
/// How long open requests and streams may keep the process after it was asked to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a presigned upload is valid.
const PRESIGN_EXPIRY: Duration = Duration::from_secs(3600);
/// Most bodies are small.
const BODY_LIMIT: usize = 64 << 10;

/// What handlers share.
pub struct App {
    settings: Settings,
    store: Store,
    keyring: Arc<Keyring>,
    engine: Arc<Engine>,
    exchange: Exchange,
    objects: ObjectStore,
    snapshots: SnapshotService,
    logs: Arc<LogHub>,
    watcher: Arc<Watcher>,
    streams: quotas::Streams,
    /// `None` when no key is set: then credentials are refused.
    recipient: Option<Recipient>,
    stop: CancellationToken,
}

type Shared = Arc<App>;

impl App {
    async fn new(settings: Settings, stop: CancellationToken) -> anyhow::Result<Self> {
        let store = Store::open(settings.store.url.reveal()).await.context("cannot open the store")?;
        let keyring = Arc::new(Keyring::new(store.clone(), settings.api.token.reveal()));
        let objects = settings.objects().context("cannot use object storage")?;
        let snapshots = SnapshotService::new(objects.clone(), settings.caps(), PRESIGN_EXPIRY);
        let logs = LogHub::new(&settings.logs.dir, store.clone(), keyring.clone(), objects.clone())
            .with_context(|| format!("cannot keep logs in {}", settings.logs.dir.display()))?;
        let recipient = match settings.seal.recipient.as_str() {
            "" => None,
            text => Some(text.parse().context("seal.recipient")?),
        };
        let engine = Engine::new(settings.frontend());
        let exchange = Exchange::new(settings.egress("kiln-api")?);
        Ok(Self {
            settings,
            store,
            keyring,
            engine: Arc::new(engine),
            exchange,
            objects,
            snapshots,
            logs: Arc::new(logs),
            watcher: Arc::default(),
            streams: quotas::Streams::default(),
            recipient,
            stop,
        })
    }

    /// The project of this name; 404 when there is none.
    async fn project(&self, name: &ProjectName) -> Result<ProjectRow, ApiError> {
        self.store.project(name).await?.ok_or_else(|| no_project(name))
    }

    /// The project of this name for a request that brings something into it: made on first use where the settings say so.
    async fn project_in_use(&self, name: &ProjectName) -> Result<ProjectRow, ApiError> {
        match self.settings.api.create_projects {
            true => match self.store.project(name).await? {
                Some(project) => Ok(project),
                None => Ok(self.store.create_project(name).await?),
            },
            false => self.project(name).await,
        }
    }
}

fn no_project(name: &ProjectName) -> ApiError {
    ApiError::not_found(format!("there is no project {name}; create it with `kiln projects create {name}`"))
}

/// Runs the role until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let (api, logs) = (&settings.api, &settings.logs);
    let pair = (api.tls_cert.as_path(), api.tls_key.as_path());
    let http = Listener::bind(&api.listen, "api.listen", pair, &["h2", "http/1.1"], api.max_connections).await?;
    let pair = (logs.tls_cert.as_path(), logs.tls_key.as_path());
    let receiver = Listener::bind(&logs.listen, "logs.listen", pair, &[], logs.max_connections).await?;
    let app = Arc::new(App::new(settings, stop.clone()).await?);
    tracing::info!(
        http = %http.local_addr()?, https = http.is_tls(),
        logs = %receiver.local_addr()?, logs_tls = receiver.is_tls(),
        "the api listens"
    );
    serve(app, http, receiver, stop).await
}

async fn serve(app: Shared, http: Listener, receiver: Listener, stop: CancellationToken) -> anyhow::Result<()> {
    let background = tokio::spawn({
        let (app, stop) = (app.clone(), stop.clone());
        async move {
            tokio::join!(
                logs::serve(receiver, app.logs.clone(), stop.clone()),
                logs::archive_ended_runs(app.logs.clone(), stop.clone()),
                watch::run(app.watcher.clone(), app.store.clone(), app.engine.clone(), stop.clone()),
                keyring::run(app.keyring.clone(), stop.clone()),
                sweep::run(app.store.clone(), app.objects.clone(), stop),
            );
        }
    });
    let store = app.store.clone();
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = listen::serve(http, router(app), LIMITS, stop.clone()) => {}
        () = drained => tracing::info!("closing connections that are still open"),
    }
    stop.cancel();
    background.await.context("a background task of the api failed")?;
    store.close().await;
    Ok(())
}

fn router(app: Shared) -> Router {
    let v1 = audit::Routes::new(&app.store)
        .route("/projects", post(projects::create))
        .route("/projects", get(projects::list))
        .route("/projects/{project}", get(projects::show))
        .route("/projects/{project}/settings", put(projects::set))
        .route("/projects/{project}/snapshots/latest", get(snapshots::latest))
        .route("/projects/{project}/snapshots", sized(post(snapshots::begin), snapshots::BEGIN_LIMIT))
        .route("/projects/{project}/snapshots/{id}", sized(put(snapshots::commit), snapshots::MANIFEST_LIMIT))
        .route("/projects/{project}/secrets", sized(post(secrets::seal), secrets::LIMIT))
        .route("/projects/{project}/builds", sized(post(builds::start), INPUT_LIMIT))
        .route("/builds", get(builds::list))
        .route("/builds/{build}", get(builds::show))
        .route("/builds/{build}/cancel", post(builds::cancel))
        .route("/builds/{build}/retry", post(builds::retry))
        .route("/cells", get(cells::list))
        .route("/cells/{cell}", get(cells::show))
        .route("/cells/{cell}/drain", post(cells::drain))
        .route("/cells/{cell}/undrain", post(cells::undrain))
        .route("/cells/{cell}/restart", post(cells::restart))
        .route("/cells/{cell}/update", post(cells::update))
        .route("/cells/{cell}/clone", post(cells::clone))
        .route("/cells/{cell}/delete", post(cells::delete))
        .route("/cells/{cell}/credential", post(tokens::cell_credential))
        .route("/cells/hints", post(cells::report))
        .route("/pools", get(pools::list))
        .route("/pools/{pool}", get(pools::show))
        .route("/pools/{pool}/settings", put(pools::set))
        .route("/pools/{pool}/cells/{cell}", delete(pools::remove))
        .route("/tokens", post(tokens::create))
        .route("/tokens", get(tokens::list))
        .route("/tokens/{id}", delete(tokens::revoke))
        .route("/principal", get(tokens::whoami))
        .route("/projects/{project}/trust", post(oidc::routes::add))
        .route("/projects/{project}/trust", get(oidc::routes::list))
        .route("/projects/{project}/trust/{rule}", delete(oidc::routes::remove))
        .route("/audit", get(audit::list));
    let guarded = Router::new()
        .nest("/v1", v1.into_router())
        .route("/metrics", get(async |_: OperatorAccess| metrics::text()))
        .layer(Extension(BodyLimit(BODY_LIMIT)))
        .layer(from_fn(limit_time))
        // Streams last as long as their builds.
        .route("/v1/builds/{build}/events", get(builds::follow))
        .fallback(async || ApiError::not_found("there is nothing here; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, FailureClass::Usage, "this method is not for this path")
        })
        .layer(from_fn_with_state(app.keyring.clone(), principal::identify));
    let exchange = sized(post(oidc::routes::exchange), oidc::routes::LIMIT).layer(from_fn(limit_time));
    Router::new()
        .route("/v1/oidc/token", exchange)
        .route("/healthz", get(healthz))
        .route("/openapi.json", get(async |_: PublicAccess| Json(openapi::document())))
        .merge(guarded)
        .layer(from_fn(measure))
        .with_state(Gate::new(app))
}

fn sized(route: MethodRouter<Gate>, limit: usize) -> MethodRouter<Gate> {
    route.layer(Extension(BodyLimit(limit)))
}

/// Whether the api can answer: 200 when the store does.
#[utoipa::path(get, path = "/healthz", tag = "service", security(()),
    responses((status = 200, description = "It answers"), (status = 503, body = error::ErrorBody)))]
async fn healthz(PublicAccess(app): PublicAccess) -> Result<&'static str, ApiError> {
    app.store.token_of_id("").await?;
    Ok("ok\n")
}

async fn limit_time(request: Request, next: Next) -> Result<Response, ApiError> {
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.map_err(|_| {
        let message = format!("the request took longer than {} s; try again", REQUEST_TIMEOUT.as_secs());
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, FailureClass::Transient, message)
    })
}

async fn measure(request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let method = request.method().clone();
    let route = route_label(request.uri().path());
    let span = tracing::info_span!("request", %method, route, status = tracing::field::Empty);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("status", status.as_u16());
    let labels = [method.as_str(), route.as_str(), status.as_str()];
    metrics::HTTP_SECONDS.with_label_values(&labels).observe(started.elapsed().as_secs_f64());
    response
}

/// A path with its ids left out, so that there are few of them.
fn route_label(path: &str) -> String {
    const WORDS: [&str; 26] = [
        "v1",
        "projects",
        "snapshots",
        "latest",
        "secrets",
        "builds",
        "events",
        "cancel",
        "retry",
        "cells",
        "credential",
        "hints",
        "drain",
        "undrain",
        "restart",
        "update",
        "pools",
        "settings",
        "tokens",
        "token",
        "oidc",
        "trust",
        "principal",
        "audit",
        "metrics",
        "healthz",
    ];
    let word = |segment| if WORDS.contains(&segment) { segment } else { "*" };
    path.split('/').skip(1).take(6).map(word).fold(String::new(), |label, word| label + "/" + word)
}
