//! Solving: one build from request to result.

use crate::{
    Descriptor, Export, FailureKind, SolveError, StatusUpdate,
    client::StatusStream,
    error::{is_duplicate, is_transport},
    progress::Vertexes,
    proto::moby::buildkit::v1::{
        CacheOptions, CacheOptionsEntry, Exporter, SolveRequest,
        control_client::ControlClient,
        sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector},
    },
    source::SourceFailures,
};
use futures::StreamExt as _;
use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

/// How long the end of the progress is waited for once the build has ended, from message to message.
const STATUS_INACTIVITY: Duration = Duration::from_secs(5);
/// How long a cancelled build may take to say that it has stopped.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// What turns the build's definition into steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend {
    /// The Dockerfile frontend that is part of the daemon, whatever a `# syntax=` line says.
    BuiltIn,
    /// As [`Frontend::BuiltIn`], but a `# syntax=` line is followed: the daemon then runs the image it names.
    Dockerfile,
    /// The frontend image by its reference.
    Image { reference: String },
}

/// A cache to be read from or written to, as `buildctl --import-cache` and `--export-cache` take them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CacheEntry {
    #[serde(rename = "Type")]
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

/// A request to build.
#[derive(Debug, Clone)]
pub struct Solve {
    reference: String,
    frontend: Frontend,
    attrs: BTreeMap<String, String>,
    exports: Vec<Export>,
    cache_imports: Vec<CacheEntry>,
    cache_exports: Vec<CacheEntry>,
    entitlements: Vec<String>,
    images: Option<Vec<String>>,
    proxy_network: bool,
    internal: bool,
}

impl Solve {
    /// `reference` names the build at the daemon, for its status, its history, and as a fence: as long as a build by that
    /// name runs, another is refused with [`FailureKind::DuplicateRef`].
    pub fn new(reference: impl Into<String>, frontend: Frontend) -> Self {
        Self {
            reference: reference.into(),
            frontend,
            attrs: BTreeMap::new(),
            exports: Vec::new(),
            cache_imports: Vec::new(),
            cache_exports: Vec::new(),
            entitlements: Vec::new(),
            images: None,
            proxy_network: false,
            internal: false,
        }
    }

    /// The name given to [`Solve::new`].
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// An option of the frontend: `filename`, `target`, `build-arg:NAME`, `label:NAME`, `platform`, `no-cache`, …
    #[must_use]
    pub fn attr(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attrs.insert(name.into(), value.into());
        self
    }

    /// What becomes of the result. Without any, the build only fills the cache.
    #[must_use]
    pub fn export(mut self, export: Export) -> Self {
        self.exports.push(export);
        self
    }

    #[must_use]
    pub fn cache_import(mut self, cache: CacheEntry) -> Self {
        self.cache_imports.push(cache);
        self
    }

    #[must_use]
    pub fn cache_export(mut self, cache: CacheEntry) -> Self {
        self.cache_exports.push(cache);
        self
    }

    /// Allows `network.host` or `security.insecure`, if the daemon does too.
    #[must_use]
    pub fn entitlement(mut self, name: impl Into<String>) -> Self {
        self.entitlements.push(name.into());
        self
    }

    /// Lets the build take images from these repositories only (`host/path`, Docker Hub as `docker.io`), by whatever tag or digest;
    /// another one is [`FailureKind::ImageDenied`]. Without this call, every image is allowed, also one that the daemon has
    /// from another build and that this session could not pull.
    #[must_use]
    pub fn images_from<R: Into<String>>(mut self, repositories: impl IntoIterator<Item = R>) -> Self {
        self.images = Some(repositories.into_iter().map(Into::into).collect());
        self
    }

    /// Lets steps reach the network through the daemon's own proxy only.
    #[must_use]
    pub fn proxy_network(mut self) -> Self {
        self.proxy_network = true;
        self
    }

