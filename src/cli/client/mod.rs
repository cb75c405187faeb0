//! What the command line asks of `kiln api`: one function an endpoint, typed answers, errors that carry the class of their exit code.
//!
//! Requests that change nothing, and those the api takes twice without harm, are left to their callers to repeat; nothing here
//! retries. The event stream is in [`events`].

mod error;
mod events;
mod sse;
mod types;

use std::time::Duration;

use activities::egress::{self, BodyError};
use activities::sealed::Sealed;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use types::SecretsStored;
use url::Url;
use workflows::contract::{BuildInput, BuildKey, CellId, CloneRequest, PoolName, ProjectName, SecretsRef, SetPool};

pub use crate::api::{
    AuditEntry, CellInfo, CellOrder, CellOrdered, CellView, ExchangeRequest, Exchanged, TokenInfo, TokenIssued,
    TokenRequest, TrustInfo, TrustRule, Whoami,
};
pub use error::ClientError;
pub use events::{BuildEvent, Events};
pub use types::{
    BuildInfo, BuildStarted, BuildSummary, CancelAnswer, PoolCell, PoolInfo, ProjectInfo, ProjectSettings, Step,
    StepOutcome,
};

use crate::settings::Settings;

/// For connecting, and for answers that are no streams; the api's own limit is 120 s.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(125);

/// Of one answer of the api that is no stream, bytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// Which entries of the audit log are asked for.
pub struct AuditPage<'a> {
    pub project: Option<&'a ProjectName>,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// Time and id of the entry that they follow.
    pub after: Option<(i64, String)>,
    pub limit: u32,
}

/// A client of one api. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// For object storage.
    uploads: reqwest::Client,
    base: Url,
    token: String,
}

impl Client {
    /// The api of the settings, with their token.
    ///
    /// # Errors
    /// When `api.url` is not set or TLS cannot be set up.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let base: Url = settings.api.url.parse().map_err(|_| ClientError::NoAddress)?;
        let mut http =
            reqwest::Client::builder().connect_timeout(CONNECT).user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")));
        if base.host_str().is_some_and(activities::oci::is_loopback) {
            // A proxy is for other machines.
            http = http.no_proxy();
        }
        let trust = settings.trust()?;
        let http = trust.http(http)?.build().map_err(ClientError::Setup)?;
        let uploads = trust.http(activities::objects::http_builder())?.build().map_err(ClientError::Setup)?;
        Ok(Self { http, uploads, base, token: settings.api.token.reveal().to_owned() })
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// For what is sent to object storage by presigned URLs.
    pub fn uploads(&self) -> &reqwest::Client {
        &self.uploads
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Who the token stands for.
    pub async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.send(self.request(Method::GET, &["principal"])).await
    }

    pub async fn issue_token(&self, request: &TokenRequest) -> Result<TokenIssued, ClientError> {
        self.send(self.request(Method::POST, &["tokens"]).json(request)).await
    }

    /// The tokens that the caller may manage, of a project or all.
    pub async fn tokens(&self, project: Option<&ProjectName>) -> Result<Vec<TokenInfo>, ClientError> {
        let query: Vec<_> = project.map(|project| ("project", project.as_str())).into_iter().collect();
        self.send(self.request(Method::GET, &["tokens"]).query(&query)).await
    }

    /// Entries of the audit log, the oldest first.
    pub async fn audit(&self, page: &AuditPage<'_>) -> Result<Vec<AuditEntry>, ClientError> {
        let mut query = vec![("since_ms", page.since_ms.to_string()), ("limit", page.limit.to_string())];
        query.extend(page.project.map(|project| ("project", project.to_string())));
        if let Some((at_ms, id)) = &page.after {
            query.extend([("after_ms", at_ms.to_string()), ("after", id.clone())]);
        }
        self.send(self.request(Method::GET, &["audit"]).query(&query)).await
    }

    pub async fn revoke_token(&self, id: &str) -> Result<TokenInfo, ClientError> {
        self.send(self.request(Method::DELETE, &["tokens", id])).await
    }

