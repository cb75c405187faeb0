//! HTTP requests to URLs that a tenant, or the answer of a server that a tenant named, has chosen: registries and their token
//! servers, redirects, issuers of OIDC tokens.
//!
//! ```text
//!  send ─► check the URL ─► resolve, check each address ─► connect to a checked one ─► read, counting
//!            ▲                                                                          │ redirect
//!            └──────────── without body and credentials where the origin changes ◄──────┘
//! ```
//!
//! Only public addresses are reached, and what the settings list ([`Policy`]). A name is resolved once per connection, and only the
//! addresses that passed are handed to the connector, so that a second answer of the DNS changes nothing. Every exchange has a
//! deadline, a limit of bytes and a limit of redirects. Proxies of the environment are not used: they would resolve names
//! themselves.
//!
//! The module knows neither Temporal nor the contract.

mod address;
mod policy;
mod resolver;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Method, Response, StatusCode, redirect};
use url::Url;

pub use address::is_public;
pub use policy::{InvalidEntry, Listed, Policy, Refused, Why, is_loopback};
use resolver::Guarded;
pub use resolver::{Lookup, SystemLookup};

/// How long establishing one connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Idle connections kept for each host, and for how long: hosts are of tenants' choosing.
const IDLE_PER_HOST: usize = 4;
const IDLE: Duration = Duration::from_secs(30);

/// The bounds of one exchange, its redirects included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of the answer's body.
    pub bytes: usize,
    /// From resolving the name to the last byte.
    pub deadline: Duration,
    /// How many redirects are followed; one more is an error.
    pub redirects: u32,
}

/// A request. Credentials belong into `authorization` and `body`, nowhere else: these stay with the origin of `url`.
#[derive(Clone)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    /// Of these only `Accept` follows a redirect to another origin.
    pub headers: HeaderMap,
    pub authorization: Option<HeaderValue>,
    pub body: Option<Bytes>,
    /// `host[:port]` of the registry that a build named, when the request is made for one; see [`Policy::loopback_registries`].
    pub registry: Option<String>,
}

/// What a server answered, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer. `Display` names the host, never the query or a credential.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the answer of {host} is longer than {limit} bytes")]
    TooLong { host: String, limit: usize },
    #[error("{host} did not answer within {} ms", deadline.as_millis())]
    Slow { host: String, deadline: Duration },
    #[error("{host} redirects more than {limit} times")]
    TooManyRedirects { host: String, limit: u32 },
    #[error("{host} redirects to a URL that cannot be read")]
    Redirect { host: String },
    #[error("{host} redirects a request whose body must not leave its origin")]
    RedirectedBody { host: String },
    #[error("the request to {host} failed")]
    Request { host: String, source: reqwest::Error },
    #[error("the HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
}

impl EgressError {
    /// Whether the answer is the same at every try: the policy refuses, or the server does what no server may.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Slow { .. } | Self::Request { .. })
    }
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    policy: Arc<Policy>,
    http: reqwest::Client,
}

impl Request {
    pub fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), authorization: None, body: None, registry: None }
    }

    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    /// The request that a redirect leads to.
    fn redirected(mut self, status: StatusCode, next: Url) -> Result<Self, EgressError> {
        let host = host_of(&self.url);
        let same_origin = self.url.origin() == next.origin();
        if self.url.scheme() == "https" && next.scheme() != "https" {
            return Err(Refused { host: host_of(&next), why: Why::Downgrade }.into());
        }
        // Only these two ask for the same request once more; another origin has no business with its body.
        let repeats = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if self.body.is_some() && !(repeats && same_origin) {
            return Err(EgressError::RedirectedBody { host });
        }
        if !same_origin {
            self.authorization = None;
            let accept: Vec<_> = self.headers.get_all(ACCEPT).iter().cloned().collect();
            self.headers = accept.into_iter().map(|value| (ACCEPT, value)).collect();
        }
        self.url = next;
        Ok(self)
    }
}

impl Egress {
    /// `agent` is the `User-Agent` of all requests.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn new(policy: Policy, agent: &str) -> Result<Self, EgressError> {
        Self::with_lookup(policy, agent, SystemLookup)
    }

    /// Resolves names by `lookup` instead of the machine's resolver.
    ///
    /// # Errors
    /// When the TLS backend cannot be set up.
    pub fn with_lookup(policy: Policy, agent: &str, lookup: impl Lookup) -> Result<Self, EgressError> {
        let policy = Arc::new(policy);
        let agent = HeaderValue::from_str(agent).unwrap_or(HeaderValue::from_static("kiln"));
        let http = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([(USER_AGENT, agent)]))
            .dns_resolver(Guarded::new(Arc::clone(&policy), lookup))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE)
            .build()
            .map_err(EgressError::Setup)?;
        Ok(Self { policy, http })
    }

    /// What may be reached.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Sends a request and reads the answer, whatever its status. Nothing is tried again.
    ///
    /// # Errors
    /// When the URL, or one it redirects to, may not be reached, when a limit is met, or when the exchange fails.
    pub async fn send(&self, request: Request, limits: Limits) -> Result<Answer, EgressError> {
        let host = host_of(&request.url);
        match tokio::time::timeout(limits.deadline, self.follow(request, limits)).await {
            Ok(answered) => answered,
            Err(_) => Err(EgressError::Slow { host, deadline: limits.deadline }),
        }
    }

    async fn follow(&self, mut request: Request, limits: Limits) -> Result<Answer, EgressError> {
        let first = host_of(&request.url);
        for _ in 0..=limits.redirects {
            self.policy.check(&request.url, request.registry.as_deref())?;
            let response = self.once(&request).await?;
            match next(&response, &request.url)? {
                Some(url) => request = request.redirected(response.status(), url)?,
                None => return read(response, &request.url, limits.bytes).await,
            }
        }
        Err(EgressError::TooManyRedirects { host: first, limit: limits.redirects })
    }

    async fn once(&self, request: &Request) -> Result<Response, EgressError> {
        let mut sent = self.http.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
        if let Some(authorization) = &request.authorization {
            sent = sent.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = &request.body {
            sent = sent.body(body.clone());
        }
        sent.send().await.map_err(|error| failed(&request.url, error))
    }
}

/// Where a redirect leads; `None` when the answer is none.
fn next(response: &Response, from: &Url) -> Result<Option<Url>, EgressError> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = response.headers().get(LOCATION).filter(|_| redirects) else { return Ok(None) };
    let next = location.to_str().ok().and_then(|text| from.join(text).ok());
    next.map(Some).ok_or_else(|| EgressError::Redirect { host: host_of(from) })
}

async fn read(response: Response, url: &Url, limit: usize) -> Result<Answer, EgressError> {
    let (status, headers) = (response.status(), response.headers().clone());
    match body(response, limit).await {
        Ok(body) => Ok(Answer { status, headers, body }),
        Err(BodyError::TooLong { limit }) => Err(EgressError::TooLong { host: host_of(url), limit }),
        Err(BodyError::Broken(error)) => Err(failed(url, error)),
    }
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("it is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
}

/// Reads the body of an answer; ends as soon as it is longer than `limit` bytes. For every client of the workspace.
///
/// # Errors
/// When the body is longer, or the connection breaks.
pub async fn body(mut response: Response, limit: usize) -> Result<Bytes, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// A refusal of the resolver arrives inside the error of the connector.
fn failed(url: &Url, error: reqwest::Error) -> EgressError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return refused.clone().into();
        }
        cause = inner.source();
    }
    EgressError::Request { host: host_of(url), source: error.without_url() }
}

/// `host[:port]` of a URL, for messages.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
