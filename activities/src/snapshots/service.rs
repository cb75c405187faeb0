//! The api's side: says which packs are missing, presigns them, checks and stores manifests.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use workflows::contract::{ProjectId, SnapshotId};

use super::Caps;
use super::digest::PackId;
use super::manifest::{FormatError, LONGEST_MANIFEST, LONGEST_PACK, Manifest, Pack};
use crate::objects::{ObjectError, ObjectStore, Verified};

/// Bytes of the pointer `latest`.
const POINTER_LIMIT: u64 = 1024;
/// Packs that are looked up at once.
const PARALLEL_CHECKS: usize = 16;

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

impl From<FormatError> for SnapshotError {
    fn from(error: FormatError) -> Self {
        Self::Refused(error.to_string())
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

    /// The project's newest snapshot and its manifest as stored; `None` when there is none, or none that can be found.
    pub async fn latest(&self, project: &ProjectId) -> Result<Option<(SnapshotId, Bytes)>, SnapshotError> {
        let Some(pointer) = self.objects.get(&latest_key(project), POINTER_LIMIT).await? else { return Ok(None) };
        let Some(id) = std::str::from_utf8(&pointer).ok().and_then(|text| text.parse::<SnapshotId>().ok()) else {
            return Ok(None);
        };
        let manifest = self.objects.get(&manifest_key(project, &id), LONGEST_MANIFEST).await?;
        Ok(manifest.map(|manifest| (id, manifest)))
    }

    /// Says which of `packs` are missing and presigns their uploads. Called for each batch of packs as they get ready: `id` is only
    /// known with the last one. A pack stored with the wrong bytes is removed and counts as missing. A snapshot that exists becomes the
    /// project's `latest`.
    pub async fn begin(
        &self,
        project: &ProjectId,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, SnapshotError> {
        let packs = packs.iter().map(Checked::new).collect::<Result<Vec<_>, _>>()?;
        let session = session.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
        if let Some(id) = id
            && self.is_stored(project, id).await?
        {
            self.point(project, id).await?;
            return Ok(Begun { exists: true, session, uploads: Vec::new() });
        }
        let stored = self.verify(project, &packs).await?;
        let missing = packs.iter().zip(stored).filter(|(_, stored)| !stored);
        let uploads = missing.map(|(pack, _)| self.presign(project, *pack)).collect();
        Ok(Begun { exists: false, session, uploads })
    }

    /// Checks a manifest and each of its packs, stores it (the first one stored for an id stays), then moves the project's `latest`.
    pub async fn commit(
        &self,
        project: &ProjectId,
        id: &SnapshotId,
        session: &str,
        manifest: Bytes,
    ) -> Result<Committed, SnapshotError> {
        let decoded = self.decode(id, manifest.clone()).await?;
        self.check_packs(project, session, &decoded.layout.packs).await?;
        let existed = self.store(project, id, manifest).await?;
        self.point(project, id).await?;
        Ok(Committed { existed })
    }

    /// On a thread that may compute: a large manifest takes a while.
    async fn decode(&self, id: &SnapshotId, stored: Bytes) -> Result<Manifest, SnapshotError> {
        let (id, caps) = (id.clone(), self.caps.clone());
        let decoded = tokio::task::spawn_blocking(move || Manifest::decode_as(&id, &stored, &caps)).await;
        let unfinished = |_| SnapshotError::Refused("the manifest could not be read".to_owned());
        Ok(decoded.map_err(unfinished)??)
    }

    /// Whether a manifest for this id is stored that can be used. One that cannot counts as missing, and is replaced by the next commit.
    async fn is_stored(&self, project: &ProjectId, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let Some(stored) = self.objects.get(&manifest_key(project, id), LONGEST_MANIFEST).await? else {
            return Ok(false);
        };
        Ok(self.decode(id, stored).await.is_ok())
    }

    /// Every pack is one of the base's, or stored under this project's own prefix with the right size and digest.
    async fn check_packs(&self, project: &ProjectId, session: &str, packs: &[Pack]) -> Result<(), SnapshotError> {
        let base = self.latest_packs(project).await?;
        let new: Vec<_> =
            packs.iter().filter(|pack| base.get(&pack.id) != Some(&pack.size)).copied().map(Checked).collect();
        let stored = self.verify(project, &new).await?;
        match new.iter().zip(stored).find(|(_, stored)| !stored) {
            Some((Checked(pack), _)) => {
                tracing::warn!(%project, session, pack = %pack.id, "a manifest names a pack that is not stored");
                Err(SnapshotError::Refused(format!(
                    "pack {} of {} bytes is not stored for this project",
                    pack.id, pack.size
                )))
            }
            None => Ok(()),
        }
    }

    async fn latest_packs(&self, project: &ProjectId) -> Result<HashMap<PackId, u64>, SnapshotError> {
        let Some((id, stored)) = self.latest(project).await? else { return Ok(HashMap::new()) };
        // A base that cannot be read vouches for nothing.
        let packs = self.decode(&id, stored).await.map(|manifest| manifest.layout.packs).unwrap_or_default();
        Ok(packs.into_iter().map(|pack| (pack.id, pack.size)).collect())
    }

    /// For each pack whether it is stored as it should be.
    async fn verify(&self, project: &ProjectId, packs: &[Checked]) -> Result<Vec<bool>, SnapshotError> {
        let verify = |Checked(pack): &Checked| {
            let (objects, Pack { id, size }, key) = (self.objects.clone(), *pack, pack_key(project, &pack.id));
            async move {
                match objects.verify_immutable(&key, size, &id.0, LONGEST_PACK).await? {
                    Verified::Good => Ok(true),
                    Verified::Absent => Ok(false),
                    Verified::OtherSize(actual) => {
                        Err(SnapshotError::Refused(format!("pack {id} is {actual} bytes long, not {size}")))
                    }
                }
            }
        };
        let stored = stream::iter(packs.iter().map(verify).collect::<Vec<_>>()).buffered(PARALLEL_CHECKS);
        stored.try_collect().await
    }

    fn presign(&self, project: &ProjectId, Checked(pack): Checked) -> PackUpload {
        let key = pack_key(project, &pack.id);
        let presigned = self.objects.presign_put(&key, pack.size, &pack.id.0, self.presign_expiry);
        PackUpload { sha256: pack.id.to_string(), url: presigned.url, headers: presigned.headers.into_iter().collect() }
    }

    /// Whether there was one already. The first manifest stored for an id stays, unless it cannot be used.
    async fn store(&self, project: &ProjectId, id: &SnapshotId, manifest: Bytes) -> Result<bool, SnapshotError> {
        if self.is_stored(project, id).await? {
            return Ok(true);
        }
        let key = manifest_key(project, id);
        if self.objects.put_if_absent(&key, manifest.clone()).await? {
            return Ok(false);
        }
        // Somebody was faster, or what is there cannot be used.
        let existed = self.is_stored(project, id).await?;
        if !existed {
            self.objects.put(&key, manifest).await?;
        }
        Ok(existed)
    }

    async fn point(&self, project: &ProjectId, id: &SnapshotId) -> Result<(), SnapshotError> {
        let key = latest_key(project);
        let pointer = Bytes::from(id.to_string());
        // One write a second to a key is all that some storage takes: none that changes nothing.
        if self.objects.get(&key, POINTER_LIMIT).await?.as_ref() != Some(&pointer) {
            self.objects.put(&key, pointer).await?;
        }
        Ok(())
    }
}

/// A pack whose name and size can be one's.
#[derive(Clone, Copy)]
struct Checked(Pack);

impl Checked {
    fn new(pack: &PackRef) -> Result<Self, SnapshotError> {
        let refuse = |why| Err(SnapshotError::Refused(format!("pack {:.80}: {why}", pack.sha256)));
        let Some(id) = PackId::parse(&pack.sha256) else { return refuse("its name is not 64 lower-case hex digits") };
        if !(1..=LONGEST_PACK).contains(&pack.size) {
            return refuse("it is empty or longer than 8 MiB");
        }
        Ok(Self(Pack { id, size: pack.size }))
    }
}

pub(super) fn pack_key(project: &ProjectId, pack: &PackId) -> String {
    format!("p/{project}/packs/{pack}")
}

pub(super) fn manifest_key(project: &ProjectId, id: &SnapshotId) -> String {
    format!("p/{project}/snapshots/{id}")
}

fn latest_key(project: &ProjectId) -> String {
    format!("p/{project}/latest")
}
