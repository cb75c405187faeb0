//! Brings frames from object storage to whoever reads blobs: in memory, on the cache disk, or by ranged reads, each at most once at a time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use workflows::contract::ProjectId;

use super::cache::{Key, SnapshotCache};
use crate::objects::{ObjectError, ObjectStore, Problem};
use crate::snapshots::digest::BlobId;
use crate::snapshots::entry::Blob;
use crate::snapshots::manifest::{Frame, Layout};
use crate::snapshots::service::pack_key;

/// Ranged reads at once, of one source.
const PARALLEL: usize = 8;
/// What lies between two wanted frames is read along when it is no more than this, bytes.
const SMALL_GAP: u32 = 64 << 10;
/// Decompressed frames kept in memory, bytes: files are asked for in about the order they lie in.
const MEMORY: usize = 32 << 20;
/// How often a frame is asked for that is not there after a fetch.
const TRIES: u32 = 3;
/// Compressed frames kept in memory because the cache disk does not take them, bytes.
const HOMELESS: usize = 64 << 20;

/// The frames of one snapshot.
pub struct Frames {
    layout: Layout,
    project: ProjectId,
    objects: ObjectStore,
    cache: Arc<SnapshotCache>,
    runtime: Handle,
    parallel: Arc<Semaphore>,
    state: Mutex<State>,
    changed: Condvar,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    pub pack_bytes: AtomicU64,
    pub requests: AtomicU64,
    pub frames: AtomicU64,
}

#[derive(Default)]
struct State {
    fetches: HashMap<usize, Fetch>,
    homeless: usize,
    recent: Recent,
}

enum Fetch {
    /// Somebody is at it.
    Running,
    /// Could not be kept on disk.
    Fetched(Bytes),
    /// For the one who waits for it.
    Failed(Arc<ObjectError>),
}

/// The frames decompressed last.
#[derive(Default)]
struct Recent {
    frames: HashMap<usize, Bytes>,
    order: VecDeque<usize>,
    bytes: usize,
}

impl Frames {
    /// `runtime` runs the reads.
    pub fn new(
        layout: Layout,
        project: ProjectId,
        objects: ObjectStore,
        cache: Arc<SnapshotCache>,
        runtime: Handle,
    ) -> Arc<Self> {
        let parallel = Arc::new(Semaphore::new(PARALLEL));
        let (state, changed, counters) = (Mutex::default(), Condvar::new(), Counters::default());
        Arc::new(Self { layout, project, objects, cache, runtime, parallel, state, changed, counters })
    }

    /// Starts to fetch the frames of these blobs that are not at hand; neighbours in a pack are read together.
    pub fn want(self: &Arc<Self>, blobs: impl Iterator<Item = Blob>) {
        let places = blobs.filter_map(|blob| self.layout.places.get(&blob.id));
        let mut frames: Vec<usize> = places.filter_map(|place| self.layout.frames_of(place)).flatten().collect();
        frames.sort_unstable();
        frames.dedup();
        frames.retain(|frame| !self.cache.has(self.key(*frame)));
        let mut state = self.locked();
        frames.retain(|frame| !state.fetches.contains_key(frame) && !state.recent.frames.contains_key(frame));
        state.fetches.extend(frames.iter().map(|frame| (*frame, Fetch::Running)));
        drop(state);
        for together in neighbours(&self.layout.frames, &frames) {
            self.start(together.to_vec());
        }
    }

