//! The builder's side of build logs: numbered records, shipped straight to the log receiver, never in the build's way.
//!
//! ```text
//!  build ── append ──► pending (memory, ≤ 8 MiB) ── writer thread ──► spool (disk, capped) ── sender task ──► receiver
//!            never waits                                                  ▲ freed when acknowledged ◄── acks ──┘
//! ```
//!
//! A record gets its number when it is written to the spool, and leaves the spool when the receiver has acknowledged it; a record
//! is sent from the spool only. So nothing is lost or doubled while the receiver is away or when the builder is killed (the
//! next start ships what it finds, and takes up the logs of attempts it can still say more of), as long as the spool has room.
//! Where there is no room (the spool's cap, a full disk, output faster than the disk), records are counted instead of kept, and
//! a [`LogEvent::Cut`] says how many are missing at that place.
//!
//! [`wire`] is what shipper and receiver say to each other. This module knows nothing of BuildKit or of how logs are stored.

mod attempt;
pub(crate) mod bound;
pub mod lines;
mod metrics;
mod sender;
mod spool;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use workflows::contract::{AttemptId, LogEvent};

use attempt::Attempt;
pub use sender::{Receiver, ShipError};
use spool::Left;

/// How long the writer sleeps when there is nothing to write; then it tries again what a full disk refused.
const WRITER_NAP: Duration = Duration::from_secs(1);

/// Ships the logs of one builder's attempts. Dropping it stops the shipping; what is spooled is shipped by the next one.
#[derive(Debug)]
pub struct LogShipper {
    shared: Arc<Shared>,
    writer: Option<std::thread::JoinHandle<()>>,
    sender: tokio::task::JoinHandle<()>,
}

impl LogShipper {
    /// Starts shipping to `receiver`, first what ended in former starts and is left in `spool_dir`. What
    /// did not end waits for [`Self::former`] and [`Self::end_former`]. `spool_cap` is the most bytes the spool takes. Needs a Tokio
    /// runtime.
    pub fn start(receiver: impl Into<Receiver>, token: &str, spool_dir: &Path, spool_cap: u64) -> io::Result<Self> {
        std::fs::create_dir_all(spool_dir)?;
        let shared = Arc::new(Shared::new(spool_dir, spool_cap));
        for left in spool::recover(spool_dir)? {
            shared.used.fetch_add(left.spool.bytes(), Ordering::Relaxed);
            if left.ended {
                shared.insert(Attempt::recovered(left, u64::MAX));
            } else {
                lock(&shared.former).insert(left.spool.attempt().buildkit_ref(), left);
            }
        }
        let writer = std::thread::Builder::new().name("log-spool".into()).spawn({
            let shared = shared.clone();
            move || write_until_stopped(&shared)
        })?;
        let sender = tokio::spawn(sender::run(shared.clone(), receiver.into(), sender::Token::new(token)));
        shared.wake_writer();
        Ok(Self { shared, writer: Some(writer), sender })
    }

    /// Opens the log of an attempt, which keeps at most `cap_bytes` of output.
    pub fn open(&self, attempt: &AttemptId, cap_bytes: u64) -> AttemptLog {
        let reference = attempt.buildkit_ref();
        let attempt = lock(&self.shared.attempts)
            .entry(reference)
            .or_insert_with(|| Arc::new(Attempt::new(&self.shared.spool_dir, attempt, cap_bytes)))
            .clone();
        AttemptLog { shared: self.shared.clone(), attempt }
    }

    /// Takes up the log of an attempt that a former start did not bring to its end, to keep at most `cap_bytes` more of output; `None`
    /// when there is none.
    pub fn former(&self, attempt: &AttemptId, cap_bytes: u64) -> Option<AttemptLog> {
        let left = lock(&self.shared.former).remove(&attempt.buildkit_ref())?;
        let attempt = self.shared.insert(Attempt::recovered(left, cap_bytes));
        Some(AttemptLog { shared: self.shared.clone(), attempt })
    }

    /// Ends, with a note, the former starts' logs that nobody has taken up.
    pub fn end_former(&self) {
        let former = std::mem::take(&mut *lock(&self.shared.former));
        for left in former.into_values() {
            let attempt = self.shared.insert(Attempt::recovered(left, u64::MAX));
            let text = "the builder was restarted; what this attempt printed last may be missing".into();
            AttemptLog { shared: self.shared.clone(), attempt }.append(LogEvent::Note { text });
        }
    }

