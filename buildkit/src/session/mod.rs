//! What a build may ask of its client: files, registry credentials, secrets, and whether it is still there.
//!
//! ```text
//!  Session::solve ── Solve, Status ──┐
//!                                    ├─ one connection ── buildkitd
//!  session thread ── Session stream ─┘
//!     └ gRPC server in the stream: FileSync, Auth, Secrets, Health (the daemon is its client)
//! ```
//!
//! The connection, its flow control and the small services live on a thread with a runtime of their own. The daemon
//! ends a session whose health checks stay unanswered; here they are answered though the process is busy. What blocks
//! (reading files, asking for credentials) is on further threads. When the session is dropped, the connection goes,
//! and with it every build that runs in it.

mod auth;
mod credential;
mod secrets;
mod token;

pub use credential::{Credential, Credentials, NoCredentials};
pub use secrets::{NoSecrets, Secrets};
pub use token::{TokenAnswer, TokenError, TokenRequest, TokenTransport, TransportError, fetch_token};

use crate::{
    Client, ClientError, Solve, SolveError, Solved, StatusUpdate, client,
    filesync::FileSyncService,
    headers,
    proto::{
        grpc::health::v1::{
            HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        moby::{
            buildkit::{secrets::v1::secrets_server::SecretsServer, v1::control_client::ControlClient},
            filesync::v1::auth_server::AuthServer,
        },
    },
    solve,
    source::{Source, SourceFailures},
    tunnel,
};
use futures::StreamExt as _;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    transport::{Channel, Server},
};

/// Pings on a connection that carries a session. The daemon's gRPC server ends a connection with "too many pings" when
/// they come faster than its own traffic excuses; the session's health checks come every 5 s.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The services of a session, as the daemon is told about them.
const METHODS: [&str; 7] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
    "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
];

/// Flow-control windows of the session's own server, in bytes: for a stream, for the connection.
///
/// The daemon asks for each file by a message of its own, each in a frame of some ten bytes. The HTTP/2 implementation
/// ends a connection on which too many such frames wait to be read ("too_many_data_frames"); how many that is depends on
/// the connection's window (half of it, at 256 bytes a frame), how many can be waiting on the stream's. These let
/// seven thousand wait on each of some twenty transfers.
const WINDOWS: (u32, u32) = (64 << 10, 64 << 20);

/// What a session will offer.
pub struct SessionBuilder {
    address: Arc<PathBuf>,
    shared_key: String,
    dirs: HashMap<String, Arc<dyn Source>>,
    credentials: Arc<dyn Credentials>,
    secrets: Arc<dyn Secrets>,
    tokens: Option<Arc<dyn TokenTransport>>,
    health_timeout: Option<Duration>,
}

impl Client {
    /// A session to be opened: what builds may ask of this side.
    pub fn session(&self) -> SessionBuilder {
        SessionBuilder::new(self.address())
    }
}

impl SessionBuilder {
    fn new(address: Arc<PathBuf>) -> Self {
        Self {
            address,
            shared_key: String::new(),
            dirs: HashMap::new(),
            credentials: Arc::new(NoCredentials),
            secrets: Arc::new(NoSecrets),
            tokens: None,
            health_timeout: None,
        }
    }

    /// Names the sources for the daemon: it compares a source with what it got last under the same key and name, so
    /// that only differences travel. Whatever the source depends on belongs in here (tenant, project, context path,
    /// Dockerfile, target). Without a key, or when another build is using it, everything travels.
    #[must_use]
    pub fn shared_key(mut self, key: impl Into<String>) -> Self {
        self.shared_key = key.into();
        self
    }

    /// Offers a source by the name the frontend asks for: `context` and `dockerfile` for the Dockerfile frontend.
    #[must_use]
    pub fn dir(mut self, name: impl Into<String>, source: Arc<dyn Source>) -> Self {
        self.dirs.insert(name.into(), source);
        self
    }

    /// Whom to ask for registry credentials. By default there are none.
    #[must_use]
    pub fn credentials(mut self, credentials: Arc<dyn Credentials>) -> Self {
        self.credentials = credentials;
        self
    }

    /// Whom to ask for build secrets. By default there are none.
    #[must_use]
    pub fn secrets(mut self, secrets: Arc<dyn Secrets>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Fetches registry tokens on this side, through `transport`. Without one the daemon fetches them itself, with the credentials.
    #[must_use]
    pub fn token_transport(mut self, transport: Arc<dyn TokenTransport>) -> Self {
        self.tokens = Some(transport);
        self
    }

    /// Makes the daemon check this often, and within as long, whether the session is alive, and end it at the first
    /// failure. By default it checks every 5 s and ends the session at the second check that takes over 15 s.
    #[must_use]
    pub fn health_timeout(mut self, timeout: Duration) -> Self {
        self.health_timeout = Some(timeout);
        self
    }

    /// Starts the session's thread and connects it.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when the daemon does not answer, [`ClientError::Thread`].
    pub async fn open(self) -> Result<Session, ClientError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let stop = CancellationToken::new();
        let failures = SourceFailures::default();
        let (opened, open) = oneshot::channel();
        let (lost, is_lost) = watch::channel(None);
        let thread = Thread { builder: self, id: id.clone(), stop: stop.clone(), failures: failures.clone(), lost };
        std::thread::Builder::new()
            .name("buildkit-session".into())
            .spawn(move || thread.run(opened))
            .map_err(|source| ClientError::Thread { source })?;
        // The sender is dropped unsent only when the thread could not make its runtime.
        let gone = || ClientError::Thread { source: std::io::ErrorKind::Other.into() };
        let control = open.await.map_err(|_| gone())??;
        Ok(Session { id, control, failures, lost: is_lost, _stop: stop.drop_guard() })
    }
}

