//! The cell's side: a snapshot as a source of files for buildkitd, fetched piece by piece.
//!
//! buildkitd compares the entries with what it has and asks for the files it lacks; just these are fetched. Whatever leaves here has the
//! digest that the manifest says.

mod cache;
mod frames;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use buildkit::compare_paths;
use bytes::{Buf as _, Bytes};
use tokio::runtime::Handle;
use workflows::contract::{ProjectId, SnapshotId};

use cache::Key;
pub use cache::SnapshotCache;
use frames::Frames;
#[cfg(any(test, fuzzing))]
pub(crate) use frames::exercise as exercise_frame;

use super::entry::{Content, Entry, Node, RESERVED};
use super::manifest::{FormatError, LONGEST_MANIFEST, Manifest};
use super::service::manifest_key;
use super::{Blob, Caps, SnapshotError};
use crate::objects::{ObjectError, ObjectStore, Problem};

/// A snapshot whose manifest is read and verified; contents are fetched when they are asked for. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotSource(Arc<Inner>);

struct Inner {
    entries: Vec<Entry>,
    frames: Arc<Frames>,
    manifest_bytes: AtomicU64,
    failure: Mutex<Option<Arc<ObjectError>>>,
    damage: OnceLock<Arc<ObjectError>>,
}

/// A directory of a snapshot.
#[derive(Clone)]
pub struct SnapshotView {
    source: SnapshotSource,
    /// Empty for the context.
    directory: Vec<u8>,
}

/// What a source has fetched so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes from object storage: packs and manifest. 0 for a manifest from the cache disk.
    pub pack_bytes: u64,
    pub manifest_bytes: u64,
    /// Ranged reads of packs, and the frames they brought.
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
        let key = manifest_in_cache(project, id);
        let (manifest, manifest_bytes) = match read_cached(cache, key, id, caps).await {
            Some(manifest) => (manifest, 0),
            None => fetch(objects, cache, project, id, caps).await?,
        };
        let Manifest { entries, layout } = manifest;
        let frames = Frames::new(layout, project.clone(), objects.clone(), Arc::clone(cache), Handle::current());
        let (manifest_bytes, failure, damage) = (AtomicU64::new(manifest_bytes), Mutex::new(None), OnceLock::new());
        Ok(Self(Arc::new(Inner { entries, frames, manifest_bytes, failure, damage })))
    }

    /// The build's context: everything but the reserved `.kiln`.
    pub fn context(&self) -> SnapshotView {
        self.directory(b"")
    }

    /// A directory as a source of its own, for example the one that holds the Dockerfile (`b".kiln"` when it came from outside the
    /// context). Empty where there is no such directory.
    pub fn directory(&self, path: &[u8]) -> SnapshotView {
        SnapshotView { source: self.clone(), directory: path.to_vec() }
    }

    /// The content of one file, at most `limit` bytes; `None` when there is no such file.
    pub async fn read(&self, path: &[u8], limit: u64) -> Result<Option<Bytes>, SnapshotError> {
        let Some(Entry { node: Node::File(content), .. }) = self.entry(path) else { return Ok(None) };
        if content.size() > limit {
            let shown = super::entry::show(path);
            return Err(SnapshotError::Refused(format!("{shown} is longer than {limit} bytes")));
        }
        let (source, content) = (self.clone(), content.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            for blob in content.blobs() {
                bytes.extend_from_slice(&source.blob(*blob)?);
            }
            Ok(Bytes::from(bytes))
        });
        let read = read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        read.map(Some).map_err(|error: Arc<ObjectError>| SnapshotError::from(again(&error)))
    }

    pub fn has_file(&self, path: &[u8]) -> bool {
        self.entry(path).is_some_and(|entry| matches!(entry.node, Node::File(_)))
    }

    /// The path of the Dockerfile that was sent beside the context, with its ignore file or without; `None` where none was.
    pub fn dockerfile_beside(&self) -> Option<String> {
        let entries = &self.0.entries[self.below(RESERVED)];
        let files = entries.iter().filter(|entry| matches!(entry.node, Node::File(_)));
        let mut paths = files.filter_map(|entry| std::str::from_utf8(&entry.path).ok());
        paths.find(|path| !path.ends_with(".dockerignore")).map(str::to_owned)
    }

    pub fn fetched(&self) -> Fetched {
        let counters = &self.0.frames.counters;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Fetched {
            pack_bytes: get(&counters.pack_bytes),
            manifest_bytes: get(&self.0.manifest_bytes),
            requests: get(&counters.requests),
            frames: get(&counters.frames),
        }
    }

    /// The first error met while buildkitd read files, since it was last asked for. The daemon only gets a text of it through the
    /// session, from which the class of the failure cannot be told.
    pub fn take_failure(&self) -> Option<SnapshotError> {
        let failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map(|error| again(&error).into())
    }

    /// What was read and was not as it had been stored.
    pub fn damage(&self) -> Option<&ObjectError> {
        self.0.damage.get().map(Arc::as_ref)
    }

    fn blob(&self, blob: Blob) -> Result<Bytes, Arc<ObjectError>> {
        self.0.frames.blob(blob).inspect_err(|error| {
            if error.is_damage() {
                let _ = self.0.damage.set(Arc::clone(error));
            }
        })
    }

    fn entry(&self, path: &[u8]) -> Option<&Entry> {
        let entries = &self.0.entries;
        let at = entries.binary_search_by(|entry| compare_paths(&entry.path, path)).ok()?;
        Some(&entries[at])
    }

    /// The entries in a directory and below it.
    fn below(&self, directory: &[u8]) -> Range<usize> {
        let entries = &self.0.entries;
        if directory.is_empty() {
            return 0..entries.len();
        }
        let start = entries.partition_point(|entry| compare_paths(&entry.path, directory).is_le());
        let inside = |entry: &Entry| is_below(&entry.path, directory);
        start..start + entries[start..].partition_point(inside)
    }
}