    /// A blob's content, verified. What does not have the blob's digest is fetched once more, then refused. Blocks.
    pub fn blob(self: &Arc<Self>, blob: Blob) -> Result<Bytes, Arc<ObjectError>> {
        if blob.size == 0 {
            return Ok(Bytes::new());
        }
        let place = self.layout.places.get(&blob.id).copied();
        let frames = place.and_then(|place| self.layout.frames_of(&place));
        let (Some(place), Some(frames)) = (place, frames) else {
            let problem = Problem::Digest { expected: blob.id.to_string(), actual: "nowhere".to_owned() };
            return Err(Arc::new(ObjectError::new("manifest", problem)));
        };
        match self.read(blob, place.offset, frames.clone()) {
            Err(error) if is_altered(&error) => {
                tracing::warn!(%error, "fetching it once more");
                frames.clone().for_each(|frame| self.forget(frame));
                self.read(blob, place.offset, frames)
            }
            content => content,
        }
    }

    /// What the frames hold for a blob, if it has the blob's digest.
    fn read(self: &Arc<Self>, blob: Blob, offset: u32, frames: Range<usize>) -> Result<Bytes, Arc<ObjectError>> {
        let key = pack_key(&self.project, &self.layout.packs[self.layout.frames[frames.start].pack as usize].id);
        let content = if frames.len() == 1 {
            let end = offset as usize + blob.size as usize;
            self.frame(frames.start)?.slice(offset as usize..end)
        } else {
            let mut content = Vec::with_capacity(blob.size as usize);
            for frame in frames {
                content.extend_from_slice(&self.frame(frame)?);
            }
            content.truncate(blob.size as usize);
            content.into()
        };
        let actual = BlobId::of(&content);
        if actual == blob.id {
            return Ok(content);
        }
        let problem = Problem::Digest { expected: format!("blake3:{}", blob.id), actual: format!("blake3:{actual}") };
        Err(Arc::new(ObjectError::new(&key, problem)))
    }

    /// A frame, decompressed, of just the length that the manifest says.
    fn frame(self: &Arc<Self>, index: usize) -> Result<Bytes, Arc<ObjectError>> {
        if let Some(frame) = self.locked().recent.frames.get(&index) {
            return Ok(frame.clone());
        }
        let compressed = self.compressed(index)?;
        let frame = self.layout.frames[index];
        let raw = decompress(&compressed, frame.raw).map_err(|actual| {
            let key = pack_key(&self.project, &self.layout.packs[frame.pack as usize].id);
            Arc::new(ObjectError::new(&key, Problem::Size { expected: frame.raw.into(), actual }))
        })?;
        self.locked().recent.insert(index, raw.clone());
        Ok(raw)
    }

    fn compressed(self: &Arc<Self>, index: usize) -> Result<Bytes, Arc<ObjectError>> {
        // A fetch that was broken off, or whose frame was evicted at once, is started anew.
        for _ in 0..TRIES {
            match self.wait(index) {
                Some(Fetch::Fetched(bytes)) => return Ok(bytes),
                Some(Fetch::Failed(error)) => return Err(error),
                _ => {}
            }
            if let Some(bytes) = self.cache.get(self.key(index)) {
                return Ok(bytes.into());
            }
            self.start_one(index);
        }
        let key = pack_key(&self.project, &self.layout.packs[self.layout.frames[index].pack as usize].id);
        Err(Arc::new(ObjectError::new(&key, Problem::Unreachable { attempts: TRIES })))
    }

    /// Waits while a fetch runs; what it left in memory, which is handed over just once.
    fn wait(&self, index: usize) -> Option<Fetch> {
        let mut state = self.locked();
        while let Some(Fetch::Running) = state.fetches.get(&index) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let left = state.fetches.remove(&index);
        if let Some(Fetch::Fetched(bytes)) = &left {
            state.homeless -= bytes.len();
        }
        left
    }

    fn start_one(self: &Arc<Self>, index: usize) {
        let mut state = self.locked();
        if let std::collections::hash_map::Entry::Vacant(fetch) = state.fetches.entry(index) {
            fetch.insert(Fetch::Running);
            drop(state);
            self.start(vec![index]);
        }
    }

    /// Fetches frames of one pack, which are marked as running, in one read.
    fn start(self: &Arc<Self>, frames: Vec<usize>) {
        let claim = Claim { frames: Arc::clone(self), claimed: frames };
        self.runtime.spawn(claim.fetch());
    }

