//! The api's side: says which packs are missing, presigns them, checks and stores manifests.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use workflows::contract::{ProjectId, SnapshotId};

use super::Caps;
use crate::objects::{ObjectError, ObjectStore};

/// A pack by name and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// SHA-256 of the stored bytes, 64 lower-case hex digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// The answer to `begin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The snapshot is stored already: nothing is to be uploaded or committed.
    pub exists: bool,
    /// Names this upload; sent with the commit.
    pub session: String,
    /// The packs that are not stored yet.
    pub uploads: Vec<PackUpload>,
}

/// One presigned upload.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUpload {
    pub sha256: String,
    /// Carries a signature: not for logs.
    pub url: String,
    /// To be sent as they are.
    pub headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for PackUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackUpload").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

/// The answer to `commit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Somebody else had stored a manifest for this id before; that one stays.
    pub existed: bool,
}

/// Why a snapshot was not begun, stored or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The request breaks a rule; the text names it. For the user, 4xx.
    #[error("snapshot refused: {0}")]
    Refused(String),
    #[error("cannot read or write the snapshot's objects")]
    Storage(#[from] ObjectError),
}

impl SnapshotError {
    /// Whether storage was busy or away: worth another try later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_transient())
    }
}

/// Snapshots of all projects of an installation. Keeps no state: what a session uploaded is looked up in object storage.
#[derive(Clone)]
pub struct SnapshotService {
    objects: ObjectStore,
    caps: Caps,
    presign_expiry: Duration,
}

impl SnapshotService {
    pub fn new(objects: ObjectStore, caps: Caps, presign_expiry: Duration) -> Self {
        Self { objects, caps, presign_expiry }
    }

    /// The project's newest snapshot and its manifest as stored; `None` when there is none.
    pub async fn latest(&self, project: &ProjectId) -> Result<Option<(SnapshotId, Bytes)>, SnapshotError> {
        let _ = (project, &self.objects, &self.caps, self.presign_expiry);
        todo!()
    }

    /// Says which of `packs` are missing and presigns their uploads. Called for each batch of packs as they get ready: `id` is only
    /// known with the last one. A pack stored with the wrong bytes is removed and counts as missing.
    pub async fn begin(
        &self,
        project: &ProjectId,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, SnapshotError> {
        let _ = (project, id, session, packs);
        todo!()
    }

    /// Checks a manifest and each of its packs, stores it (the first one stored for an id stays), then moves the project's `latest`.
    pub async fn commit(
        &self,
        project: &ProjectId,
        id: &SnapshotId,
        session: &str,
        manifest: Bytes,
    ) -> Result<Committed, SnapshotError> {
        let _ = (project, id, session, manifest);
        todo!()
    }
}