    /// The credential of a cell, for the agent of its host.
    pub async fn cell_credential(&self, cell: &CellId) -> Result<TokenIssued, ClientError> {
        self.send(self.request(Method::POST, &["cells", cell.as_str(), "credential"])).await
    }

    /// Exchanges a token that a CI system gave to its job for one of a project.
    pub async fn exchange(&self, project: &ProjectName, token: &str) -> Result<Exchanged, ClientError> {
        let request = ExchangeRequest { project: project.clone(), token: token.to_owned() };
        self.send(self.request(Method::POST, &["oidc", "token"]).json(&request)).await
    }

    /// Adds a trust rule to a project.
    pub async fn add_trust(&self, project: &ProjectName, rule: &TrustRule) -> Result<TrustInfo, ClientError> {
        self.send(self.request(Method::POST, &["projects", project.as_str(), "trust"]).json(rule)).await
    }

    /// A project's trust rules, in the order in which they are tried.
    pub async fn trust(&self, project: &ProjectName) -> Result<Vec<TrustInfo>, ClientError> {
        self.send(self.request(Method::GET, &["projects", project.as_str(), "trust"])).await
    }

    pub async fn remove_trust(&self, project: &ProjectName, rule: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &["projects", project.as_str(), "trust", rule]);
        self.checked(request).await.map(|_| ())
    }

    pub async fn create_project(&self, name: &ProjectName) -> Result<ProjectInfo, ClientError> {
        #[derive(Serialize)]
        struct NewProject<'a> {
            name: &'a ProjectName,
        }
        self.send(self.request(Method::POST, &["projects"]).json(&NewProject { name })).await
    }

    pub async fn projects(&self) -> Result<Vec<ProjectInfo>, ClientError> {
        self.send(self.request(Method::GET, &["projects"])).await
    }

    pub async fn project(&self, name: &ProjectName) -> Result<ProjectInfo, ClientError> {
        self.send(self.request(Method::GET, &["projects", name.as_str()])).await
    }

    /// Replaces a project's settings.
    pub async fn set_project(&self, name: &ProjectName, to: &ProjectSettings) -> Result<ProjectInfo, ClientError> {
        self.send(self.request(Method::PUT, &["projects", name.as_str(), "settings"]).json(to)).await
    }

    pub async fn pools(&self) -> Result<Vec<PoolInfo>, ClientError> {
        self.send(self.request(Method::GET, &["pools"])).await
    }

    pub async fn pool(&self, name: &PoolName) -> Result<PoolInfo, ClientError> {
        self.send(self.request(Method::GET, &["pools", name.as_str()])).await
    }

    /// Asks a pool to change its settings; it does so within moments.
    pub async fn set_pool(&self, name: &PoolName, to: &SetPool) -> Result<(), ClientError> {
        let request = self.request(Method::PUT, &["pools", name.as_str(), "settings"]).json(to);
        self.checked(request).await.map(|_| ())
    }

    /// Asks a pool to let a cell go.
    pub async fn remove_from_pool(&self, name: &PoolName, cell: &CellId) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &["pools", name.as_str(), "cells", cell.as_str()]);
        self.checked(request).await.map(|_| ())
    }

    /// Seals credentials and secrets; they travel over this connection only.
    pub async fn seal(&self, project: &ProjectName, content: &Sealed) -> Result<SecretsRef, ClientError> {
        let stored: SecretsStored =
            self.send(self.request(Method::POST, &["projects", project.as_str(), "secrets"]).json(content)).await?;
        Ok(stored.secrets_ref)
    }

    /// Starts a build, or joins the one that runs under `key`; a new key is made for `None`.
    pub async fn start_build(&self, key: Option<&BuildKey>, input: &BuildInput) -> Result<BuildStarted, ClientError> {
        #[derive(Serialize)]
        struct NewBuild<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<&'a BuildKey>,
            input: &'a BuildInput,
        }
        let path = ["projects", input.project.as_str(), "builds"];
        self.send(self.request(Method::POST, &path).json(&NewBuild { key, input })).await
    }

    /// The newest builds, of a project or of all, with a status or any.
    pub async fn builds(
        &self,
        project: Option<&ProjectName>,
        status: Option<&str>,
        limit: u32,
    ) -> Result<Vec<BuildSummary>, ClientError> {
        let mut query = vec![("limit", limit.to_string())];
        query.extend(project.map(|project| ("project", project.to_string())));
        query.extend(status.map(|status| ("status", status.to_owned())));
        self.send(self.request(Method::GET, &["builds"]).query(&query)).await
    }

    pub async fn cells(&self) -> Result<Vec<CellInfo>, ClientError> {
        self.send(self.request(Method::GET, &["cells"])).await
    }

    pub async fn cell(&self, cell: &CellId) -> Result<CellView, ClientError> {
        self.send(self.request(Method::GET, &["cells", cell.as_str()])).await
    }

    /// Gives a cell an order, and returns what its Cell made of it.
    pub async fn order_cell(&self, cell: &CellId, signal: &str, order: &CellOrder) -> Result<CellOrdered, ClientError> {
        self.send(self.request(Method::POST, &["cells", cell.as_str(), signal]).json(order)).await
    }

    /// Has a cell cloned, and returns what its Cell made of it.
    pub async fn clone_cell(&self, cell: &CellId, request: &CloneRequest) -> Result<CellOrdered, ClientError> {
        self.send(self.request(Method::POST, &["cells", cell.as_str(), "clone"]).json(request)).await
    }

    pub async fn build(&self, build_id: &str) -> Result<BuildInfo, ClientError> {
        self.send(self.request(Method::GET, &["builds", build_id])).await
    }

    /// Asks a build to stop.
    pub async fn cancel(&self, build_id: &str) -> Result<CancelAnswer, ClientError> {
        self.send(self.request(Method::POST, &["builds", build_id, "cancel"])).await
    }

    /// Starts a build again, with its former credentials or others.
    pub async fn retry(&self, build_id: &str, secrets: Option<&SecretsRef>) -> Result<BuildStarted, ClientError> {
        #[derive(Serialize)]
        struct RetryBuild<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            secrets_ref: Option<&'a SecretsRef>,
        }
        let request = self.request(Method::POST, &["builds", build_id, "retry"]);
        self.send(request.json(&RetryBuild { secrets_ref: secrets })).await
    }

    /// Connects to a run's events after a position. Without `follow` the stream ends where the log ends now.
    pub async fn events(&self, build_id: &str, run: &str, after: u64, follow: bool) -> Result<Events, ClientError> {
        let query = [("run", run), ("after", &after.to_string()), ("follow", if follow { "true" } else { "false" })];
        let request = self.bare(Method::GET, &["builds", build_id, "events"]).query(&query);
        self.stream(request.header("accept", "text/event-stream")).await
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.bare(method, path).timeout(ANSWER)
    }

    /// Each part of `path` is one segment, whatever it holds.
    fn bare(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        self.http.request(method, url).bearer_auth(&self.token)
    }

    /// The deadline is the answer's beginning's alone: its end may be as far away as the build's.
    async fn stream(&self, request: RequestBuilder) -> Result<Events, ClientError> {
        match tokio::time::timeout(ANSWER, self.checked(request)).await {
            Ok(response) => Ok(Events::new(response?)),
            Err(_) => {
                let why = format!("it did not answer within {} s", ANSWER.as_secs());
                Err(ClientError::Unreachable { url: self.base.clone(), why })
            }
        }
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.checked(request).await?;
        let unreadable = |what: &str| ClientError::Unreadable { url: self.base.clone(), what: what.to_owned() };
        let body = egress::body(response, LONGEST_ANSWER).await.map_err(|error| match error {
            BodyError::Broken(source) => ClientError::unreachable(&self.base, &source),
            BodyError::TooLong { .. } => unreadable("its answer is too long"),
        })?;
        serde_json::from_slice(&body).map_err(|_| unreadable("its answer cannot be read"))
    }

    /// Sends, and turns an answer that is no success into the api's own error.
    async fn checked(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| ClientError::unreachable(&self.base, &source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = egress::body(response, LONGEST_ANSWER).await.unwrap_or_default();
        Err(ClientError::answered(&self.base, status, &body, self.token.is_empty()))
    }
}

/// Whether asking again later may help.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}
