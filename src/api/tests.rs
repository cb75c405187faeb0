//! The api over a real socket, on a SQLite file and an S3 store of the test's own. Temporal is not there: what needs it is told so,
//! and everything else works.

mod access;
mod audit;
mod builds;
mod events;
mod manifests;
mod matrix;
mod oidc;
mod openapi;
#[path = "../../activities/tests/support/s3.rs"]
pub mod s3;
mod secrets;
mod tokens;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use activities::objects::{ObjectSettings, ObjectStore, Patience};
use activities::sealed::Identity;
use activities::store::{BuildRow, NewToken, Store};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workflows::contract::{BuildStatus, build_workflow_id};

use super::App;
use crate::listen::Listener;
use crate::settings::{Secret, Settings};
use s3::TestStore;

pub const TOKEN: &str = "a token of 128 random bits, say";

pub async fn sqlite(directory: &Path) -> Store {
    Store::open(&format!("sqlite://{}", directory.join("kiln.db").display())).await.unwrap()
}

pub fn objects_of(s3: &TestStore) -> ObjectStore {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ObjectStore::new(ObjectSettings {
        endpoint: format!("http://{}", s3.address()),
        region: "auto".into(),
        bucket: s3::BUCKET.into(),
        access_key: s3::ACCESS_KEY.into(),
        secret_key: s3::SECRET_KEY.into(),
        patience: Patience::default(),
    })
    .unwrap()
}

pub fn row(key: &str, run_id: &str, created_ms: i64) -> BuildRow {
    let (project, key) = ("hello".parse().unwrap(), key.parse().unwrap());
    BuildRow {
        workflow_id: build_workflow_id(&project, &key),
        run_id: run_id.into(),
        project,
        key,
        status: BuildStatus::Running,
        input: serde_json::from_value(json!({ "project": "hello", "snapshot": snapshot(), "tags": ["r/hello:1"] }))
            .unwrap(),
        result: None,
        cell: None,
        created_ms,
        started_ms: None,
        ended_ms: None,
    }
}

pub fn snapshot() -> String {
    "5eed".repeat(16)
}

/// A running api.
struct Api {
    app: Arc<App>,
    address: SocketAddr,
    /// Where builders send logs.
    receiver: SocketAddr,
    client: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    s3: TestStore,
    identity: Identity,
    _directory: TempDir,
}

impl Api {
    async fn start(create_projects: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (directory, s3) = (tempfile::tempdir().unwrap(), TestStore::start().await);
        let identity = Identity::generate();
        let mut settings = Settings::default();
        settings.temporal.address = "127.0.0.1:1".into();
        settings.store.url = Secret::new(format!("sqlite://{}", directory.path().join("kiln.db").display()));
        settings.logs.dir = directory.path().join("logs");
        settings.seal.recipient = identity.recipient().to_string();
        settings.registry.address = "127.0.0.1:5000".into();
        settings.api.token = Secret::new(TOKEN);
        settings.api.create_projects = create_projects;
        settings.egress.allow = vec!["127.0.0.1".into()];
        settings.s3.endpoint = format!("http://{}", s3.address());
        (settings.s3.region, settings.s3.bucket) = ("auto".into(), s3::BUCKET.into());
        (settings.s3.access_key, settings.s3.secret_key) = (s3::ACCESS_KEY.into(), Secret::new(s3::SECRET_KEY));

        let stop = CancellationToken::new();
        let app = Arc::new(App::new(settings, stop.clone()).await.unwrap());
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let logs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, receiver) = (http.local_addr().unwrap(), logs.local_addr().unwrap());
        let (http, logs) = (Listener::on(http, None, &[], 256), Listener::on(logs, None, &[], 256));
        let task = tokio::spawn(super::serve(app.clone(), http, logs, stop.clone()));
        Self { app, address, receiver, client: reqwest::Client::new(), stop, task, s3, identity, _directory: directory }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_as(TOKEN, method, path)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    /// A new token of this principal.
    async fn token(&self, principal: &str) -> String {
        let principal = principal.parse().unwrap();
        let new = NewToken { principal, name: "test".into(), issued_by: "test".into(), expires_ms: None };
        self.app.store.issue_token(&new).await.unwrap().secret
    }

    /// As a request with this token.
    fn request_as(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address)).bearer_auth(token)
    }

    /// Sends a cell's hint as that cell.
    async fn report(&self, hint: Value) -> (StatusCode, Value) {
        let token = self.token(&format!("cell/{}", hint["cell"].as_str().unwrap())).await;
        answer(self.request_as(&token, Method::POST, "/v1/cells/hints").json(&hint)).await
    }

    /// Ends it as a signal would.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// The status and the JSON body; null when there is none.
async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
}

fn class_of(body: &Value) -> &str {
    body["error"]["class"].as_str().unwrap_or("none")
}

fn message_of(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or("none")
}
