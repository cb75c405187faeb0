//! One attempt's log between the build and the spool: what is pending in memory, what was cut and why.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use workflows::contract::{AttemptId, LogEvent, LogRecord};

use super::bound::OUTPUT;
use super::lock;
use super::metrics::CUT_RECORDS;
use super::spool::{Batch, Left, Spool};

/// The most that waits in memory for the writer, bytes of one attempt.
const MAX_PENDING: usize = 8 << 20;
/// Output of one step that arrives in a row becomes records of about this size, bytes.
const MERGE: usize = OUTPUT;
/// Lines are handed to the spool in pieces of about this size, bytes.
const WRITE: usize = 256 << 10;

/// Records that are missing at one place.
#[derive(Debug, Default)]
struct Tally {
    records: u64,
    bytes: u64,
    reason: String,
}

impl Tally {
    fn add(&mut self, records: u64, bytes: u64, reason: impl FnOnce() -> String) {
        if self.records == 0 {
            self.reason = reason();
        }
        self.records += records;
        self.bytes += bytes;
    }

    /// As [`Self::add`], for records that are left out now and not only moved from another tally.
    fn cut(&mut self, records: u64, bytes: u64, reason: impl FnOnce() -> String) {
        CUT_RECORDS.inc_by(records);
        self.add(records, bytes, reason);
    }

    /// What the log says of it; `None` when nothing is missing.
    fn event(&self) -> Option<LogEvent> {
        let Self { records, bytes, reason } = self;
        (*records > 0).then(|| LogEvent::Cut { records: *records, bytes: *bytes, reason: reason.clone() })
    }
}

/// What the build appended and the writer has not taken yet.
#[derive(Debug, Default)]
struct Pending {
    events: Vec<(u64, LogEvent)>,
    bytes: usize,
    /// What came after `events` and found no room.
    cut: Tally,
    closed: bool,
}

/// What the writer keeps between two rounds.
#[derive(Debug)]
struct Written {
    spool: Spool,
    /// Bytes of output written, against the cap.
    output: u64,
    /// Missing before the next record.
    gap: Tally,
    /// Left out since the cap was reached.
    over_cap: Tally,
    closed: bool,
    /// Whether the attempt's end is in the spool.
    ended: bool,
}

#[derive(Debug)]
pub struct Attempt {
    pub reference: String,
    cap: u64,
    pending: Mutex<Pending>,
    written: Mutex<Written>,
}

impl Attempt {
    pub fn new(spool_dir: &Path, attempt: &AttemptId, cap: u64) -> Self {
        Self::with(Spool::new(spool_dir, attempt), cap, false)
    }

    /// An attempt a former start left behind. One that had ended is only shipped.
    pub fn recovered(left: Left, cap: u64) -> Self {
        let recovered = Self::with(left.spool, cap, left.ended);
        if left.ended {
            recovered.close();
        }
        recovered
    }

    fn with(spool: Spool, cap: u64, ended: bool) -> Self {
        let reference = spool.attempt().buildkit_ref();
        let (gap, over_cap) = (Tally::default(), Tally::default());
        let written = Written { spool, output: 0, gap, over_cap, closed: ended, ended };
        Self { reference, cap, pending: Mutex::default(), written: Mutex::new(written) }
    }

    /// Takes an event from the build; says whether the writer has to be woken.
    pub fn append(&self, event: LogEvent) -> bool {
        let mut pending = lock(&self.pending);
        if pending.closed {
            return false;
        }
        let size = size_of(&event);
        if pending.bytes + size > MAX_PENDING || pending.cut.records > 0 {
            pending.cut.cut(1, size as u64, || "output came faster than the builder's disk could keep it".into());
            return false;
        }
        let was_empty = pending.events.is_empty();
        pending.bytes += size;
        if let Some(event) = merge(pending.events.last_mut(), event) {
            pending.events.push((now_ms(), event));
        }
        was_empty
    }

