//! The control API apart from solving: who the daemon is, what it stores, how builds go and went.

use crate::{
    StatusUpdate,
    error::is_transport,
    progress::millis,
    proto::moby::buildkit::v1::{
        DiskUsageRequest, InfoRequest, ListWorkersRequest, PruneRequest, StatusRequest, StatusResponse, UsageRecord,
        control_client::ControlClient, types,
    },
};
use futures::Stream;
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// A message may hold the whole log of a finished build.
const DECODE_LIMIT: usize = 64 << 20;
/// Flow-control windows of what the daemon sends, in bytes: for a stream, for the connection. The second is so much
/// larger because half of it is what small frames may pile up to (256 bytes each) before the connection is ended for it,
/// and the progress of a build whose caller does not read it is nothing but small frames.
const WINDOWS: (u32, u32) = (1 << 20, 64 << 20);

/// The largest header list that either side may send, bytes: what gRPC for Go accepts by default. An error carries the
/// Dockerfile, in base64 and in base64 again; a request for files has a header for each pattern and path. HTTP/2 bounds
/// what one list may cost, and only the daemon is on these connections.
pub(crate) const HEADER_LIST: u32 = 16 << 20;

/// Why a call of the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to buildkitd at {address}")]
    Connect { address: String, source: tonic::transport::Error },
    #[error("buildkitd's answer to {call} is an error")]
    Call { call: &'static str, source: Box<Status> },
    #[error("the connection to buildkitd was lost during {call}")]
    ConnectionLost { call: &'static str, source: Box<Status> },
    #[error("cannot start the session's thread")]
    Thread { source: std::io::Error },
}

impl ClientError {
    pub(crate) fn call(call: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| {
            let source = Box::new(status);
            if is_transport(&source) { Self::ConnectionLost { call, source } } else { Self::Call { call, source } }
        }
    }
}

/// A connection to a BuildKit daemon. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    address: Arc<PathBuf>,
    control: ControlClient<Channel>,
}

impl Client {
    /// Connects to a daemon that listens on a unix socket.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nothing answers there.
    pub async fn connect_unix(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let address = Arc::new(socket.into());
        let control = control(connect(&address, None).await?);
        Ok(Self { address, control })
    }

    pub(crate) fn address(&self) -> Arc<PathBuf> {
        self.address.clone()
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        self.control.clone()
    }

    /// The daemon's version.
    pub async fn info(&self) -> Result<Info, ClientError> {
        let answer = self.control().info(InfoRequest {}).await.map_err(ClientError::call("Info"))?;
        let version = answer.into_inner().buildkit_version.unwrap_or_default();
        Ok(Info {
            version: version.version,
            revision: version.revision,
            dockerfile_version: Some(version.dockerfile_version).filter(|version| !version.is_empty()),
        })
    }

    /// The daemon's workers; the first is the one that builds.
    pub async fn workers(&self) -> Result<Vec<Worker>, ClientError> {
        let request = ListWorkersRequest { filter: Vec::new() };
        let answer = self.control().list_workers(request).await.map_err(ClientError::call("ListWorkers"))?;
        Ok(answer.into_inner().record.into_iter().map(Worker::from).collect())
    }

    /// What the daemon's cache holds, entry by entry.
    pub async fn disk_usage(&self) -> Result<Vec<DiskUsage>, ClientError> {
        let request = DiskUsageRequest { filter: Vec::new(), age_limit: 0 };
        let answer = self.control().disk_usage(request).await.map_err(ClientError::call("DiskUsage"))?;
        Ok(answer.into_inner().record.into_iter().map(DiskUsage::from).collect())
    }

    /// Removes what belongs to nothing in the cache any more, such as what a failed step wrote. The cache itself stays as it is.
    ///
    /// Returns when it is gone, unless the daemon was collecting by itself (as it does at its start and every two minutes): then it goes
    /// a moment later.
    pub async fn collect_garbage(&self) -> Result<(), ClientError> {
        // Pruning ends with a collection; no entry has this id.
        let request = PruneRequest { filter: vec!["id==none".into()], ..PruneRequest::default() };
        let mut pruned = self.control().prune(request).await.map_err(ClientError::call("Prune"))?.into_inner();
        while pruned.message().await.map_err(ClientError::call("Prune"))?.is_some() {}
        Ok(())
    }

    /// The progress of the build `reference`: from its start, until it ends; of a build that has ended, all of it.
    /// The daemon waits up to 6 s for a build it does not know.
    pub async fn status(&self, reference: &str) -> Result<StatusStream, ClientError> {
        StatusStream::open(self.control(), reference).await
    }
}

/// The progress of a build. Ends with the build.
#[derive(Debug)]
pub struct StatusStream(Streaming<StatusResponse>);

impl StatusStream {
    pub(crate) async fn open(mut control: ControlClient<Channel>, reference: &str) -> Result<Self, ClientError> {
        let request = StatusRequest { r#ref: reference.to_owned() };
        Ok(Self(control.status(request).await.map_err(ClientError::call("Status"))?.into_inner()))
    }
}

impl Stream for StatusStream {
    type Item = Result<StatusUpdate, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = Pin::new(&mut self.0).poll_next(context);
        message.map(|message| Some(message?.map(StatusUpdate::from).map_err(ClientError::call("Status"))))
    }
}

/// Connects. With `keepalive` the connection's loss is noticed though nothing is sent: pings at this interval, each
/// answered within as long.
pub(crate) async fn connect(address: &Arc<PathBuf>, keepalive: Option<Duration>) -> Result<Channel, ClientError> {
    // The authority is required by HTTP/2 and means nothing here.
    let mut endpoint = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .http2_max_header_list_size(HEADER_LIST);
    if let Some(interval) = keepalive {
        endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(interval);
    }
    let socket = address.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket.as_path()).await.map(TokioIo::new) }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|source| ClientError::Connect { address: format!("unix://{}", address.display()), source })
}

/// The control API on a connection.
pub(crate) fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(DECODE_LIMIT)
}

/// Which daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub version: String,
    pub revision: String,
    /// The version of the built-in Dockerfile frontend, where the daemon tells it.
    pub dockerfile_version: Option<String>,
}

/// A worker of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    /// What it can build for, as `os/architecture[/variant]`, its own platform first.
    pub platforms: Vec<String>,
}

impl From<types::WorkerRecord> for Worker {
    fn from(record: types::WorkerRecord) -> Self {
        let platform = |platform: crate::proto::pb::Platform| {
            let parts = [platform.os, platform.architecture, platform.variant];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        };
        Self {
            id: record.id,
            labels: record.labels.into_iter().collect(),
            platforms: record.platforms.into_iter().map(platform).collect(),
        }
    }
}

/// An entry of the daemon's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    pub id: String,
    /// `regular`, `source.local`, `exec.cachemount` and the like.
    pub kind: String,
    pub description: String,
    /// Bytes.
    pub size: i64,
    pub in_use: bool,
    pub mutable: bool,
    /// Whether its content is shared with other entries.
    pub shared: bool,
    pub parents: Vec<String>,
    pub usage_count: i64,
    pub created_ms: Option<u64>,
    pub last_used_ms: Option<u64>,
}

impl From<UsageRecord> for DiskUsage {
    fn from(record: UsageRecord) -> Self {
        Self {
            id: record.id,
            kind: record.record_type,
            description: record.description,
            size: record.size,
            in_use: record.in_use,
            mutable: record.mutable,
            shared: record.shared,
            parents: record.parents,
            usage_count: record.usage_count,
            created_ms: record.created_at.map(millis),
            last_used_ms: record.last_used_at.map(millis),
        }
    }
}
