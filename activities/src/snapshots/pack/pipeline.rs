//! The threads of packing, and what they hand to each other.
//!
//! All threads run the same loop and take what is most urgent: compress a frame, put what was read in order, read on. So a file that is
//! large, a slow disk or a slow sink never leaves a core without work that could be done.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::assemble::{Assembler, FullPack, PackedFrame, ReadyPack};
use super::cut::{WINDOW, first_chunk};
use super::frame::{Framer, RawFrame};
use super::layout::NewPack;
use super::read::{Attributes, Steady, steadily};
use super::{LEVEL, PackError};
use crate::snapshots::digest::BlobId;
use crate::snapshots::entry::{Blob, Content, Entry, LONGEST_BLOB, Node};
use crate::snapshots::manifest::{Layout, Place};
use crate::snapshots::walk::{Found, FoundKind, TreeError, Walked};

/// Files read in one go: as many, or as many bytes, whichever is first.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 1 << 20;
/// Batches read ahead of the one whose turn it is.
const READ_AHEAD: usize = 16;
/// Frames that wait for compression before reading waits.
const FRAMES_AHEAD: usize = 64;

/// Of a long file at hand, bytes.
const ROOM: usize = 4 * WINDOW;

/// Where packs go.
pub trait Sink: Sync {
    /// May block; `Err` ends the packing.
    fn pack(&self, pack: ReadyPack) -> Result<(), Stopped>;
    /// So many more files and bytes have been read and hashed. `Err` ends the packing.
    fn read(&self, files: u64, bytes: u64) -> Result<(), Stopped>;
}

/// The other end is gone.
#[derive(Debug)]
pub struct Stopped;

impl From<Stopped> for PackError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// What came out beside the packs' bytes.
pub struct Collected {
    pub entries: Vec<Entry>,
    /// Of new blobs, in frames by number.
    pub places: HashMap<BlobId, Place>,
    /// In order.
    pub packs: Vec<NewPack>,
}

pub fn run(walked: &Walked, base: &Layout, threads: usize, sink: &dyn Sink) -> Result<Collected, PackError> {
    let batches = batches(&walked.found);
    let pipeline = Pipeline {
        walked,
        batches: &batches,
        sink,
        state: Mutex::default(),
        changed: Condvar::new(),
        order: Mutex::new(Order { framer: Framer::new(base), entries: Vec::with_capacity(walked.found.len()) }),
        packing: Mutex::default(),
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(|| pipeline.work()))));
    pipeline.finish()
}

/// Runs of entries to read together. A file that will be cut is alone: it is read where its turn comes.
fn batches(found: &[Found]) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut files, mut bytes) = (0, 0, 0);
    for (index, entry) in found.iter().enumerate() {
        let FoundKind::File { size, .. } = entry.kind else { continue };
        if index > start && (size > LONGEST_BLOB || files == BATCH_FILES || bytes + size > BATCH_BYTES) {
            batches.push(start..index);
            (start, files, bytes) = (index, 0, 0);
        }
        (files, bytes) = (files + 1, bytes + size);
        if size > LONGEST_BLOB {
            batches.push(start..index + 1);
            (start, files, bytes) = (index + 1, 0, 0);
        }
    }
    if start < found.len() {
        batches.push(start..found.len());
    }
    batches
}

struct Pipeline<'a> {
    walked: &'a Walked,
    batches: &'a [Range<usize>],
    sink: &'a dyn Sink,
    state: Mutex<State>,
    changed: Condvar,
    /// Used by one thread at a time, the one that set `State::ordering`.
    order: Mutex<Order<'a>>,
    packing: Mutex<Packing>,
}

#[derive(Default)]
struct State {
    /// The next batch to read.
    unread: usize,
    /// Read, waiting for their turn.
    read: BTreeMap<usize, Batch>,
    /// The batch whose turn it is.
    turn: usize,
    ordering: bool,
    frames: VecDeque<RawFrame>,
    error: Option<PackError>,
}