    /// Waits until every closed log is acknowledged, at most for `patience`; says whether they all are.
    pub async fn drained(&self, patience: Duration) -> bool {
        let all_shipped = async {
            loop {
                let changed = self.shared.shipped.notified();
                if lock(&self.shared.attempts).values().all(|attempt| !attempt.is_closed()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, all_shipped).await.is_ok()
    }
}

impl Drop for LogShipper {
    fn drop(&mut self) {
        self.sender.abort();
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.wake_writer();
        if let Some(writer) = self.writer.take() {
            // It writes what is pending and ends.
            writer.join().ok();
        }
    }
}

/// The log of one attempt. Dropping it closes it.
#[derive(Debug)]
pub struct AttemptLog {
    shared: Arc<Shared>,
    attempt: Arc<Attempt>,
}

impl AttemptLog {
    /// Adds an event. Never waits and never fails: what cannot be kept is counted and said in the log. Output of any length is kept;
    /// other texts are cut, with a marker, to what a record may have.
    pub fn append(&self, event: LogEvent) {
        for event in bound::bounded(event) {
            if self.attempt.append(event) {
                self.shared.wake_writer();
            }
        }
    }

    /// The attempt's log is complete: what is appended from now on is ignored. Once is enough.
    pub fn close(&self) {
        self.attempt.close();
        self.shared.wake_writer();
    }

    /// Closes the log and waits until it is in the spool, so that nothing of it goes with a builder that is killed; at most for
    /// `patience`, as a full disk may never take it.
    pub async fn end(self, patience: Duration) {
        self.close();
        let written = async {
            loop {
                let round = self.shared.written.notified();
                if self.attempt.is_written() {
                    return;
                }
                round.await;
            }
        };
        tokio::time::timeout(patience, written).await.ok();
    }
}

impl Drop for AttemptLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// What appenders, writer and sender share.
#[derive(Debug)]
struct Shared {
    spool_dir: PathBuf,
    spool_cap: u64,
    /// Bytes in the spool.
    used: AtomicU64,
    /// Attempts whose log is not acknowledged to its end, by reference.
    attempts: Mutex<BTreeMap<String, Arc<Attempt>>>,
    /// What former starts left without an end, by reference.
    former: Mutex<BTreeMap<String, Left>>,
    dirty: Mutex<bool>,
    wake_writer: Condvar,
    wake_sender: Notify,
    /// Told after each round of the writer.
    written: Notify,
    /// Told when a log is acknowledged to its end.
    shipped: Notify,
    stopped: AtomicBool,
}

impl Shared {
    fn new(spool_dir: &Path, spool_cap: u64) -> Self {
        Self {
            spool_dir: spool_dir.to_owned(),
            spool_cap,
            used: AtomicU64::new(0),
            attempts: Mutex::default(),
            former: Mutex::default(),
            dirty: Mutex::default(),
            wake_writer: Condvar::new(),
            wake_sender: Notify::new(),
            written: Notify::new(),
            shipped: Notify::new(),
            stopped: AtomicBool::new(false),
        }
    }

    fn wake_writer(&self) {
        *lock(&self.dirty) = true;
        self.wake_writer.notify_one();
    }

    fn wait_for_work(&self) {
        let dirty = lock(&self.dirty);
        let wait = self.wake_writer.wait_timeout_while(dirty, WRITER_NAP, |dirty| !*dirty);
        *wait.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    fn insert(&self, attempt: Attempt) -> Arc<Attempt> {
        let attempt = Arc::new(attempt);
        lock(&self.attempts).insert(attempt.reference.clone(), attempt.clone());
        attempt
    }

    fn snapshot(&self) -> Vec<Arc<Attempt>> {
        lock(&self.attempts).values().cloned().collect()
    }

    /// The receiver has an attempt's records up to `seq`.
    fn acknowledged(&self, reference: &str, seq: u64) {
        let Some(attempt) = lock(&self.attempts).get(reference).cloned() else { return };
        if attempt.acknowledged(seq, &self.used) {
            lock(&self.attempts).remove(reference);
            self.shipped.notify_waiters();
        }
    }
}

impl Shared {
    /// The receiver never takes this attempt's log from this builder: it is dropped.
    fn rejected(&self, reference: &str, reason: &str) {
        let Some(attempt) = lock(&self.attempts).remove(reference) else { return };
        tracing::warn!(reference, reason, "the log receiver rejected an attempt's log; it is dropped");
        attempt.discard(&self.used);
        self.shipped.notify_waiters();
        self.written.notify_waiters();
    }
}

/// The writer thread: moves what is pending into the spool. Ends after one last round when the shipper is dropped.
fn write_until_stopped(shared: &Shared) {
    loop {
        let last_round = shared.stopped.load(Ordering::Acquire);
        let mut wrote = false;
        for attempt in shared.snapshot() {
            wrote |= attempt.write_pending(&shared.used, shared.spool_cap);
        }
        shared.written.notify_waiters();
        if wrote {
            shared.wake_sender.notify_one();
        }
        metrics::SPOOL_BYTES.set(i64::try_from(shared.used.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        if last_round {
            return;
        }
        shared.wait_for_work();
    }
}

/// A poisoned lock means that another thread panicked between two consistent states: a log is worth going on with.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
