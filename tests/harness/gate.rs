//! A gate in front of a registry: it asks for credentials, and hands out tokens that expire soon. Whoever has a valid token gets through.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What the gate asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// User name and password with each request.
    Basic,
    /// A token of this lifetime, for the user name and the password.
    TokenForPassword(Duration),
    /// A token of this lifetime, for the identity token alone.
    TokenForIdentity(Duration),
}

/// What the gate knows; all values are parts of a test's own canary.
#[derive(Debug, Clone)]
pub struct Keys {
    pub username: String,
    pub password: String,
    pub identity: String,
    /// What all tokens begin with.
    pub token: String,
}

impl Keys {
    /// Values that are like no other text on the machine.
    pub fn new() -> Self {
        let unique = |kind: &str| format!("{kind}{}", uuid::Uuid::new_v4().simple());
        Self { username: "ann".into(), password: unique("pw"), identity: unique("id"), token: unique("tk") }
    }

    fn pair(&self) -> String {
        STANDARD.encode(format!("{}:{}", self.username, self.password))
    }
}

/// A token that was handed out.
#[derive(Debug, Clone, Copy)]
pub struct Issued {
    pub at: Instant,
    /// By OAuth2's refresh grant.
    pub refreshed: bool,
    /// To Kiln's own requests, by the name of their client.
    pub to_kiln: bool,
}

pub struct Gate {
    /// `host:port`.
    pub address: String,
    keeper: Arc<Keeper>,
    server: tokio::task::JoinHandle<()>,
}

struct Keeper {
    ask: Ask,
    keys: Keys,
    address: String,
    upstream: String,
    http: reqwest::Client,
    tokens: Mutex<HashMap<String, Instant>>,
    issued: Mutex<Vec<Issued>>,
}

impl Gate {
    /// Opens a gate to `upstream` (`host:port`), where buildkitd reaches it.
    pub async fn open(upstream: &str, ask: Ask, keys: &Keys) -> Self {
        // Fails only when another test did it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", super::dev::registry_port())).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let keeper = Arc::new(Keeper {
            ask,
            keys: keys.clone(),
            address: address.clone(),
            upstream: upstream.to_owned(),
            http: reqwest::Client::new(),
            tokens: Mutex::default(),
            issued: Mutex::default(),
        });
        let router = Router::new().fallback(handle).with_state(keeper.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, keeper, server }
    }

    /// All tokens handed out so far.
    pub fn issued(&self) -> Vec<Issued> {
        self.keeper.issued.lock().unwrap().clone()
    }

    /// Writes a docker `config.json` with the credential that the gate asks for.
    pub fn docker_config(&self, directory: &Path) {
        let keys = &self.keeper.keys;
        let entry = match self.keeper.ask {
            Ask::TokenForIdentity(_) => serde_json::json!({"identitytoken": keys.identity}),
            Ask::Basic | Ask::TokenForPassword(_) => serde_json::json!({"auth": keys.pair()}),
        };
        let config = serde_json::json!({"auths": {&self.address: entry}});
        std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(State(keeper): State<Arc<Keeper>>, request: Request) -> Response {
    match request.uri().path() {
        "/token" => keeper.token(request).await,
        _ if keeper.lets_in(request.headers()) => keeper.forward(request).await,
        _ => keeper.challenge(),
    }
}

fn authorization<'h>(headers: &'h HeaderMap, scheme: &str) -> Option<&'h str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix(scheme)
}

impl Keeper {
    fn lets_in(&self, headers: &HeaderMap) -> bool {
        if self.ask == Ask::Basic {
            return authorization(headers, "Basic ") == Some(self.keys.pair().as_str());
        }
        let token = authorization(headers, "Bearer ");
        let until = token.and_then(|token| self.tokens.lock().unwrap().get(token).copied());
        until.is_some_and(|until| Instant::now() < until)
    }

    fn challenge(&self) -> Response {
        let challenge = match self.ask {
            Ask::Basic => "Basic realm=\"gate\"".to_owned(),
            _ => format!("Bearer realm=\"http://{}/token\",service=\"gate\"", self.address),
        };
        let said = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], said).into_response()
    }

    /// The distribution project's token and OAuth2 specifications: `GET` with basic authentication, or a form by `POST`.
    async fn token(&self, request: Request) -> Response {
        let posted = request.method() == Method::POST;
        let paired = authorization(request.headers(), "Basic ") == Some(self.keys.pair().as_str());
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let to_kiln = agent.starts_with("kiln/");
        let form = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
        let form: HashMap<_, _> = url::form_urlencoded::parse(&form).into_owned().collect();
        let is = |name: &str, value: &str| form.get(name).is_some_and(|given| given == value);
        let by_password = is("username", &self.keys.username) && is("password", &self.keys.password);
        let by_identity = is("grant_type", "refresh_token") && is("refresh_token", &self.keys.identity);
        let (known, lifetime) = match self.ask {
            Ask::TokenForPassword(lifetime) => (if posted { by_password } else { paired }, lifetime),
            Ask::TokenForIdentity(lifetime) => (posted && by_identity, lifetime),
            Ask::Basic => return StatusCode::NOT_FOUND.into_response(),
        };
        if !known {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let token = format!("{}{}", self.keys.token, uuid::Uuid::new_v4().simple());
        self.tokens.lock().unwrap().insert(token.clone(), Instant::now() + lifetime);
        self.issued.lock().unwrap().push(Issued { at: Instant::now(), refreshed: by_identity, to_kiln });
        let name = if posted { "access_token" } else { "token" };
        Json(serde_json::json!({ name: token, "expires_in": lifetime.as_secs() })).into_response()
    }

    async fn forward(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let url = format!("http://{}{}", self.upstream, parts.uri.path_and_query().unwrap());
        let body = axum::body::to_bytes(body, 1 << 30).await.unwrap();
        let mut headers = parts.headers;
        headers.remove(header::AUTHORIZATION);
        // The registry names places to upload to by this host.
        headers.insert(header::HOST, self.address.parse().unwrap());
        let answer = self.http.request(parts.method, url).headers(headers).body(body).send().await.unwrap();
        let mut response = Response::builder().status(answer.status());
        response.headers_mut().unwrap().extend(answer.headers().clone());
        response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    }
}