    fn forget(&self, index: usize) {
        self.locked().recent.remove(index);
        self.cache.remove(self.key(index));
    }

    fn key(&self, index: usize) -> Key {
        let frame = self.layout.frames[index];
        Key::new(self.project.as_str(), &format!("{}+{}", self.layout.packs[frame.pack as usize].id, frame.offset))
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames marked as running. Whatever happens to the fetch, they do not stay so: nobody waits for a fetch that is not there.
struct Claim {
    frames: Arc<Frames>,
    claimed: Vec<usize>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.frames.locked();
        for index in &self.claimed {
            if let Some(Fetch::Running) = state.fetches.get(index) {
                state.fetches.remove(index);
            }
        }
        drop(state);
        self.frames.changed.notify_all();
    }
}

impl Claim {
    async fn fetch(self) {
        let permit = Arc::clone(&self.frames.parallel).acquire_owned().await;
        let fetched = self.get().await;
        drop(permit);
        // The disk may be slow or full.
        let kept = tokio::task::spawn_blocking(move || match fetched {
            Ok((start, bytes)) => self.keep(start, &bytes),
            Err(error) => self.fail(error),
        });
        let _ = kept.await;
    }

    /// Where in the pack the read starts, and what it brought. A short or long answer is asked for once more.
    async fn get(&self) -> Result<(u32, Bytes), ObjectError> {
        let Frames { layout, project, objects, counters, .. } = &*self.frames;
        let (first, last) = (layout.frames[self.claimed[0]], layout.frames[self.claimed[self.claimed.len() - 1]]);
        let key = pack_key(project, &layout.packs[first.pack as usize].id);
        let range = u64::from(first.offset)..u64::from(last.offset + last.length);
        let mut bytes = objects.get_range(&key, range.clone()).await;
        if matches!(&bytes, Err(error) if is_altered(error)) {
            bytes = objects.get_range(&key, range).await;
        }
        let bytes = bytes?;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.pack_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        counters.frames.fetch_add(self.claimed.len() as u64, Ordering::Relaxed);
        Ok((first.offset, bytes))
    }

    fn keep(&self, start: u32, bytes: &Bytes) {
        for &index in &self.claimed {
            let frame = self.frames.layout.frames[index];
            let from = (frame.offset - start) as usize;
            let own = bytes.slice(from..from + frame.length as usize);
            let on_disk = self.frames.cache.put(self.frames.key(index), &own);
            let mut state = self.frames.locked();
            state.fetches.remove(&index);
            // Somebody waits for a frame that is fetched alone; others were only hinted at.
            if !on_disk && (self.claimed.len() == 1 || state.homeless + own.len() <= HOMELESS) {
                state.homeless += own.len();
                // A copy, which does not hold on to its neighbours.
                state.fetches.insert(index, Fetch::Fetched(Bytes::copy_from_slice(&own)));
            }
            drop(state);
            self.frames.changed.notify_all();
        }
    }

    fn fail(&self, error: ObjectError) {
        let error = Arc::new(error);
        let mut state = self.frames.locked();
        state.fetches.extend(self.claimed.iter().map(|index| (*index, Fetch::Failed(Arc::clone(&error)))));
    }
}

/// Whether what came is not what the manifest says, rather than that nothing came.
fn is_altered(error: &ObjectError) -> bool {
    matches!(error.problem, Problem::Size { .. } | Problem::Digest { .. })
}

/// Runs of frames to be read together: of one pack, with small gaps. A run is never longer than its pack.
fn neighbours<'f>(frames: &[Frame], wanted: &'f [usize]) -> impl Iterator<Item = &'f [usize]> {
    wanted.chunk_by(|left, right| {
        let (left, right) = (frames[*left], frames[*right]);
        left.pack == right.pack && right.offset - (left.offset + left.length) <= SMALL_GAP
    })
}