/// An open session. Dropping it ends it, and with it the builds that run in it.
#[derive(Debug)]
pub struct Session {
    id: String,
    control: ControlClient<Channel>,
    failures: SourceFailures,
    lost: watch::Receiver<Option<String>>,
    _stop: DropGuard,
}

impl Session {
    /// The id under which the daemon knows this session.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Builds, and reports progress until the build is over.
    ///
    /// Progress goes to `updates` as it happens; when its receiver is gone it is thrown away, when it is full the
    /// build goes on and the daemon keeps what is to come. After the build has ended, its remaining progress is waited for
    /// as long as there is some at least every 5 s.
    ///
    /// Cancelling the token, or dropping the future, makes the daemon stop the build and kill its processes; with the token
    /// this returns when the daemon says they are gone, 10 s at most.
    ///
    /// # Errors
    /// Why the build failed, by class. Nothing is retried.
    pub async fn solve(
        &self,
        request: Solve,
        updates: mpsc::Sender<StatusUpdate>,
        cancel: &CancellationToken,
    ) -> Result<Solved, SolveError> {
        let run = solve::Run {
            control: self.control.clone(),
            session: &self.id,
            lost: self.lost.clone(),
            failures: &self.failures,
        };
        run.solve(request, updates, cancel).await
    }
}

/// What the session's thread owns.
struct Thread {
    builder: SessionBuilder,
    id: String,
    stop: CancellationToken,
    failures: SourceFailures,
    /// Set once: why the session ended though it was not closed.
    lost: watch::Sender<Option<String>>,
}

impl Thread {
    fn run(self, opened: oneshot::Sender<Result<ControlClient<Channel>, ClientError>>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            match client::connect(&self.builder.address, Some(KEEPALIVE)).await {
                Err(error) => drop(opened.send(Err(error))),
                Ok(channel) => {
                    let stop = self.stop.clone();
                    if opened.send(Ok(client::control(channel.clone()))).is_ok() {
                        stop.run_until_cancelled(self.serve(channel)).await;
                    }
                }
            }
        });
        // A source may still be reading: its thread ends by itself at its next packet.
        runtime.shutdown_background();
    }

    /// Serves the daemon's calls until its side of the session ends.
    async fn serve(&self, channel: Channel) {
        let (outbound, messages) = tunnel::queue();
        let mut control = ControlClient::new(WithBody { channel, body: Some(Body::new(messages)) });
        let mut request = Request::new(tokio_stream::empty());
        headers::announce(request.metadata_mut(), &self.id, &self.builder.shared_key, &METHODS);
        if let Some(timeout) = self.builder.health_timeout {
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            request.metadata_mut().insert("x-buildkit-session-health-custom-timeout", millis.into());
        }
        let inbound = match control.session(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return self.lose(format!("the daemon refused the session: {}", status.message())),
        };
        let (ended, end) = oneshot::channel();
        let tunnel = tunnel::Tunnel::new(inbound, outbound, ended);
        let incoming =
            futures::stream::once(async { Ok::<_, std::io::Error>(tunnel) }).chain(futures::stream::pending());
        let served = self.server().serve_with_incoming(incoming);
        tokio::select! {
            end = end => self.lose(match end {
                Ok(Some(status)) => format!("the session's connection broke: {}", status.message()),
                Ok(None) | Err(_) => "the daemon ended the session".to_owned(),
            }),
            _ = served => self.lose("the session's server ended".to_owned()),
        }
    }

    fn server(&self) -> tonic::transport::server::Router {
        let builder = &self.builder;
        let auth = auth::AuthService::new(builder.credentials.clone(), builder.tokens.clone());
        Server::builder()
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .http2_max_header_list_size(client::HEADER_LIST)
            .add_service(HealthServer::new(Alive))
            .add_service(FileSyncService::new(builder.dirs.clone(), self.failures.clone()))
            .add_service(AuthServer::new(auth))
            .add_service(SecretsServer::new(secrets::SecretsService::new(builder.secrets.clone())))
    }

    fn lose(&self, why: String) {
        tracing::debug!(session = self.id, why, "session ended");
        self.lost.send_replace(Some(why));
    }
}

/// A connection on which the next request has this body instead of its own, which is not encoded again.
struct WithBody {
    channel: Channel,
    body: Option<Body>,
}

impl Service<http::Request<Body>> for WithBody {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(body) = self.body.take() {
            *request.body_mut() = body;
        }
        self.channel.call(request)
    }
}

/// Answers health checks: whoever can answer is alive.
struct Alive;

#[tonic::async_trait]
impl Health for Alive {
    type WatchStream = futures::stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("health list"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health watch"))
    }
}

/// Runs what may block on another thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the session's client failed to answer"))
}
