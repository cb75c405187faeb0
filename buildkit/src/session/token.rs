//! Fetching a registry's bearer token, by the protocols of the distribution specification's token servers.
//!
//! With a credential the OAuth form (`POST`) is tried first; servers without it answer 401, 404 or 405 and are asked by
//! `GET` with basic authentication, if there is a user name. Without a credential the token is anonymous. Errors carry
//! the words the daemon's own registry errors have, so that one classification serves both.

use super::credential::Credential;
use crate::proto::moby::filesync::v1::{FetchTokenRequest, FetchTokenResponse};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use std::{sync::OnceLock, time::Duration};
use tonic::Status;

/// How long one request may take. The daemon itself waits 60 s for the token.
const TIMEOUT: Duration = Duration::from_secs(25);

/// Why there is no token. Shows neither credential nor token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("failed to fetch {kind} token: failed to do request")]
    Request { kind: &'static str, source: reqwest::Error },
    #[error("failed to fetch {kind} token: unexpected status from {method} request to {url}: {status}")]
    Status { kind: &'static str, method: Method, url: String, status: StatusCode },
    #[error("failed to fetch {kind} token: the token server's answer from {url} holds no token")]
    NoToken { kind: &'static str, url: String },
    #[error("invalid token server {realm:?}")]
    Realm { realm: String, source: url::ParseError },
}

impl TokenError {
    /// What the token server answered, when it did.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }
}

/// The chain of causes in one line: the daemon reports a message only.
impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Status::unknown(message)
    }
}

/// The HTTP client, made when it is first needed.
pub(super) struct Http(OnceLock<reqwest::Client>);

impl Http {
    pub(super) fn new(given: Option<reqwest::Client>) -> Self {
        Self(given.map_or_else(OnceLock::new, OnceLock::from))
    }

    pub(super) fn get(&self) -> Result<&reqwest::Client, Status> {
        if self.0.get().is_none() {
            // Without one, making the client would panic.
            if rustls::crypto::CryptoProvider::get_default().is_none() {
                return Err(Status::failed_precondition("no rustls crypto provider is installed to fetch tokens with"));
            }
            let client = reqwest::Client::builder().timeout(TIMEOUT).build();
            let _ = self.0.set(client.map_err(|error| Status::failed_precondition(error.to_string()))?);
        }
        self.0.get().ok_or_else(|| Status::internal("no HTTP client"))
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: i64,
    #[serde(default)]
    issued_at: String,
}

/// A token for whoever talks to a registry itself: `realm`, `service` and `scope` as the registry's challenge names them.
///
/// # Errors
/// The token server does not answer, or says no.
pub async fn fetch_token(
    http: &reqwest::Client,
    (realm, service, scope): (&str, &str, &str),
    credential: Option<&Credential>,
) -> Result<String, TokenError> {
    if let Some(Credential::BearerToken(token)) = credential {
        return Ok(token.clone());
    }
    let request = FetchTokenRequest {
        realm: realm.to_owned(),
        service: service.to_owned(),
        scopes: vec![scope.to_owned()],
        ..FetchTokenRequest::default()
    };
    fetch(http, &request, credential).await.map(|answer| answer.token)
}

pub(super) async fn fetch(
    http: &reqwest::Client,
    request: &FetchTokenRequest,
    credential: Option<&Credential>,
) -> Result<FetchTokenResponse, TokenError> {
    let realm = || request.realm.parse().map_err(|source| TokenError::Realm { realm: request.realm.clone(), source });
    let Some((username, secret)) = credential.map(Credential::parts) else {
        return send("anonymous", by_get(http, realm()?, request), Method::GET, realm()?).await;
    };
    let posted = send("oauth", by_post(http, realm()?, request, username, secret), Method::POST, realm()?).await;
    match posted {
        Err(TokenError::Status { status, .. })
            if !username.is_empty() && matches!(status.as_u16(), 401 | 404 | 405) =>
        {
            let get = by_get(http, realm()?, request).basic_auth(username, Some(secret));
            send("oauth", get, Method::GET, realm()?).await
        }
        posted => posted,
    }
}

fn by_get(http: &reqwest::Client, mut realm: url::Url, request: &FetchTokenRequest) -> reqwest::RequestBuilder {
    {
        let mut query = realm.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        query.extend_pairs(request.scopes.iter().map(|scope| ("scope", scope)));
    }
    http.get(realm)
}

fn by_post(
    http: &reqwest::Client,
    realm: url::Url,
    request: &FetchTokenRequest,
    username: &str,
    secret: &str,
) -> reqwest::RequestBuilder {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    if !request.scopes.is_empty() {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    form.append_pair("service", &request.service).append_pair("client_id", "buildkit-client");
    if username.is_empty() {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", secret);
    } else {
        form.append_pair("grant_type", "password").append_pair("username", username).append_pair("password", secret);
    }
    http.post(realm).header("content-type", "application/x-www-form-urlencoded; charset=utf-8").body(form.finish())
}

async fn send(
    kind: &'static str,
    request: reqwest::RequestBuilder,
    method: Method,
    realm: url::Url,
) -> Result<FetchTokenResponse, TokenError> {
    let failed = |source: reqwest::Error| TokenError::Request { kind, source: source.without_url() };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    if !status.is_success() && !status.is_redirection() {
        return Err(TokenError::Status { kind, method, url: realm.into(), status });
    }
    let answer: Answer = response.json().await.map_err(failed)?;
    let token = if answer.access_token.is_empty() { answer.token } else { answer.access_token };
    if token.is_empty() {
        return Err(TokenError::NoToken { kind, url: realm.into() });
    }
    // 60 s is what the specification says of an answer without a lifetime; the daemon renews at nine tenths.
    let expires_in = if answer.expires_in == 0 { 60 } else { answer.expires_in };
    Ok(FetchTokenResponse { token, expires_in, issued_at: issued_at(&answer.issued_at) })
}

/// Seconds since 1970 of an RFC 3339 time; 0, which stands for now, when there is none or it is malformed.
fn issued_at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}
