//! One transfer: walks, answers requests for content, and hands packets on in batches.
//!
//! ```text
//!  walker thread ──┐ batches of packets
//!  reader threads ─┼──► channel ──► response stream
//!      ▲           │
//!      └ requests ─┴─ inbound task ◄── daemon
//! ```
//!
//! A packet for each small file would cost a wake-up each; batches of them cost one. The channel is bounded, so a slow
//! daemon holds the readers up and memory stays at a few batches.

use super::{SourceFailure, SourceFailures, pace::Pace, wire};
use crate::{
    proto::fsutil::types::{Packet, packet::PacketType},
    source::{Entry, EntryKind, Selection, Source},
};
use bytes::Bytes;
use futures::Stream;
use std::{
    io::{self, Read},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, mpsc as blocking},
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Bytes of content in a packet at most.
const CHUNK: usize = 64 << 10;
/// Entries in a batch at most.
const STATS: usize = 128;
/// Requests a reader takes at once, which is also the reach of the hint to the source.
const REQUESTS: usize = 64;
/// Batches on their way to the connection.
const QUEUE: usize = 16;
/// Threads that read files. Two keep a fast disk and the connection busy; more only helps where opening waits for a network.
const READERS: usize = 4;

pub(super) struct Transfer {
    pub(super) dir: String,
    pub(super) source: Arc<dyn Source>,
    pub(super) selection: Selection,
    pub(super) failures: SourceFailures,
}

type Batches = mpsc::Sender<Vec<Packet>>;

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
    pub(super) fn start(
        self,
        inbound: Streaming<Packet>,
    ) -> impl Stream<Item = Result<Packet, Status>> + Send + 'static {
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
        Unbatched { batches: outbound, current: Vec::new().into_iter() }
    }

    /// Sends every selected entry. A walk that fails fails the transfer.
    fn walk(&self, files: &Files, batches: &Batches) {
        let mut listing = Listing { files, batches, entries: Vec::with_capacity(STATS) };
        let walked = self.source.select(&self.selection, &mut |entry| listing.push(entry));
        match walked.and_then(|()| listing.flush()) {
            Ok(()) => drop(batches.blocking_send(vec![wire::end_of_stats()])),
            Err(error) => self.fail(batches, format!("listing {:?}: {error}", self.dir)),
        }
    }

    /// Reads what is asked for, until nothing more can be.
    fn read_files(&self, queue: &Mutex<blocking::Receiver<Wanted>>, batches: &Batches) {
        while let Some(wanted) = take(queue) {
            let paths: Vec<_> = wanted.iter().map(|wanted| wanted.file.path.as_slice()).collect();
            self.source.want(&paths);
            let mut outgoing = Outgoing { batches, packets: Vec::with_capacity(2 * wanted.len()), bytes: 0 };
            for Wanted { id, file } in wanted {
                match self.read_file(id, &file, &mut outgoing) {
                    Ok(()) => {}
                    Err(ReadError::Gone) => return,
                    Err(ReadError::Source(error)) => {
                        let path = String::from_utf8_lossy(&file.path);
                        return self.fail(batches, format!("reading {path:?} of {:?}: {error}", self.dir));
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
        // One byte more than expected, so that the end is seen without another read.
        let mut room = usize::try_from(file.size).unwrap_or(CHUNK).saturating_add(1).min(CHUNK);
        loop {
            let mut chunk = Vec::with_capacity(room);
            let read = content.by_ref().take(room as u64).read_to_end(&mut chunk).map_err(ReadError::Source)?;
            if read > 0 {
                outgoing.push(wire::data(id, chunk.into()))?;
            }
            if read < room {
                return outgoing.push(wire::data(id, Bytes::new()));
            }
            room = CHUNK;
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
                        drop(batches.send(vec![wire::error(&message)]).await);
                        return;
                    };
                    files.pace.asked_for(packet.id);
                    if requests.send(Wanted { id: packet.id, file }).is_err() {
                        return;
                    }
                }
                Ok(PacketType::PacketFin) => {
                    drop(batches.send(vec![wire::fin()]).await);
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

    fn fail(&self, batches: &Batches, message: String) {
        // Nobody to tell: the daemon has gone, and knows why.
        let told = batches.blocking_send(vec![wire::error(&message)]);
        if told.is_ok() {
            self.failures.record(SourceFailure { dir: self.dir.clone(), message });
        }
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

enum ReadError {
    Source(io::Error),
    /// The daemon takes no more.
    Gone,
}

/// Entries on their way out.
struct Listing<'t> {
    files: &'t Files,
    batches: &'t Batches,
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
        let packets = self.entries.drain(..).map(wire::stat).collect();
        self.batches.blocking_send(packets).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Content on its way out.
struct Outgoing<'t> {
    batches: &'t Batches,
    packets: Vec<Packet>,
    bytes: usize,
}

impl Outgoing<'_> {
    fn push(&mut self, packet: Packet) -> Result<(), ReadError> {
        self.bytes += packet.data.len();
        self.packets.push(packet);
        if self.bytes >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ReadError> {
        self.bytes = 0;
        let packets = std::mem::take(&mut self.packets);
        if packets.is_empty() { Ok(()) } else { self.batches.blocking_send(packets).map_err(|_| ReadError::Gone) }
    }
}

/// The packets of all batches, one after the other.
struct Unbatched {
    batches: mpsc::Receiver<Vec<Packet>>,
    current: std::vec::IntoIter<Packet>,
}

impl Stream for Unbatched {
    type Item = Result<Packet, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(packet) = self.current.next() {
                return Poll::Ready(Some(Ok(packet)));
            }
            match ready!(self.batches.poll_recv(context)) {
                Some(batch) => self.current = batch.into_iter(),
                None => return Poll::Ready(None),
            }
        }
    }
}