/// For fuzzing: what is read is as long as it should be.
#[cfg(any(test, fuzzing))]
pub fn exercise(compressed: &[u8], raw: u32) {
    if let Ok(bytes) = decompress(compressed, raw) {
        assert_eq!(bytes.len(), raw as usize);
    }
}

/// Exactly `raw` bytes, or how many there are instead; 0 when it is no frame.
fn decompress(compressed: &[u8], raw: u32) -> Result<Bytes, u64> {
    thread_local! {
        static DECOMPRESSOR: std::cell::RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { std::cell::RefCell::new(None) };
    }
    let read = |bytes: &mut Vec<u8>| -> io::Result<usize> {
        DECOMPRESSOR.with_borrow_mut(|decompressor| {
            let decompressor = match decompressor {
                Some(decompressor) => decompressor,
                none => none.insert(zstd::bulk::Decompressor::new()?),
            };
            decompressor.decompress_to_buffer(compressed, bytes)
        })
    };
    let mut bytes = Vec::with_capacity(raw as usize);
    match read(&mut bytes) {
        Ok(length) if length == raw as usize => Ok(bytes.into()),
        Ok(length) => Err(length as u64),
        Err(_) => Err(zstd::zstd_safe::get_frame_content_size(compressed).ok().flatten().unwrap_or(0)),
    }
}

impl Recent {
    fn insert(&mut self, index: usize, frame: Bytes) {
        self.bytes += frame.len();
        if let Some(before) = self.frames.insert(index, frame) {
            self.bytes -= before.len();
        } else {
            self.order.push_back(index);
        }
        while self.bytes > MEMORY
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.frames.remove(&oldest).map_or(0, |frame| frame.len());
        }
    }

    fn remove(&mut self, index: usize) {
        if let Some(frame) = self.frames.remove(&index) {
            self.bytes -= frame.len();
            self.order.retain(|other| *other != index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::manifest::LONGEST_PACK;
    use proptest::prelude::*;

    fn frames(gaps: &[(bool, u32, u32)]) -> Vec<Frame> {
        let mut frames: Vec<Frame> = Vec::new();
        for &(new_pack, gap, length) in gaps {
            let (pack, end) = frames.last().map_or((0, 0), |last: &Frame| (last.pack, last.offset + last.length));
            let fits = !new_pack && u64::from(end + gap + length) <= LONGEST_PACK;
            let (pack, offset) = if fits { (pack, end + gap) } else { (pack + 1, 0) };
            frames.push(Frame { pack, offset, length, raw: 1 });
        }
        frames
    }

    proptest! {
        #[test]
        fn every_frame_is_in_one_read_and_reads_waste_little(
            gaps in proptest::collection::vec((prop::bool::weighted(0.1), 0_u32..150_000, 1_u32..200_000), 1..80),
        ) {
            let frames = frames(&gaps);
            let wanted: Vec<usize> = (0..frames.len()).collect();
            let reads: Vec<&[usize]> = neighbours(&frames, &wanted).collect();
            prop_assert_eq!(&reads.concat(), &wanted);
            for read in reads {
                for pair in read.windows(2) {
                    let (left, right) = (frames[pair[0]], frames[pair[1]]);
                    prop_assert_eq!(left.pack, right.pack);
                    prop_assert!(right.offset - (left.offset + left.length) <= SMALL_GAP);
                }
            }
        }
    }

    #[test]
    fn what_is_no_frame_or_of_another_length_is_not_handed_on() {
        let frame = zstd::bulk::compress(&[7; 1000], 3).unwrap();
        assert_eq!(decompress(&frame, 1000).unwrap(), [7; 1000].as_slice());
        assert_eq!(decompress(&frame, 999), Err(1000));
        assert_eq!(decompress(&frame, 1001), Err(1000));
        assert_eq!(decompress(b"no frame", 8), Err(0));
    }
}
