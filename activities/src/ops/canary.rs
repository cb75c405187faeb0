//! The canary: a tiny build by which a daemon that answers is told from one that solves.
//!
//! It syncs two files and copies one of them; no registry, no storage, no step of its own. It is kept out of the daemon's history, and
//! its content comes from a small set, so that years of canaries leave a handful of entries in the cache.

use std::future::Future;
use std::io::{self, Cursor};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buildkit::{Client, Entry, EntryKind, Frontend, Solve, Source};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::build::Slots;
use crate::failure::with_source;

const DOCKERFILE: &[u8] = b"FROM scratch\nCOPY canary /canary\n";
/// Different contents.
const SONGS: u64 = 4;
/// Between two tries of a canary that ended with an error: a daemon may just be starting.
const RETRY: Duration = Duration::from_millis(500);

/// Sings to one daemon.
#[derive(Debug)]
pub struct Canary {
    socket: PathBuf,
    count: AtomicU64,
}

impl Canary {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, count: AtomicU64::new(0) }
    }

    /// Returns when a canary was solved, or was kept waiting by other solves that get on.
    ///
    /// # Errors
    /// When nothing was solved for `patience`; says what was seen.
    pub async fn sing(&self, patience: Duration, slots: &Slots) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let cancel = CancellationToken::new();
            let why = match tokio::time::timeout(patience, self.once(&cancel)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) if others_get_on(slots, patience) => return Ok(()),
                Err(_) => return Err(format!("a canary was not solved in {:.1} s", patience.as_secs_f64())),
            };
            if begun.elapsed() >= patience {
                return Err(why);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// One canary, for as long as it takes.
    ///
    /// # Errors
    /// When it was not solved; says what was seen.
    pub async fn once(&self, cancel: &CancellationToken) -> Result<(), String> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let song = Arc::new(Song { count });
        let client = Client::connect_unix(&self.socket).await.map_err(|e| with_source(&e))?;
        let session = client.session().shared_key("kiln-canary").dir("context", song.clone()).dir("dockerfile", song);
        let session = within(session.open()).await?;
        let reference = uuid::Uuid::new_v4().to_string();
        let solve = Solve::new(reference, Frontend::BuiltIn).attr("filename", "Dockerfile").internal();
        // Nobody looks at its progress.
        let (updates, _) = mpsc::channel(1);
        session.solve(solve, updates, cancel).await.map(drop).map_err(|e| e.to_string())
    }
}

async fn within<T, E: std::error::Error>(opening: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    opening.await.map_err(|e| with_source(&e))
}

/// A daemon that works on as many steps as it may at once leaves a canary waiting: no failure as long as something moves, or as long
/// as so many steps run that all of its room may be taken. Steps that hang are found by their builds.
fn others_get_on(slots: &Slots, patience: Duration) -> bool {
    let lately = slots.moved().is_some_and(|moved| moved.elapsed() < patience);
    lately || slots.active_steps() >= slots.watch().borrow().slots
}

/// The canary's two files.
struct Song {
    count: u64,
}

impl Song {
    fn text(&self) -> Vec<u8> {
        format!("{}\n", self.count % SONGS).into_bytes()
    }

    fn entry(&self, path: &[u8], size: usize) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            size: size as u64,
            // The daemon compares size and time only.
            mtime_ns: i64::try_from(self.count % SONGS).unwrap_or(0) * 1_000_000_000,
            link: Vec::new(),
        }
    }
}

impl Source for Song {
    fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(vec![self.entry(b"Dockerfile", DOCKERFILE.len()), self.entry(b"canary", self.text().len())])
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        match path {
            b"Dockerfile" => Ok(Box::new(DOCKERFILE)),
            b"canary" => Ok(Box::new(Cursor::new(self.text()))),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