struct Order<'a> {
    framer: Framer<'a>,
    entries: Vec<Entry>,
}

#[derive(Default)]
struct Packing {
    assembler: Assembler,
    /// By the number of their first frame.
    packs: BTreeMap<u32, NewPack>,
}

/// Some entries of the tree with the content of their files.
struct Batch {
    items: Vec<Item>,
    /// The files' content, one after the other.
    bytes: Vec<u8>,
}

enum Item {
    /// A directory, a link, or a file that is read when its turn comes.
    Listed(usize),
    File {
        index: usize,
        attributes: Attributes,
        blob: Blob,
    },
}

/// What a thread does next.
enum Job {
    Compress(RawFrame),
    Order(Batch),
    Read(usize),
    /// There will be nothing more.
    Leave,
}

impl State {
    /// What is most urgent; `None` when there is nothing to do right now.
    fn next(&mut self, batches: usize) -> Option<Job> {
        if self.error.is_some() {
            return Some(Job::Leave);
        }
        if let Some(frame) = self.frames.pop_front() {
            return Some(Job::Compress(frame));
        }
        if self.turn == batches {
            return Some(Job::Leave);
        }
        if !self.ordering
            && let Some(batch) = self.read.remove(&self.turn)
        {
            self.ordering = true;
            return Some(Job::Order(batch));
        }
        (self.unread < batches && self.unread < self.turn + READ_AHEAD).then(|| {
            self.unread += 1;
            Job::Read(self.unread - 1)
        })
    }
}

impl<'a> Pipeline<'a> {
    fn work(&self) {
        let _guard = EndAllOnPanic(self);
        let mut compressor = Compressor::default();
        loop {
            let done = match self.next() {
                Job::Leave => return,
                Job::Compress(frame) => self.compress(&mut compressor, frame),
                Job::Order(batch) => self.put_in_order(&mut compressor, batch),
                Job::Read(index) => self.read(index),
            };
            if let Err(error) = done {
                locked(&self.state).error.get_or_insert(error);
            }
            self.changed.notify_all();
        }
    }