    pub fn close(&self) {
        lock(&self.pending).closed = true;
    }

    pub fn is_closed(&self) -> bool {
        lock(&self.pending).closed
    }

    /// Whether its end is in the spool.
    pub fn is_written(&self) -> bool {
        lock(&self.written).ended
    }

    /// The writer's round: numbers what is pending and writes it to the spool, or counts what has no room. Says whether there
    /// is something new to send.
    pub fn write_pending(&self, used: &AtomicU64, spool_cap: u64) -> bool {
        let mut written = lock(&self.written);
        if written.ended {
            return false;
        }
        let Pending { events, cut, closed, .. } = {
            let mut pending = lock(&self.pending);
            let closed = pending.closed;
            std::mem::replace(&mut *pending, Pending { closed, ..Pending::default() })
        };
        let before = written.spool.next();
        let mut round = Round { written: &mut written, cap: self.cap, used, spool_cap, lines: Vec::new(), count: 0 };
        for (at_ms, event) in events {
            round.keep(at_ms, event);
        }
        round.flush();
        written.gap.add(cut.records, cut.bytes, || cut.reason);
        written.closed |= closed;
        if written.closed {
            written.end(used);
        }
        written.spool.next() > before
    }

    /// What follows `from` in the spool.
    pub fn read(&self, from: u64) -> std::io::Result<Option<Batch>> {
        lock(&self.written).spool.read(from)
    }

    /// Who it is, and the lowest number still in the spool.
    pub fn opening(&self) -> (AttemptId, u64) {
        let written = lock(&self.written);
        (written.spool.attempt().clone(), written.spool.first())
    }

    /// Frees what is acknowledged; says whether that is all there will ever be.
    pub fn acknowledged(&self, seq: u64, used: &AtomicU64) -> bool {
        let mut written = lock(&self.written);
        let all = written.ended && seq.saturating_add(1) >= written.spool.next();
        let freed = if all { written.spool.delete() } else { written.spool.acknowledged(seq) };
        used.fetch_sub(freed, Ordering::Relaxed);
        all
    }
}

impl Attempt {
    /// Drops what is kept of the log and takes no more of it.
    pub fn discard(&self, used: &AtomicU64) {
        self.close();
        let mut written = lock(&self.written);
        written.ended = true;
        used.fetch_sub(written.spool.delete(), Ordering::Relaxed);
    }
}

impl Written {
    /// Writes what is missing and the end. These few bytes may exceed the spool's cap. On a full disk the next round tries again.
    fn end(&mut self, used: &AtomicU64) {
        let mut number = self.spool.next();
        let mut lines = Vec::new();
        for event in [self.gap.event(), self.over_cap.event(), Some(LogEvent::End)].into_iter().flatten() {
            push_line(&mut lines, number, now_ms(), event);
            number += 1;
        }
        if self.spool.append(&lines, number - self.spool.next()).is_ok() {
            used.fetch_add(lines.len() as u64, Ordering::Relaxed);
            self.ended = true;
        }
    }
}

/// One round of the writer over one attempt: collects lines and appends them in pieces.
struct Round<'a> {
    written: &'a mut Written,
    cap: u64,
    used: &'a AtomicU64,
    spool_cap: u64,
    lines: Vec<u8>,
    count: u64,
}

