//! Fetching a registry's bearer token, by the protocols of the distribution specification's token servers.
//!
//! With a credential the OAuth form (`POST`) is tried first; servers without it answer 401, 404 or 405 and are requested by
//! `GET` with basic authentication, if there is a user name. Without a credential the token is anonymous. Errors carry
//! the words the daemon's own registry errors have, so that one classification serves both.
//!
//! The token server's URL comes from the registry, so which URLs may be requested is a decision for the user of this crate: requests
//! go through a [`TokenTransport`].

use super::credential::Credential;
use crate::proto::moby::filesync::v1::{FetchTokenRequest, FetchTokenResponse};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Deserialize;
use tonic::Status;
use url::Url;

/// The longest answer of a token server that is read, bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// Sends the requests of the token protocol.
///
/// The URLs are chosen by the registry, or by one that pretends to be it: an implementation decides which of them may be reached,
/// bounds time, size and redirects, and keeps credentials from other origins than the URL's.
pub trait TokenTransport: Send + Sync + 'static {
    /// Sends one request and reads the answer, whatever its status.
    fn send(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenAnswer, TransportError>>;
}

/// One request: `POST` when there is a form, `GET` otherwise.
#[derive(Clone)]
pub struct TokenRequest {
    /// `host[:port]` of the registry whose challenge named the URL.
    pub registry: String,
    pub url: Url,
    /// A body of type `application/x-www-form-urlencoded`; carries a credential.
    pub form: Option<String>,
    /// User name and password for basic authentication.
    pub basic: Option<(String, String)>,
}

impl TokenRequest {
    /// Whether whoever reads the request learns a credential.
    pub fn has_credential(&self) -> bool {
        self.form.is_some() || self.basic.is_some()
    }

    fn method(&self) -> &'static str {
        if self.form.is_some() { "POST" } else { "GET" }
    }
}

/// What a token server answered.
pub struct TokenAnswer {
    pub status: u16,
    /// At most 64 KiB are of use.
    pub body: Bytes,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It is not sent, or its answer is not taken; another try ends the same way.
    #[error("it is refused")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("failed to do request")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why there is no token. Shows neither credential nor token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("failed to fetch {kind} token: failed to do request")]
    Request { kind: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("failed to fetch {kind} token: token server refused")]
    Refused { kind: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("failed to fetch {kind} token: unexpected status from {method} request to {url}: {status}")]
    Status { kind: &'static str, method: &'static str, url: String, status: u16 },
    #[error("failed to fetch {kind} token: the token server's answer from {url} holds no token")]
    NoToken { kind: &'static str, url: String },
    #[error(
        "failed to fetch {kind} token: token server refused: its answer from {url} is longer than {LONGEST_ANSWER} bytes"
    )]
    TooLong { kind: &'static str, url: String },
    #[error("invalid token server {realm:?}")]
    Realm { realm: String, source: url::ParseError },
}

impl TokenError {
    /// The token server's status, when it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the transport refused the token server or its answer: another try ends the same way.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::TooLong { .. })
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

/// A token for requests to `registry` (`host[:port]`) that the caller makes itself: `realm`, `service` and `scope` as the registry's
/// challenge names them.
///
/// # Errors
/// The token server does not answer, refuses, or is refused by the transport.
pub async fn fetch_token(
    transport: &dyn TokenTransport,
    registry: &str,
    (realm, service, scope): (&str, &str, &str),
    credential: Option<&Credential>,
) -> Result<String, TokenError> {
    if let Some(Credential::BearerToken(token)) = credential {
        return Ok(token.clone());
    }
    let request = FetchTokenRequest {
        host: registry.to_owned(),
        realm: realm.to_owned(),
        service: service.to_owned(),
        scopes: vec![scope.to_owned()],
        ..FetchTokenRequest::default()
    };
    fetch(transport, &request, credential).await.map(|answer| answer.token)
}

pub(super) async fn fetch(
    transport: &dyn TokenTransport,
    request: &FetchTokenRequest,
    credential: Option<&Credential>,
) -> Result<FetchTokenResponse, TokenError> {
    let Some((username, secret)) = credential.map(Credential::parts) else {
        return send("anonymous", transport, by_get(request, None)?).await;
    };
    match send("oauth", transport, by_post(request, username, secret)?).await {
        Err(TokenError::Status { status: 401 | 404 | 405, .. }) if !username.is_empty() => {
            let basic = Some((username.to_owned(), secret.to_owned()));
            send("oauth", transport, by_get(request, basic)?).await
        }
        posted => posted,
    }
}

fn realm(request: &FetchTokenRequest) -> Result<Url, TokenError> {
    request.realm.parse().map_err(|source| TokenError::Realm { realm: request.realm.clone(), source })
}

fn by_get(request: &FetchTokenRequest, basic: Option<(String, String)>) -> Result<TokenRequest, TokenError> {
    let mut url = realm(request)?;
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        query.extend_pairs(request.scopes.iter().map(|scope| ("scope", scope)));
    }
    Ok(TokenRequest { registry: request.host.clone(), url, form: None, basic })
}

fn by_post(request: &FetchTokenRequest, username: &str, secret: &str) -> Result<TokenRequest, TokenError> {
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
    let (registry, url) = (request.host.clone(), realm(request)?);
    Ok(TokenRequest { registry, url, form: Some(form.finish()), basic: None })
}

async fn send(
    kind: &'static str,
    transport: &dyn TokenTransport,
    request: TokenRequest,
) -> Result<FetchTokenResponse, TokenError> {
    let (method, mut url) = (request.method(), request.url.clone());
    url.set_query(None);
    let answer = transport.send(request).await.map_err(|error| match error {
        TransportError::Refused(source) => TokenError::Refused { kind, source },
        TransportError::Failed(source) => TokenError::Request { kind, source },
    })?;
    let url = String::from(url);
    if !(200..300).contains(&answer.status) {
        return Err(TokenError::Status { kind, method, url, status: answer.status });
    }
    if answer.body.len() > LONGEST_ANSWER {
        return Err(TokenError::TooLong { kind, url });
    }
    token_of(&answer.body).ok_or(TokenError::NoToken { kind, url })
}

/// The token in an answer. `None` when there is none: what the answer holds instead goes nowhere.
fn token_of(body: &[u8]) -> Option<FetchTokenResponse> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = if answer.access_token.is_empty() { answer.token } else { answer.access_token };
    let expires_in = lifetime(answer.expires_in);
    let response = FetchTokenResponse { token, expires_in, issued_at: issued_at(&answer.issued_at) };
    (!response.token.is_empty()).then_some(response)
}

/// Seconds that a token is used for. 60 s is what the specification says of an answer without a lifetime; the daemon renews at nine
/// tenths, and adds to it, so that it is kept to a day.
fn lifetime(said: i64) -> i64 {
    if said <= 0 { 60 } else { said.min(24 * 3600) }
}

/// Seconds since 1970 of an RFC 3339 time; 0, which stands for now, when there is none or it is malformed.
fn issued_at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}