    /// Waits for something to do.
    fn next(&self) -> Job {
        let mut state = locked(&self.state);
        loop {
            if let Some(job) = state.next(self.batches.len()) {
                return job;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self, index: usize) -> Result<(), PackError> {
        let batch = read_batch(self.walked, self.batches[index].clone())?;
        let files = batch.items.iter().filter(|item| matches!(item, Item::File { .. })).count();
        self.sink.read(files as u64, batch.bytes.len() as u64)?;
        locked(&self.state).read.insert(index, batch);
        Ok(())
    }

    /// Takes in the batch whose turn it is: what is new of it goes on in frames.
    fn put_in_order(&self, compressor: &mut Compressor, batch: Batch) -> Result<(), PackError> {
        let mut order = locked(&self.order);
        let (mut bytes, mut frames) = (batch.bytes.as_slice(), Vec::new());
        for item in batch.items {
            let entry = match item {
                Item::File { index, attributes, blob } => {
                    let (content, rest) = bytes.split_at(blob.size as usize);
                    bytes = rest;
                    order.framer.blob(blob, content, &mut |frame| frames.push(frame));
                    file_entry(&self.walked.found[index], attributes, Content::Whole(blob))
                }
                Item::Listed(index) => self.listed_entry(compressor, &mut order.framer, &self.walked.found[index])?,
            };
            order.entries.push(entry);
        }
        self.hand_on(compressor, &mut frames)?;
        let mut state = locked(&self.state);
        (state.turn, state.ordering) = (state.turn + 1, false);
        Ok(())
    }

    fn listed_entry(
        &self,
        compressor: &mut Compressor,
        framer: &mut Framer<'_>,
        found: &Found,
    ) -> Result<Entry, PackError> {
        let node = match &found.kind {
            FoundKind::Directory => Node::Directory,
            FoundKind::Symlink(target) => Node::Symlink(target.clone()),
            FoundKind::File { .. } => return self.cut_file(compressor, framer, found),
        };
        Ok(Entry { path: found.path.clone(), mode: found.mode, mtime: found.mtime, node })
    }

    /// Reads a long file and hands it on chunk by chunk.
    fn cut_file(
        &self,
        compressor: &mut Compressor,
        framer: &mut Framer<'_>,
        found: &Found,
    ) -> Result<Entry, PackError> {
        let (mut frames, mut stopped) = (Vec::new(), None);
        let path = path_of(self.walked, found);
        let read = steadily(&path, &found.path, |steady| {
            let mut blobs = Vec::new();
            let length = cut(steady, &mut |content| {
                let blob = Blob { id: BlobId::of(content), size: content.len() as u32 };
                blobs.push(blob);
                framer.blob(blob, content, &mut |frame| frames.push(frame));
                stopped = self.hand_on(compressor, &mut frames).err();
                stopped.is_none()
            });
            length.map(|length| (blobs, length)).map_err(|error| TreeError::Unreadable { path: path.clone(), error })
        });
        if let Some(error) = stopped {
            return Err(error);
        }
        let (blobs, attributes) = read?;
        self.sink.read(1, attributes.size)?;
        Ok(file_entry(found, attributes, content_of(blobs)))
    }

    /// Queues frames; compresses some here when too many wait.
    fn hand_on(&self, compressor: &mut Compressor, frames: &mut Vec<RawFrame>) -> Result<(), PackError> {
        let mut state = locked(&self.state);
        state.frames.extend(frames.drain(..));
        self.changed.notify_all();
        while state.frames.len() > FRAMES_AHEAD
            && let Some(frame) = state.frames.pop_front()
        {
            drop(state);
            self.compress(compressor, frame)?;
            state = locked(&self.state);
        }
        if state.error.is_some() { Err(PackError::Stopped) } else { Ok(()) }
    }

    fn compress(&self, compressor: &mut Compressor, frame: RawFrame) -> Result<(), PackError> {
        let bytes = compressor.compress(&frame.bytes).map_err(TreeError::Compression)?;
        let packed = PackedFrame { number: frame.number, raw: frame.bytes.len() as u32, more: frame.more, bytes };
        let full = locked(&self.packing).assembler.frame(packed);
        full.into_iter().try_for_each(|pack| self.seal(pack))
    }

    fn seal(&self, pack: FullPack) -> Result<(), PackError> {
        let ready = pack.seal();
        let new = NewPack { id: ready.id, size: ready.bytes.len() as u64, frames: ready.frames.clone() };
        if let Some(first) = ready.frames.first() {
            locked(&self.packing).packs.insert(first.number, new);
        }
        Ok(self.sink.pack(ready)?)
    }

    /// After all threads have left: the last frame and the last pack.
    fn finish(self) -> Result<Collected, PackError> {
        if let Some(error) = locked(&self.state).error.take() {
            return Err(error);
        }
        let (mut compressor, mut frames) = (Compressor::default(), Vec::new());
        let mut order = locked(&self.order);
        let entries = std::mem::take(&mut order.entries);
        let places = order.framer.finish(&mut |frame| frames.push(frame));
        frames.into_iter().try_for_each(|frame| self.compress(&mut compressor, frame))?;
        let last = locked(&self.packing).assembler.finish();
        last.into_iter().try_for_each(|pack| self.seal(pack))?;
        let packs = std::mem::take(&mut locked(&self.packing).packs).into_values().collect();
        Ok(Collected { entries, places, packs })
    }
}

/// A thread that panicked must not leave the others waiting for it: the panic itself is passed on where they are joined.
struct EndAllOnPanic<'p, 'a>(&'p Pipeline<'a>);

impl Drop for EndAllOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            locked(&self.0.state).error.get_or_insert(PackError::Stopped);
            self.0.changed.notify_all();
        }
    }
}

/// A thread's own compressor and the room it compresses into.
#[derive(Default)]
struct Compressor {
    inner: Option<zstd::bulk::Compressor<'static>>,
    room: Vec<u8>,
}

