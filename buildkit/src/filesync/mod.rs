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

mod outgoing;
mod pace;
mod sender;
mod wire;

use crate::{
    headers,
    pool::Pool,
    proto::{fsutil::types::Packet, moby::filesync::v1::file_sync_server::SERVICE_NAME},
    source::{Selection, Source, SourceFailure, SourceFailures, SourceFault},
};
use outgoing::Frames;
use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Status, Streaming,
    body::Body,
    codec::Codec as _,
    codegen::{Service, http},
    metadata::{GRPC_CONTENT_TYPE, MetadataMap},
    server::NamedService,
};
use tonic_prost::ProstCodec;

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";

/// The FileSync service, of which only `DiffCopy` is offered.
///
/// Not the generated one: that would copy all content once more to encode it, and cut messages where frames end.
#[derive(Clone)]
pub(crate) struct FileSyncService {
    dirs: Arc<HashMap<String, Arc<dyn Source>>>,
    failures: SourceFailures,
    pool: Arc<Pool>,
}

impl FileSyncService {
    pub(crate) fn new(dirs: HashMap<String, Arc<dyn Source>>, failures: SourceFailures) -> Self {
        Self { dirs: Arc::new(dirs), failures, pool: outgoing::pool() }
    }

    fn diff_copy(&self, metadata: &MetadataMap, packets: Streaming<Packet>) -> Result<Frames, Status> {
        let dir = headers::values(metadata, "dir-name").into_iter().next().unwrap_or_default();
        let dir = String::from_utf8_lossy(&dir).into_owned();
        let selection = Selection {
            include: headers::values(metadata, "include-patterns"),
            exclude: headers::values(metadata, "exclude-patterns"),
            follow: headers::values(metadata, "followpaths"),
        };
        tracing::debug!(dir, ?selection, "the daemon asks for files");
        let Some(source) = self.dirs.get(&dir).cloned() else {
            let message = format!("no access allowed to dir {dir:?}");
            self.failures.record(SourceFailure { dir, message: message.clone(), fault: SourceFault::NotOffered });
            return Err(Status::not_found(message));
        };
        let (failures, pool) = (self.failures.clone(), self.pool.clone());
        let transfer = sender::Transfer { dir, source, selection, failures, pool };
        Ok(transfer.start(packets))
    }
}

impl Service<http::Request<Body>> for FileSyncService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        if parts.uri.path() != DIFF_COPY {
            return ready(Ok(Status::unimplemented("only DiffCopy is offered").into_http()));
        }
        let decoder = ProstCodec::<Packet, Packet>::default().decoder();
        let packets = Streaming::new_request(decoder, body, None, None);
        ready(Ok(match self.diff_copy(&MetadataMap::from_headers(parts.headers), packets) {
            Ok(frames) => {
                let mut response = http::Response::new(Body::new(frames));
                response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
                response
            }
            Err(status) => status.into_http(),
        }))
    }
}

impl NamedService for FileSyncService {
    const NAME: &'static str = SERVICE_NAME;
}