impl SnapshotView {
    fn full_path(&self, path: &[u8]) -> Vec<u8> {
        if self.directory.is_empty() { path.to_vec() } else { [&self.directory, b"/".as_slice(), path].concat() }
    }

    fn content(&self, path: &[u8]) -> Option<&Content> {
        match &self.source.entry(&self.full_path(path))?.node {
            Node::File(content) => Some(content),
            _ => None,
        }
    }
}

impl buildkit::Source for SnapshotView {
    fn entries(&self) -> io::Result<Vec<buildkit::Entry>> {
        let skip = if self.directory.is_empty() { 0 } else { self.directory.len() + 1 };
        let visible = |entry: &&Entry| skip > 0 || !is_reserved(&entry.path);
        let entries = &self.source.0.entries[self.source.below(&self.directory)];
        Ok(entries.iter().filter(visible).map(|entry| as_source_entry(entry, skip)).collect())
    }

    fn want(&self, paths: &[&[u8]]) {
        let contents = paths.iter().filter_map(|path| self.content(path));
        self.source.0.frames.want(contents.flat_map(Content::blobs).copied());
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        let content = self.content(path).ok_or(io::ErrorKind::NotFound)?;
        self.source.0.frames.want(content.blobs().iter().copied());
        let blobs: Vec<Blob> = content.blobs().iter().rev().copied().collect();
        let mut reader = BlobReader { source: self.source.clone(), blobs, at_hand: Bytes::new() };
        // An error is better told before anything has been sent.
        reader.advance()?;
        Ok(Box::new(reader))
    }
}

/// Reads a file blob by blob.
struct BlobReader {
    source: SnapshotSource,
    /// Those to come, the last one first.
    blobs: Vec<Blob>,
    at_hand: Bytes,
}

