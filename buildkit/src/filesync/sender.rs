//! One transfer: walks, answers requests for content, and hands packets on in batches.
//!
//! ```text
//!  walker thread ──┐ frames of messages
//!  reader threads ─┼──► channel ──► response body
//!      ▲           │
//!      └ requests ─┴─ inbound task ◄── daemon
//! ```
//!
//! A packet for each small file would cost a wake-up each; batches of them cost one. The channel is bounded, so a slow
//! daemon holds the readers up and memory stays at a few batches. Encoding is done where the files are read: the thread
//! that serves the connection has the daemon's health checks to answer and only passes frames on.

use super::{
    outgoing::{self, Batches, Frames, Gone, Outgoing},
    pace::Pace,
    wire,
};
use crate::{
    pool::Pool,
    proto::fsutil::types::{Packet, packet::PacketType},
    source::{Entry, EntryKind, Selection, Source, SourceFailure, SourceFailures, SourceFault},
    tunnel,
};
use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError, mpsc as blocking},
};
use tokio::sync::mpsc;
use tonic::Streaming;

/// Entries in a batch at most.
const STATS: usize = 128;
/// Requests a reader takes at once, which is also the reach of the hint to the source.
const REQUESTS: usize = 64;
/// Bytes of content in a packet at most: a frame's worth.
const CONTENT: usize = tunnel::CONTENT - wire::DATA_HEADER;
/// Batches on their way to the connection.
const QUEUE: usize = 8;
/// Threads that read files. Two keep a fast disk and the connection busy; more only helps where opening waits for a network.
const READERS: usize = 4;

pub(super) struct Transfer {
    pub(super) dir: String,
    pub(super) source: Arc<dyn Source>,
    pub(super) selection: Selection,
    pub(super) failures: SourceFailures,
    pub(super) pool: Arc<Pool>,
}

/// What the daemon may ask for: the file of each id, taken when it is asked for.
#[derive(Default)]
struct Files {
    by_id: Mutex<Vec<Option<File>>>,
    pace: Pace,
}

struct File {
    path: Vec<u8>,
    size: u64,
}

struct Wanted {
    id: u32,
    file: File,
}

impl Transfer {
    pub(super) fn start(self, inbound: Streaming<Packet>) -> Frames {
        let (batches, outbound) = mpsc::channel(QUEUE);
        let (requests, queue) = blocking::channel();
        let transfer = Arc::new(self);
        let files = Arc::new(Files::default());
        {
            let (transfer, files, batches) = (transfer.clone(), files.clone(), batches.clone());
            tokio::task::spawn_blocking(move || transfer.walk(&files, &batches));
        }
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..READERS {
            let (transfer, queue, batches) = (transfer.clone(), queue.clone(), batches.clone());
            tokio::task::spawn_blocking(move || transfer.read_files(&queue, &batches));
        }
        tokio::spawn(async move {
            transfer.answer(inbound, &files, requests, batches).await;
            files.pace.end();
        });
        Frames::new(outbound)
    }

    /// Sends every selected entry. A walk that fails fails the transfer.
    fn walk(&self, files: &Files, batches: &Batches) {
        let outgoing = Outgoing::new(batches, &self.pool);
        let mut listing = Listing { files, outgoing, entries: Vec::with_capacity(STATS) };
        let walked = self.source.select(&self.selection, &mut |entry| listing.push(entry));
        match walked.and_then(|()| listing.flush()) {
            Ok(()) => drop(batches.blocking_send(outgoing::single(&wire::end_of_stats()))),
            Err(error) => self.fail(batches, SourceFault::of(&error), format!("listing {:?}: {error}", self.dir)),
        }
    }

    /// Reads what is asked for, until nothing more can be.
    fn read_files(&self, queue: &Mutex<blocking::Receiver<Wanted>>, batches: &Batches) {
        while let Some(wanted) = take(queue) {
            let paths: Vec<_> = wanted.iter().map(|wanted| wanted.file.path.as_slice()).collect();
            self.source.want(&paths);
            let mut outgoing = Outgoing::new(batches, &self.pool);
            for Wanted { id, file } in wanted {
                match self.read_file(id, &file, &mut outgoing) {
                    Ok(()) => {}
                    Err(ReadError::Gone) => return,
                    Err(ReadError::Source(error)) => {
                        let path = String::from_utf8_lossy(&file.path);
                        let message = format!("reading {path:?} of {:?}: {error}", self.dir);
                        return self.fail(batches, SourceFault::Unreadable, message);
                    }
                }
            }
            if outgoing.flush().is_err() {
                return;
            }
        }
    }

