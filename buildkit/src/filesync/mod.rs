//! Sending a source's files to the daemon: fsutil's protocol over `FileSync.DiffCopy`.
//!
//! ```text
//!  this side                              daemon
//!  STAT entry, STAT entry, …  ─────────►  compares with what it has
//!  STAT (empty: listing is complete)
//!                             ◄─────────  REQ id   (ids count the entries from 0)
//!  DATA id chunk, …, DATA id (empty) ──►
//!                             ◄─────────  FIN
//!  FIN                        ─────────►
//! ```

mod pace;
mod sender;
mod wire;

use crate::{
    proto::{fsutil::types::Packet, moby::filesync::v1::file_sync_server::FileSync},
    session::header_values,
    source::{Selection, Source},
};
use futures::stream::BoxStream;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tonic::{Request, Response, Status, Streaming};

/// What went wrong on this side while a source was read: the daemon only repeats the text, as one of many.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFailures(Arc<Mutex<Option<SourceFailure>>>);

#[derive(Debug, Clone)]
pub(crate) struct SourceFailure {
    /// The name of the source.
    pub(crate) dir: String,
    pub(crate) message: String,
}

impl SourceFailures {
    /// Keeps the first failure.
    pub(crate) fn record(&self, failure: SourceFailure) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    pub(crate) fn take(&self) -> Option<SourceFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(crate) struct FileSyncService {
    dirs: HashMap<String, Arc<dyn Source>>,
    failures: SourceFailures,
}

impl FileSyncService {
    pub(crate) fn new(dirs: HashMap<String, Arc<dyn Source>>, failures: SourceFailures) -> Self {
        Self { dirs, failures }
    }
}

#[tonic::async_trait]
impl FileSync for FileSyncService {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let metadata = request.metadata();
        let dir = header_values(metadata, "dir-name").into_iter().next().unwrap_or_default();
        let dir = String::from_utf8_lossy(&dir).into_owned();
        let selection = Selection {
            include: header_values(metadata, "include-patterns"),
            exclude: header_values(metadata, "exclude-patterns"),
            follow: header_values(metadata, "followpaths"),
        };
        tracing::debug!(dir, ?selection, "the daemon asks for files");
        let source = self.dirs.get(&dir).cloned();
        let source = source.ok_or_else(|| Status::not_found(format!("no access allowed to dir {dir:?}")))?;
        let transfer = sender::Transfer { dir, source, selection, failures: self.failures.clone() };
        Ok(Response::new(Box::pin(transfer.start(request.into_inner()))))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tar stream"))
    }
}