impl Round<'_> {
    fn keep(&mut self, at_ms: u64, event: LogEvent) {
        let size = size_of(&event) as u64;
        if self.is_over_cap(&event, size) {
            return;
        }
        if self.used.load(Ordering::Relaxed) + self.lines.len() as u64 + size > self.spool_cap {
            self.flush();
            self.written.gap.cut(1, size, || "the log receiver was away for longer than the spool has room".into());
            return;
        }
        if !self.said_what_is_missing(at_ms) {
            self.written.gap.cut(1, size, String::new);
            return;
        }
        self.line(at_ms, event);
        if self.lines.len() >= WRITE {
            self.flush();
        }
    }

    /// Writes the marker of what is missing here, if anything is; `false` when even that finds no room.
    fn said_what_is_missing(&mut self, at_ms: u64) -> bool {
        let Some(cut) = self.written.gap.event() else { return true };
        let said = std::mem::take(&mut self.written.gap);
        self.line(at_ms, cut);
        self.flush();
        let refused = self.written.gap.records > 0;
        if refused {
            self.written.gap = said;
        }
        !refused
    }

    /// Output beyond the build's cap is counted; steps, warnings and notes are few and stay. The log says where the cut is, and
    /// at its end how much is missing.
    fn is_over_cap(&mut self, event: &LogEvent, size: u64) -> bool {
        if !matches!(event, LogEvent::Output { .. } | LogEvent::Progress { .. }) {
            return false;
        }
        if self.written.over_cap.records == 0 {
            self.written.output += size;
            if self.written.output <= self.cap {
                return false;
            }
            let reason = format!("the log reached its cap of {} bytes; further output is left out", self.cap);
            self.line(now_ms(), LogEvent::Cut { records: 0, bytes: 0, reason });
        }
        let cap = self.cap;
        self.written.over_cap.cut(1, size, || format!("the log reached its cap of {cap} bytes"));
        true
    }

    fn line(&mut self, at_ms: u64, event: LogEvent) {
        push_line(&mut self.lines, self.written.spool.next() + self.count, at_ms, event);
        self.count += 1;
    }

    fn flush(&mut self) {
        let (lines, count) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.count));
        if count == 0 {
            return;
        }
        match self.written.spool.append(&lines, count) {
            Ok(()) => {
                self.used.fetch_add(lines.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                if self.written.gap.records == 0 {
                    tracing::warn!(%error, attempt = ?self.written.spool.attempt(), "the log spool's disk refuses records");
                }
                let reason = || format!("the builder's disk refused the log: {error}");
                self.written.gap.cut(count, lines.len() as u64, reason);
            }
        }
    }
}

pub(super) fn push_line(lines: &mut Vec<u8>, seq: u64, at_ms: u64, event: LogEvent) {
    // Writing to memory, and a record's types have no maps with odd keys: this cannot fail.
    if serde_json::to_writer(&mut *lines, &LogRecord { seq, at_ms, event }).is_ok() {
        lines.push(b'\n');
    }
}

/// Merges output of the same step, and repeated progress of the same thing, into the last event; gives the event back when it
/// stands for itself.
fn merge(last: Option<&mut (u64, LogEvent)>, event: LogEvent) -> Option<LogEvent> {
    match (last.map(|(_, last)| last), event) {
        (
            Some(LogEvent::Output { vertex, stream, text }),
            LogEvent::Output { vertex: more_vertex, stream: more_stream, text: more },
        ) if *vertex == more_vertex && *stream == more_stream && text.len() + more.len() <= MERGE => {
            text.push_str(&more);
            None
        }
        (Some(last @ LogEvent::Progress { .. }), event @ LogEvent::Progress { .. })
            if progress_of(last) == progress_of(&event) =>
        {
            *last = event;
            None
        }
        (_, event) => Some(event),
    }
}

fn progress_of(event: &LogEvent) -> Option<(&str, &str)> {
    match event {
        LogEvent::Progress { vertex, id, .. } => Some((vertex, id)),
        _ => None,
    }
}

/// About how much an event takes in memory and in the spool, bytes.
fn size_of(event: &LogEvent) -> usize {
    const REST: usize = 150;
    REST + match event {
        LogEvent::Vertex { name, error, .. } => name.len() + error.as_ref().map_or(0, String::len),
        LogEvent::Progress { id, name, .. } => id.len() + name.len(),
        LogEvent::Output { text, .. } | LogEvent::Warning { text, .. } | LogEvent::Note { text } => text.len(),
        LogEvent::Cut { reason, .. } => reason.len(),
        LogEvent::End => 0,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
