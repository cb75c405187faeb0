//! The api's side: says which packs are missing, presigns them, checks and stores manifests.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use workflows::contract::{ProjectId, SnapshotId};

use super::Caps;
use super::digest::PackId;
use super::manifest::{FormatError, LONGEST_MANIFEST, LONGEST_PACK, Manifest, Pack, memory_of};
use super::room::{Room, Rooms};
use crate::objects::{ObjectError, ObjectStore, Verified};

/// Most manifests are no longer than this, bytes; a longer one's size is looked up before it is read.
const USUAL_MANIFEST: u64 = 4 << 20;
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
    /// Other manifests take all the memory that there is for them.
    #[error("too many manifests are being checked")]
    Busy,
}

impl SnapshotError {
    /// Whether storage was busy or away: worth another try later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_transient(),
            Self::Busy => true,
            Self::Refused(_) => false,
        }
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
    rooms: Rooms,
}

impl SnapshotService {
    pub fn new(objects: ObjectStore, caps: Caps, presign_expiry: Duration) -> Self {
        Self { objects, caps, presign_expiry, rooms: Rooms::default() }
    }

    /// The project's newest snapshot and its manifest as stored; `None` when there is none, or none that can be found.
    pub async fn latest(&self, project: &ProjectId) -> Result<Option<(SnapshotId, Bytes)>, SnapshotError> {
        let Some(id) = self.latest_id(project).await? else { return Ok(None) };
        let manifest = self.stored(project, &id, &self.rooms.serving).await?;
        Ok(manifest.map(|manifest| (id, manifest)))
    }

    /// Where `latest` points.
    async fn latest_id(&self, project: &ProjectId) -> Result<Option<SnapshotId>, SnapshotError> {
        let pointer = self.objects.get(&latest_key(project), POINTER_LIMIT).await?;
        Ok(pointer.and_then(|pointer| std::str::from_utf8(&pointer).ok()?.parse().ok()))
    }

    /// A manifest as stored. Its bytes hold their room until they are dropped.
    async fn stored(&self, project: &ProjectId, id: &SnapshotId, room: &Room) -> Result<Option<Bytes>, SnapshotError> {
        let key = manifest_key(project, id);
        let held = room.take(USUAL_MANIFEST).await?;
        let error = match self.objects.get(&key, USUAL_MANIFEST).await {
            Ok(stored) => return Ok(stored.map(|bytes| held.around(bytes))),
            Err(error) => error,
        };
        drop(held);
        let size = self.objects.head(&key).await?.map_or(0, |head| head.size);
        if !(USUAL_MANIFEST..=LONGEST_MANIFEST).contains(&size) {
            return Err(error.into());
        }
        let held = room.take(size).await?;
        Ok(self.objects.get(&key, size).await?.map(|bytes| held.around(bytes)))
    }

    /// A body of `length` bytes that is about to be received, put around its bytes by `receive`.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while other uploads take all the room there is; else what `receive` returns.
    pub async fn receive<E: From<SnapshotError>>(
        &self,
        length: u64,
        receive: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, E> {
        let held = self.rooms.uploads.take(length).await?;
        receive.await.map(|bytes| held.around(bytes))
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
        let mut uploads = Vec::new();
        for (pack, _) in missing {
            uploads.push(self.presign(project, *pack).await?);
        }
        Ok(Begun { exists: false, session, uploads })
    }

    /// Checks a manifest and each of its packs, stores it (the first one stored for an id stays), then moves the project's `latest`. `most`
    /// is how many bytes of content the project may have in a snapshot.
    pub async fn commit(
        &self,
        project: &ProjectId,
        id: &SnapshotId,
        session: &str,
        manifest: Bytes,
        most: Option<u64>,
    ) -> Result<Committed, SnapshotError> {
        let packs = self.check(id, manifest.clone(), most).await?;
        self.check_packs(project, session, &packs).await?;
        let existed = self.store(project, id, manifest).await?;
        self.point(project, id).await?;
        Ok(Committed { existed })
    }

    /// The packs of a manifest that keeps to the rules. On a thread that may compute: a large manifest takes a while.
    async fn check(&self, id: &SnapshotId, stored: Bytes, most: Option<u64>) -> Result<Vec<Pack>, SnapshotError> {
        let held = self.rooms.checks.take(memory_of(&stored)).await?;
        let bytes = most.map_or(self.caps.bytes, |most| most.min(self.caps.bytes));
        let (id, caps) = (id.clone(), Caps { bytes, ..self.caps.clone() });
        let checked = tokio::task::spawn_blocking(move || {
            let checked = Manifest::check_as(&id, &stored, &caps);
            // Also when the request is gone, checking goes on, and holds its room.
            drop(held);
            checked
        });
        let unfinished = |_| SnapshotError::Refused("the manifest could not be read".to_owned());
        Ok(checked.await.map_err(unfinished)??)
    }

    /// Whether a manifest for this id is stored that can be used. One that cannot counts as missing, and is replaced by the next commit.
    async fn is_stored(&self, project: &ProjectId, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let Some(stored) = self.stored(project, id, &self.rooms.stored).await? else { return Ok(false) };
        match self.check(id, stored, None).await {
            Err(SnapshotError::Busy) => Err(SnapshotError::Busy),
            checked => Ok(checked.is_ok()),
        }
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
        let Some(id) = self.latest_id(project).await? else { return Ok(HashMap::new()) };
        let Some(stored) = self.stored(project, &id, &self.rooms.stored).await? else { return Ok(HashMap::new()) };
        // A base that cannot be read vouches for nothing.
        let packs = match self.check(&id, stored, None).await {
            Err(SnapshotError::Busy) => return Err(SnapshotError::Busy),
            checked => checked.unwrap_or_default(),
        };
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

    async fn presign(&self, project: &ProjectId, Checked(pack): Checked) -> Result<PackUpload, SnapshotError> {
        let key = pack_key(project, &pack.id);
        let presigned = self.objects.presign_put(&key, pack.size, &pack.id.0, self.presign_expiry).await?;
        let headers = presigned.headers.into_iter().collect();
        Ok(PackUpload { sha256: pack.id.to_string(), url: presigned.url, headers })
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