impl BlobReader {
    fn advance(&mut self) -> io::Result<()> {
        while self.at_hand.is_empty()
            && let Some(blob) = self.blobs.pop()
        {
            self.at_hand = self.source.blob(blob).map_err(|error| {
                let mut failure = self.source.0.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| Arc::clone(&error));
                io::Error::other(again(&error))
            })?;
        }
        Ok(())
    }
}

impl io::Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.advance()?;
        let length = buffer.len().min(self.at_hand.len());
        self.at_hand.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

fn as_source_entry(entry: &Entry, skip: usize) -> buildkit::Entry {
    let (kind, link) = match &entry.node {
        Node::Directory => (buildkit::EntryKind::Directory, Vec::new()),
        Node::File(_) => (buildkit::EntryKind::File, Vec::new()),
        Node::Symlink(target) => (buildkit::EntryKind::Symlink, target.clone()),
    };
    let path = entry.path[skip..].to_vec();
    buildkit::Entry { path, kind, mode: entry.mode, size: entry.size(), mtime_ns: entry.stamped_mtime(), link }
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn is_reserved(path: &[u8]) -> bool {
    path == RESERVED || is_below(path, RESERVED)
}

/// Takes a snapshot that cannot be read as it was stored out of the store: the damaged object, whatever storage itself believes of it, and
/// the manifest. The next upload of the same tree then finds no snapshot to join and no base to build on, has every pack looked at, and
/// stores again what is gone.
pub async fn withdraw(
    objects: &ObjectStore,
    cache: &SnapshotCache,
    project: &ProjectId,
    id: &SnapshotId,
    damage: &ObjectError,
) -> Result<(), ObjectError> {
    objects.delete(&damage.key).await?;
    objects.delete(&manifest_key(project, id)).await?;
    cache.remove(manifest_in_cache(project, id));
    Ok(())
}

fn manifest_in_cache(project: &ProjectId, id: &SnapshotId) -> Key {
    Key::new(project.as_str(), &format!("manifest {id}"))
}

/// The same error for one more who asks. What caused it has been logged.
fn again(error: &ObjectError) -> ObjectError {
    ObjectError::new(&error.key, error.problem.clone())
}

async fn read_cached(cache: &Arc<SnapshotCache>, key: Key, id: &SnapshotId, caps: &Caps) -> Option<Manifest> {
    let (cache, id, caps) = (Arc::clone(cache), id.clone(), caps.clone());
    let read = tokio::task::spawn_blocking(move || {
        let stored = cache.get(key)?;
        let manifest = Manifest::decode_as(&id, &stored, &caps);
        if manifest.is_err() {
            cache.remove(key);
        }
        manifest.ok()
    });
    read.await.ok().flatten()
}

/// From object storage, with its size as stored. One that is not as it should be is fetched once more, then refused.
async fn fetch(
    objects: &ObjectStore,
    cache: &Arc<SnapshotCache>,
    project: &ProjectId,
    id: &SnapshotId,
    caps: &Caps,
) -> Result<(Manifest, u64), SnapshotError> {
    let key = manifest_key(project, id);
    let mut last = None;
    for _ in 0..2 {
        let stored = objects.get(&key, LONGEST_MANIFEST).await?;
        let stored =
            stored.ok_or_else(|| SnapshotError::Refused(format!("snapshot {id} is not stored for this project")))?;
        let size = stored.len() as u64;
        let (cache, project, id, caps) = (Arc::clone(cache), project.clone(), id.clone(), caps.clone());
        let decoded = tokio::task::spawn_blocking(move || {
            let manifest = Manifest::decode_as(&id, &stored, &caps)?;
            cache.put(manifest_in_cache(&project, &id), &stored);
            Ok(manifest)
        });
        match decoded.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(manifest) => return Ok((manifest, size)),
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(FormatError::Id { expected, actual }) => {
            let problem = Problem::Digest { expected: expected.to_string(), actual: actual.to_string() };
            ObjectError::new(&key, problem).into()
        }
        Some(error) => SnapshotError::Refused(format!("object {key}: {error}")),
        None => SnapshotError::Refused(format!("object {key} cannot be read")),
    })
}
