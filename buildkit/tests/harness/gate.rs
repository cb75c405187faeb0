//! A gate in front of a registry: asks for credentials, hands out tokens that expire soon, or says no.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How the gate guards.
#[derive(Clone, Copy)]
pub enum Guard {
    /// `user` and `secret` by basic authentication.
    Basic,
    /// Tokens with this lifetime, for `user` and `secret` or the refresh token `refresh`. `post`: whether the token server
    /// knows the OAuth form.
    Token { lifetime: Duration, post: bool },
    /// Whatever is asked: this status.
    Always(u16),
}

pub struct Gate {
    address: String,
    state: Arc<Gatekeeper>,
    server: tokio::task::JoinHandle<()>,
}

struct Gatekeeper {
    guard: Guard,
    address: String,
    upstream: String,
    http: reqwest::Client,
    tokens: Mutex<HashMap<String, Instant>>,
    issued: AtomicUsize,
    /// Requests turned away because their token had expired.
    expired: AtomicUsize,
}

impl Gate {
    /// Opens a gate to `upstream` (`host:port`).
    pub async fn open(upstream: &str, guard: Guard) -> Self {
        super::install_crypto();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Gatekeeper {
            guard,
            address: address.clone(),
            upstream: upstream.to_owned(),
            http: reqwest::Client::new(),
            tokens: Mutex::default(),
            issued: AtomicUsize::new(0),
            expired: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(handle).with_state(state.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, server }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn tokens_issued(&self) -> usize {
        self.state.issued.load(Ordering::SeqCst)
    }

    pub fn tokens_expired(&self) -> usize {
        self.state.expired.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(State(gate): State<Arc<Gatekeeper>>, request: Request) -> Response {
    if request.uri().path() == "/token" {
        return gate.token(request).await;
    }
    match gate.refusal(request.headers()) {
        Some(refusal) => refusal,
        None => gate.forward(request).await,
    }
}

fn basic(headers: &HeaderMap) -> bool {
    let expected = format!("Basic {}", STANDARD.encode("user:secret"));
    headers.get(header::AUTHORIZATION).is_some_and(|value| value == expected.as_str())
}

impl Gatekeeper {
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let challenge = match self.guard {
            Guard::Always(status) => return Some(StatusCode::from_u16(status).unwrap().into_response()),
            Guard::Basic if basic(headers) => return None,
            Guard::Basic => "Basic realm=\"gate\"".to_owned(),
            Guard::Token { .. } => {
                let token =
                    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
                let until = token.and_then(|token| self.tokens.lock().unwrap().get(token).copied());
                match until {
                    Some(until) if Instant::now() < until => return None,
                    Some(_) => drop(self.expired.fetch_add(1, Ordering::SeqCst)),
                    None => {}
                }
                format!(
                    "Bearer realm=\"http://{}/token\",service=\"gate\",scope=\"repository:app:pull,push\"",
                    self.address
                )
            }
        };
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
    }

    async fn token(&self, request: Request) -> Response {
        let Guard::Token { lifetime, post } = self.guard else { return StatusCode::NOT_FOUND.into_response() };
        let posted = request.method() == Method::POST;
        let known = basic(request.headers());
        let form = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
        let form: HashMap<_, _> = url::form_urlencoded::parse(&form).into_owned().collect();
        let field = |name: &str| form.get(name).map(String::as_str);
        let by_password = field("username") == Some("user") && field("password") == Some("secret");
        match posted {
            true if !post => return StatusCode::NOT_FOUND.into_response(),
            true if by_password || field("refresh_token") == Some("refresh") => {}
            false if known => {}
            _ => return StatusCode::UNAUTHORIZED.into_response(),
        }
        let token = uuid::Uuid::new_v4().to_string();
        self.tokens.lock().unwrap().insert(token.clone(), Instant::now() + lifetime);
        self.issued.fetch_add(1, Ordering::SeqCst);
        let name = if posted { "access_token" } else { "token" };
        axum::Json(serde_json::json!({ name: token, "expires_in": lifetime.as_secs() })).into_response()
    }

    async fn forward(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let url = format!("http://{}{}", self.upstream, parts.uri.path_and_query().unwrap());
        let body: Bytes = axum::body::to_bytes(body, 1 << 30).await.unwrap();
        let mut headers = parts.headers;
        headers.remove(header::AUTHORIZATION);
        headers.remove(header::HOST);
        let answer = self.http.request(parts.method, url).headers(headers).body(body).send().await.unwrap();
        let mut response = Response::builder().status(answer.status());
        response.headers_mut().unwrap().extend(answer.headers().clone());
        response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    }
}