    fn read_file(&self, id: u32, file: &File, outgoing: &mut Outgoing<'_>) -> Result<(), ReadError> {
        let mut content = self.source.open(&file.path).map_err(ReadError::Source)?;
        let mut left = usize::try_from(file.size).unwrap_or(usize::MAX);
        loop {
            // One byte more than expected, so that the end is seen without another piece.
            let hoped = left.saturating_add(1).min(CONTENT);
            let at = wire::content_at(id, hoped);
            let message = outgoing.room(at + hoped)?;
            let read = read_full(&mut content, &mut message[at..]).map_err(ReadError::Source)?;
            if read > 0 {
                let size = wire::write_around(id, message, at, read);
                outgoing.commit(size);
            }
            if read < hoped {
                return Ok(outgoing.push(&wire::end_of_file(id))?);
            }
            left = left.saturating_sub(read);
        }
    }

    /// Receives requests until the daemon has what it wants.
    async fn answer(
        &self,
        mut inbound: Streaming<Packet>,
        files: &Files,
        requests: blocking::Sender<Wanted>,
        batches: Batches,
    ) {
        while let Ok(Some(packet)) = inbound.message().await {
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketReq) => {
                    let file = lock(&files.by_id).get_mut(packet.id as usize).and_then(Option::take);
                    let Some(file) = file else {
                        let message = format!("invalid file id {}", packet.id);
                        drop(batches.send(outgoing::single(&wire::error(&message))).await);
                        return;
                    };
                    files.pace.asked_for(packet.id);
                    if requests.send(Wanted { id: packet.id, file }).is_err() {
                        return;
                    }
                }
                Ok(PacketType::PacketFin) => {
                    drop(batches.send(outgoing::single(&wire::fin())).await);
                    return;
                }
                Ok(PacketType::PacketErr) => {
                    tracing::debug!(dir = self.dir, error = %String::from_utf8_lossy(&packet.data), "the daemon gave up a transfer");
                    return;
                }
                _ => {}
            }
        }
    }

    fn fail(&self, batches: &Batches, fault: SourceFault, message: String) {
        // Nobody to tell: the daemon has gone, and knows why.
        if batches.is_closed() {
            return;
        }
        let told = outgoing::single(&wire::error(&message));
        // First: the build may end by what it is told, and ask for this, before this thread runs on.
        self.failures.record(SourceFailure { dir: self.dir.clone(), message, fault });
        let _ = batches.blocking_send(told);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a request and takes those that are there already; `None` when there will be none.
fn take(queue: &Mutex<blocking::Receiver<Wanted>>) -> Option<Vec<Wanted>> {
    let queue = lock(queue);
    let first = queue.recv().ok()?;
    Some(std::iter::once(first).chain(queue.try_iter().take(REQUESTS - 1)).collect())
}

/// Fills `into`, unless the end comes first. Returns how much was read.
fn read_full(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match from.read(&mut into[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

enum ReadError {
    Source(io::Error),
    /// The daemon takes no more.
    Gone,
}

impl From<Gone> for ReadError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Entries on their way out.
struct Listing<'t> {
    files: &'t Files,
    outgoing: Outgoing<'t>,
    entries: Vec<Entry>,
}

impl Listing<'_> {
    fn push(&mut self, entry: Entry) -> io::Result<()> {
        self.entries.push(entry);
        if self.entries.len() >= STATS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Known before the daemon can ask for them.
        let mut known = lock(&self.files.by_id);
        known.extend(self.entries.iter().map(|entry| {
            let file = entry.kind == EntryKind::File;
            file.then(|| File { path: entry.path.clone(), size: entry.size })
        }));
        let number = known.len();
        drop(known);
        self.files.pace.wait(number);
        let outgoing = &mut self.outgoing;
        let sent = self.entries.drain(..).try_for_each(|entry| outgoing.push(&wire::stat(entry)));
        sent.and_then(|()| outgoing.flush()).map_err(|Gone| io::ErrorKind::BrokenPipe.into())
    }
}
