//! Registries that want credentials, and registries that say no.

use crate::harness::{BASE, Context, Daemon, Gate, Guard, Registry, Tokens, push, run};
use buildkit::{
    Credential, Credentials, FailureKind, RegistryStatus, Session, SolveError, TokenAnswer, TokenRequest,
    TokenTransport, TransportError,
};
use futures::future::BoxFuture;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

/// Credentials by host.
struct Known(BTreeMap<String, Credential>);

impl Credentials for Known {
    fn credential(&self, host: &str) -> io::Result<Option<Credential>> {
        Ok(self.0.get(host).cloned())
    }
}

fn password(secret: &str) -> Credential {
    Credential::Basic { username: "user".into(), password: secret.into() }
}

async fn open(daemon: &Daemon, context: &Context, gate: &Gate, credential: Option<Credential>) -> Session {
    open_with(daemon, context, gate, credential, Some(Arc::new(Tokens::new()))).await
}

async fn open_with(
    daemon: &Daemon,
    context: &Context,
    gate: &Gate,
    credential: Option<Credential>,
    tokens: Option<Arc<dyn TokenTransport>>,
) -> Session {
    let known = credential.map(|credential| (gate.address().to_owned(), credential)).into_iter().collect();
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.credentials(Arc::new(Known(known)));
    match tokens {
        Some(tokens) => session.token_transport(tokens).open().await.unwrap(),
        None => session.open().await.unwrap(),
    }
}

async fn pushed(guard: Guard, credential: Option<Credential>) -> Result<(), SolveError> {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let gate = Gate::open(registry.address(), guard).await;
    let context = Context::bare("FROM scratch\nCOPY . /\n");
    let session = open(&daemon, &context, &gate, credential).await;
    let solved = run(&session, push(&format!("{}/app:1", gate.address()))).await.0?;
    assert_eq!(registry.digest("app", "1").await, solved.digest);
    Ok(())
}

async fn refused(guard: Guard, credential: Option<Credential>) -> RegistryStatus {
    match pushed(guard, credential).await.unwrap_err().kind {
        FailureKind::Registry(failure) => failure.status,
        other => panic!("{other:?}"),
    }
}

const TOKEN: Guard = Guard::Token { lifetime: Duration::from_secs(60), post: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_authentication() {
    pushed(Guard::Basic, Some(password("secret"))).await.unwrap();
    assert_eq!(refused(Guard::Basic, Some(password("wrong"))).await, RegistryStatus::Unauthorized);
    assert_eq!(refused(Guard::Basic, None).await, RegistryStatus::Unauthorized);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_authentication() {
    pushed(TOKEN, Some(password("secret"))).await.unwrap();
    pushed(TOKEN, Some(Credential::IdentityToken("refresh".into()))).await.unwrap();
    let get_only = Guard::Token { lifetime: Duration::from_secs(60), post: false };
    pushed(get_only, Some(password("secret"))).await.unwrap();
    assert_eq!(refused(TOKEN, Some(password("wrong"))).await, RegistryStatus::Unauthorized);
    assert_eq!(refused(TOKEN, None).await, RegistryStatus::Unauthorized);
}

/// Sends nothing.
struct Closed;

impl TokenTransport for Closed {
    fn send(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenAnswer, TransportError>> {
        Box::pin(async move { Err(TransportError::Refused(format!("{} is internal", request.url.path()).into())) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_server_that_the_transport_refuses_fails_the_build_for_good() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let gate = Gate::open(registry.address(), TOKEN).await;
    let context = Context::bare("FROM scratch\nCOPY . /\n");
    let session = open_with(&daemon, &context, &gate, Some(password("secret")), Some(Arc::new(Closed))).await;
    let error = run(&session, push(&format!("{}/app:1", gate.address()))).await.0.unwrap_err();
    let FailureKind::Registry(failure) = &error.kind else { panic!("{error:?}") };
    assert_eq!((failure.status, failure.status.is_transient()), (RegistryStatus::TokenServer, false));
    assert!(error.message.contains("/token is internal"), "{error}");
    assert_eq!(gate.tokens_issued(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_transport_the_daemon_fetches_tokens_itself() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let gate = Gate::open(registry.address(), TOKEN).await;
    let context = Context::bare("FROM scratch\nCOPY . /\n");
    let session = open_with(&daemon, &context, &gate, Some(password("secret")), None).await;
    let solved = run(&session, push(&format!("{}/app:1", gate.address()))).await.0.unwrap();
    assert_eq!(registry.digest("app", "1").await, solved.digest);
    assert!(gate.tokens_issued() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_expire_while_a_step_runs_are_fetched_again() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let gate = Gate::open(registry.address(), Guard::Token { lifetime: Duration::from_secs(2), post: true }).await;
    let base = Context::new("");
    let session = open(&daemon, &base, &gate, Some(password("secret"))).await;
    let image = format!("{}/app:base", gate.address());
    run(&session, push(&image)).await.0.unwrap();
    let issued = gate.tokens_issued();
    // Pulls the base with one token, works for longer than it lives, pushes.
    let shell = BASE.lines().last().unwrap();
    let context = Context::bare(&format!("FROM {image}\n{shell}\nRUN exec /bin/busybox sleep 4\n"));
    let session = open(&daemon, &context, &gate, Some(password("secret"))).await;
    let solved = run(&session, push(&format!("{}/app:2", gate.address()))).await.0.unwrap();
    assert_eq!(registry.digest("app", "2").await, solved.digest);
    assert!(gate.tokens_issued() >= issued + 2, "{} then {}", issued, gate.tokens_issued());
    assert_eq!(gate.tokens_expired(), 0, "the daemon renews before the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_says_no_is_told_by_its_status() {
    assert_eq!(refused(Guard::Always(403), None).await, RegistryStatus::Denied);
    assert_eq!(refused(Guard::Always(404), None).await, RegistryStatus::NotFound);
    assert_eq!(refused(Guard::Always(429), None).await, RegistryStatus::RateLimited);
    assert_eq!(refused(Guard::Always(503), None).await, RegistryStatus::Server(503));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_not_there() {
    let (daemon, context) = (Daemon::start(), Context::bare("FROM scratch\nCOPY . /\n"));
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let error = run(&session.open().await.unwrap(), push("127.0.0.1:1/app:1")).await.0.unwrap_err();
    let FailureKind::Registry(failure) = &error.kind else { panic!("{error:?}") };
    assert_eq!((failure.status, failure.status.is_transient()), (RegistryStatus::Refused, true));
    assert!(error.vertex.unwrap().name.unwrap().contains("exporting to image"));
}
