//! The cell's side: a snapshot as a source of files for buildkitd, fetched piece by piece.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use workflows::contract::{ProjectId, SnapshotId};

use super::{Caps, SnapshotError};
use crate::objects::ObjectStore;

/// The files of snapshots on the cache disk, of all projects (apart) and builds of a cell, under one size cap.
pub struct SnapshotCache {
    _private: (),
}

impl SnapshotCache {
    /// `dir` is made where it is missing. Only one process uses it at a time.
    pub fn open(dir: &Path, cap_bytes: u64) -> io::Result<Arc<Self>> {
        let _ = (dir, cap_bytes);
        Ok(Arc::new(Self { _private: () }))
    }
}

/// A snapshot whose manifest is read and verified; contents are fetched when they are asked for. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotSource {
    _private: Arc<()>,
}

/// A directory of a snapshot.
#[derive(Clone)]
pub struct SnapshotView {
    _source: SnapshotSource,
}

/// What a source has fetched so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes from object storage: packs and manifest.
    pub pack_bytes: u64,
    pub manifest_bytes: u64,
    pub requests: u64,
    pub frames: u64,
}

impl SnapshotSource {
    /// Reads the manifest, from the cache disk or object storage. Must be called within the Tokio runtime that later fetches.
    pub async fn open(
        objects: &ObjectStore,
        cache: &Arc<SnapshotCache>,
        project: &ProjectId,
        id: &SnapshotId,
        caps: &Caps,
    ) -> Result<Self, SnapshotError> {
        let _ = (objects, cache, project, id, caps);
        todo!()
    }

    /// The build's context: everything but the reserved `.kiln`.
    pub fn context(&self) -> SnapshotView {
        todo!()
    }

    /// A directory as a source of its own, for example the one that holds the Dockerfile (`b".kiln"` when it came from outside the
    /// context). Empty where there is no such directory.
    pub fn directory(&self, path: &[u8]) -> SnapshotView {
        let _ = path;
        todo!()
    }

    /// The content of one file, at most `limit` bytes; `None` when there is no such file.
    pub async fn read(&self, path: &[u8], limit: u64) -> Result<Option<Bytes>, SnapshotError> {
        let _ = (path, limit);
        todo!()
    }

    pub fn fetched(&self) -> Fetched {
        todo!()
    }
}

impl buildkit::Source for SnapshotView {
    fn entries(&self) -> io::Result<Vec<buildkit::Entry>> {
        todo!()
    }

    fn open(&self, _path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        todo!()
    }
}