    /// Keeps the build out of the daemon's history.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self
    }

    fn into_request(self, session: &str) -> SolveRequest {
        let mut attrs = self.attrs;
        let frontend = match self.frontend {
            Frontend::BuiltIn => {
                // Set, the frontend takes it that the line has been followed already.
                attrs.entry("cmdline".into()).or_insert_with(|| "dockerfile.v0".into());
                "dockerfile.v0"
            }
            Frontend::Dockerfile => "dockerfile.v0",
            Frontend::Image { reference } => {
                // Else the image would follow the line by itself, to whatever its tag points at.
                attrs.entry("cmdline".into()).or_insert_with(|| reference.clone());
                attrs.insert("source".into(), reference);
                "gateway.v0"
            }
        };
        // `Cache.imports` of the request is for builds without a frontend.
        if !self.cache_imports.is_empty()
            && let Ok(imports) = serde_json::to_string(&self.cache_imports)
        {
            attrs.insert("cache-imports".into(), imports);
        }
        let exporter = |export: Export| {
            let (kind, attrs) = export.into_parts();
            Exporter { r#type: kind, attrs: attrs.into_iter().collect() }
        };
        let cache =
            |entry: CacheEntry| CacheOptionsEntry { r#type: entry.kind, attrs: entry.attrs.into_iter().collect() };
        SolveRequest {
            r#ref: self.reference,
            session: session.to_owned(),
            frontend: frontend.to_owned(),
            frontend_attrs: attrs.into_iter().collect(),
            exporters: self.exports.into_iter().map(exporter).collect(),
            cache: Some(CacheOptions {
                exports: self.cache_exports.into_iter().map(cache).collect(),
                ..Default::default()
            }),
            entitlements: self.entitlements,
            source_policy: self.images.as_deref().map(image_policy),
            proxy_network: self.proxy_network,
            internal: self.internal,
            ..Default::default()
        }
    }
}

/// Denies all images but those of some repositories: of the rules that match, the last one decides.
fn image_policy(repositories: &[String]) -> Policy {
    let rule = |action: PolicyAction, identifier: String| Rule {
        action: action.into(),
        selector: Some(Selector { identifier, match_type: MatchType::Regex.into() }),
    };
    let all = rule(PolicyAction::Deny, "^(docker-image|oci-layout)://".into());
    let allowed = repositories.iter().map(|repository| {
        let identifier = format!("^docker-image://{}([:@].*)?$", regex::escape(repository));
        rule(PolicyAction::Allow, identifier)
    });
    Policy { version: 1, rules: std::iter::once(all).chain(allowed).collect() }
}

/// A build that succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Solved {
    /// The image's digest: of its index when it has one.
    pub digest: Option<String>,
    pub config_digest: Option<String>,
    /// The image's descriptor.
    pub descriptor: Option<Descriptor>,
    /// All that the exporters reported.
    pub response: BTreeMap<String, String>,
}

impl Solved {
    pub(crate) fn new(response: HashMap<String, String>) -> Self {
        let get = |key: &str| response.get(key).cloned();
        Self {
            digest: get("containerimage.digest"),
            config_digest: get("containerimage.config.digest"),
            descriptor: response.get("containerimage.descriptor").and_then(|text| Descriptor::from_base64(text)),
            response: response.into_iter().collect(),
        }
    }
}

/// What a solve needs of its session.
pub(crate) struct Run<'s> {
    pub(crate) control: ControlClient<Channel>,
    pub(crate) session: &'s str,
    pub(crate) lost: watch::Receiver<Option<String>>,
    pub(crate) failures: &'s SourceFailures,
}

/// How the call itself ended.
enum End {
    Solved(Solved),
    Refused(Box<Status>),
    SessionLost(String),
    Cancelled,
}