impl Compressor {
    fn compress(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        let inner = match &mut self.inner {
            Some(inner) => inner,
            none => none.insert(zstd::bulk::Compressor::new(LEVEL)?),
        };
        self.room.clear();
        self.room.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        inner.compress_to_buffer(raw, &mut self.room)?;
        Ok(self.room.as_slice().to_vec())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path_of(walked: &Walked, found: &Found) -> PathBuf {
    match &found.kind {
        FoundKind::File { elsewhere: Some(path), .. } => path.clone(),
        _ => walked.root.join(OsStr::from_bytes(&found.path)),
    }
}

fn file_entry(found: &Found, attributes: Attributes, content: Content) -> Entry {
    let elsewhere = matches!(found.kind, FoundKind::File { elsewhere: Some(_), .. });
    let mode = if elsewhere { found.mode } else { attributes.mode };
    Entry { path: found.path.clone(), mode, mtime: attributes.mtime, node: Node::File(content) }
}

/// A file that got shorter since it was listed is whole, as if it had always been.
fn content_of(blobs: Vec<Blob>) -> Content {
    match blobs.as_slice() {
        [] => Content::Whole(Blob { id: BlobId::of(b""), size: 0 }),
        [blob] => Content::Whole(*blob),
        _ => Content::Chunks(blobs),
    }
}

/// Reads and hashes the files of a batch; those that are long now are left for their turn.
fn read_batch(walked: &Walked, range: Range<usize>) -> Result<Batch, PackError> {
    let mut batch = Batch { items: Vec::with_capacity(range.len()), bytes: Vec::new() };
    let sizes = walked.found[range.clone()].iter().map(Found::size).filter(|size| *size <= LONGEST_BLOB);
    batch.bytes.reserve(sizes.sum::<u64>() as usize + 1);
    for index in range {
        let found = &walked.found[index];
        if found.size() > LONGEST_BLOB || !matches!(found.kind, FoundKind::File { .. }) {
            batch.items.push(Item::Listed(index));
            continue;
        }
        let item = read_file(walked, found, index, &mut batch.bytes)?;
        batch.items.push(item);
    }
    Ok(batch)
}

fn read_file(walked: &Walked, found: &Found, index: usize, bytes: &mut Vec<u8>) -> Result<Item, PackError> {
    let start = bytes.len();
    let path = path_of(walked, found);
    let (long, attributes) = steadily(&path, &found.path, |steady| {
        bytes.truncate(start);
        if steady.size() > LONGEST_BLOB {
            return Ok((true, steady.size()));
        }
        let read = steady.fill(bytes, LONGEST_BLOB + 1);
        read.map(|read| (false, read)).map_err(|error| TreeError::Unreadable { path: path.clone(), error })
    })?;
    if long {
        return Ok(Item::Listed(index));
    }
    let content = &bytes[start..];
    Ok(Item::File { index, attributes, blob: Blob { id: BlobId::of(content), size: content.len() as u32 } })
}

/// Reads a file to its end and passes on its chunks; ends early when `chunk` says so. Returns the bytes read.
fn cut(steady: &mut Steady, chunk: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<u64> {
    let mut buffer = Vec::with_capacity(ROOM);
    let (mut start, mut read, mut ended) = (0, 0, false);
    // What is no longer than a blob is not cut.
    let whole = steady.size() <= LONGEST_BLOB;
    loop {
        if buffer.len() - start < WINDOW && !ended {
            buffer.drain(..start);
            start = 0;
            let missing = (ROOM - buffer.len()) as u64;
            let more = steady.fill(&mut buffer, missing)?;
            (read, ended) = (read + more, more < missing);
        }
        let window = &buffer[start..buffer.len().min(start + WINDOW)];
        if window.is_empty() {
            return Ok(read);
        }
        let length = if whole { window.len() } else { first_chunk(window) };
        if !chunk(&window[..length]) {
            return Ok(read);
        }
        start += length;
    }
}