impl Run<'_> {
    pub(crate) async fn solve(
        self,
        request: Solve,
        updates: mpsc::Sender<StatusUpdate>,
        cancel: &CancellationToken,
    ) -> Result<Solved, SolveError> {
        let mut progress = Follower {
            control: self.control.clone(),
            reference: request.reference.clone(),
            updates,
            vertexes: Vertexes::default(),
        };
        // What went wrong in an earlier build is no reason for this one.
        drop(self.failures.take());
        let (ended, end) = oneshot::channel();
        let call = async {
            let end = self.call(request, cancel).await;
            // The follower may be through already.
            let _ = ended.send(Linger::after(&end));
            end
        };
        let (end, ()) = tokio::join!(call, progress.follow(end));
        let vertexes = progress.vertexes;
        match end {
            End::Solved(solved) => Ok(solved),
            End::Cancelled => Err(SolveError::new(FailureKind::Cancelled, "the build was cancelled")),
            End::SessionLost(why) => Err(SolveError::new(FailureKind::ConnectionLost, why)),
            End::Refused(status) => Err(SolveError::from_status(&status, &vertexes, self.failures.take())),
        }
    }

    /// The call; dropping it on cancellation is what stops the build.
    async fn call(&self, request: Solve, cancel: &CancellationToken) -> End {
        let mut control = self.control.clone();
        let (mut losing, lost) = (self.lost.clone(), &self.lost);
        tokio::select! {
            biased;
            () = cancel.cancelled() => End::Cancelled,
            answer = control.solve(request.into_request(self.session)) => match answer {
                Ok(response) => End::Solved(Solved::new(response.into_inner().exporter_response)),
                // The session's thread took the connection with it: its reason is the first one.
                Err(status) if is_transport(&status) && lost.borrow().is_some() => session_lost(lost),
                Err(status) => End::Refused(Box::new(status)),
            },
            Ok(_) = losing.wait_for(Option::is_some) => session_lost(lost),
        }
    }
}

fn session_lost(lost: &watch::Receiver<Option<String>>) -> End {
    End::SessionLost(lost.borrow().clone().unwrap_or_default())
}

/// How long to go on reading progress after the call has ended.
enum Linger {
    /// There is none, or it is that of another build.
    No,
    /// As long as something comes.
    WhileActive,
    /// As before, but only for so long.
    AtMost(Duration),
}

impl Linger {
    fn after(end: &End) -> Self {
        match end {
            End::Solved(_) => Self::WhileActive,
            End::Cancelled => Self::AtMost(CANCEL_PATIENCE),
            End::SessionLost(_) => Self::No,
            End::Refused(status) if is_transport(status) || is_duplicate(status.message()) => Self::No,
            End::Refused(_) => Self::WhileActive,
        }
    }
}

/// Reads a build's progress and hands it on.
struct Follower {
    control: ControlClient<Channel>,
    reference: String,
    updates: mpsc::Sender<StatusUpdate>,
    vertexes: Vertexes,
}

impl Follower {
    /// Follows until the progress ends, or has lingered long enough after the call ended.
    async fn follow(&mut self, ended: oneshot::Receiver<Linger>) {
        // A watch and not a cell: the future has to be `Send`.
        let active = watch::Sender::new(Instant::now());
        let mut pump = pin!(self.pump(&active));
        let linger = tokio::select! {
            () = &mut pump => return,
            linger = ended => linger.unwrap_or(Linger::No),
        };
        let limit = match linger {
            Linger::No => return,
            Linger::WhileActive => None,
            Linger::AtMost(limit) => Some(Instant::now() + limit),
        };
        active.send_replace(Instant::now());
        loop {
            let idle = *active.borrow() + STATUS_INACTIVITY;
            let until = limit.map_or(idle, |limit| limit.min(idle));
            if timeout_at(until, &mut pump).await.is_ok()
                || limit == Some(until)
                || *active.borrow() + STATUS_INACTIVITY == idle
            {
                return;
            }
        }
    }

    /// Notes in `active` when the last message came.
    async fn pump(&mut self, active: &watch::Sender<Instant>) {
        let mut stream = match StatusStream::open(self.control.clone(), &self.reference).await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(reference = self.reference, ?error, "no progress of the build"),
        };
        while let Some(Ok(update)) = stream.next().await {
            active.send_replace(Instant::now());
            self.vertexes.note(&update);
            // Nobody may be interested; the names of steps are needed all the same.
            let _ = self.updates.send(update).await;
        }
    }
}
