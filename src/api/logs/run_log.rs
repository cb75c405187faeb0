//! The log of one run on the receiver's disk: one append-only file that all attempts of the run are written to as they come.
//!
//! ```text
//! #{"workflow_id":…,"run_id":…,"part":0}   once, at the top: whose log this is
//! @{"workflow_id":…,"number":1,…}          from here on, records of this attempt
//! {"seq":1,"at_ms":…,"type":…}             a record as the builder wrote it
//! ```
//!
//! Every line but the first has a position, counted from 1 over the run's whole life: what clients resume by. When the run has
//! ended the file moves to object storage; records that still come after that start a new file whose positions follow on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use activities::logs::lines::{read_lines, split_lines, whole_length};
use activities::logs::wire::{MAX_NUMBER, MAX_RECORDS};
use activities::store::{ArchivedLog, RunKey};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use workflows::contract::{AttemptId, LogEvent, LogRecord};

use super::index::{Mark, Marks};
use super::steps::{Step, Summary};

/// What a reader has to know to go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Lines in object storage: positions 1 to `archived`.
    pub archived: u64,
    /// The last position there is.
    pub lines: u64,
    /// Attempts whose end has not come yet.
    pub open_attempts: usize,
}

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, Default)]
struct AttemptState {
    last: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    /// Bytes of whole lines in the file.
    bytes: u64,
    /// Positions in the file.
    lines: u64,
    archive: ArchivedLog,
    attempts: BTreeMap<String, AttemptState>,
    /// Whose records the file's last lines are: the reference, and the attempt as JSON.
    current: Option<Current>,
    marks: Marks,
    /// The steps that the log names, archived parts included; `None` when those were archived before steps were kept.
    summary: Option<Summary>,
    /// While the file is on its way to object storage nothing is appended.
    frozen: bool,
}

#[derive(Debug, Clone)]
struct Current {
    reference: String,
    json: String,
}

/// What became of records that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Everything up to `seq` is written; whether that is the attempt's end.
    Upto { seq: u64, ended: bool },
    /// They do not follow the last one: send what follows this.
    Gap(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("the log file cannot be written")]
    Io(#[from] io::Error),
    #[error("the log is being moved to object storage")]
    Frozen,
    #[error("records of an attempt that was not opened")]
    NotOpened,
    #[error("records are numbered from 1 to {MAX_NUMBER}, at most {MAX_RECORDS} in a frame; these begin with {0}")]
    Numbers(u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    workflow_id: String,
    run_id: String,
    /// How many parts are archived before this one: tells a file that is archived already from one that follows it.
    part: u32,
}

#[derive(Debug)]
pub struct RunLog {
    run: RunKey,
    path: PathBuf,
    state: Mutex<State>,
    extent: watch::Sender<Extent>,
}

impl RunLog {
    /// The log of `run` in `path`, which need not exist, after what is archived of it already. Reads the whole file.
    pub fn load(path: PathBuf, run: RunKey, archive: ArchivedLog) -> io::Result<Self> {
        let ended = |(reference, &last): (&String, &u64)| (reference.clone(), AttemptState { last, ended: true });
        let attempts = archive.attempts.iter().map(ended).collect();
        let summary = match (&archive.steps, archive.parts) {
            (Some(steps), _) => Summary::from_json(steps),
            (None, 0) => Some(Summary::default()),
            (None, _) => None,
        };
        let mut state = State { archive, attempts, summary, ..State::default() };
        match OpenOptions::new().read(true).append(true).open(&path) {
            // Archived, then killed before it could be deleted.
            Ok(_) if head(&path).is_ok_and(|head| head.part < state.archive.parts) => fs::remove_file(&path)?,
            Ok(file) => state.recover(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let extent = watch::Sender::new(state.extent());
        Ok(Self { run, path, state: Mutex::new(state), extent })
    }

    /// Whose log a file is.
    pub fn owner(path: &Path) -> io::Result<RunKey> {
        head(path).map(|Head { workflow_id, run_id, .. }| RunKey { workflow_id, run_id })
    }

    pub fn run(&self) -> &RunKey {
        &self.run
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells readers how far the log goes.
    pub fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// Bytes of whole lines in the file, 0 when there is none.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// An attempt's records are about to come, from number `first` at the lowest. Returns the last number that is here. Where
    /// records between are nowhere any more, the log says so.
    ///
    /// # Errors
    /// When `first` is no number of a record, or the file cannot be written.
    pub fn open_attempt(&self, attempt: &AttemptId, first: u64) -> Result<u64, AppendError> {
        check_numbers(first, 0)?;
        let mut state = self.lock();
        let reference = attempt.buildkit_ref();
        let last = state.attempts.entry(reference.clone()).or_default().last;
        let mut text = Vec::new();
        let is_gap = first > last + 1;
        if !state.is_current(&reference) && (last == 0 || is_gap) {
            push_line(&mut text, b'@', attempt)?;
        }
        if is_gap {
            let reason = "these records were acknowledged by a log receiver that lost them".into();
            let event = LogEvent::Cut { records: first - last - 1, bytes: 0, reason };
            push_record(&mut text, &LogRecord { seq: first - 1, at_ms: now_ms(), event })?;
        }
        if text.is_empty() {
            return Ok(last);
        }
        self.append(&mut state, &text)?;
        let opened = state.attempts.entry(reference.clone()).or_default();
        opened.last = last.max(first - 1);
        let last = opened.last;
        state.goes_on_with(reference, attempt)?;
        self.extent.send_replace(state.extent());
        Ok(last)
    }

    /// Writes an opened attempt's records, `lines` numbered from `first`. Those that are here already are dropped.
    pub fn receive(&self, attempt: &AttemptId, first: u64, lines: &Bytes) -> Result<Received, AppendError> {
        let count = split_lines(lines).count() as u64;
        check_numbers(first, count)?;
        let mut state = self.lock();
        let reference = attempt.buildkit_ref();
        let known = *state.attempts.get(&reference).ok_or(AppendError::NotOpened)?;
        if first > known.last + 1 {
            return Ok(Received::Gap(known.last));
        }
        let skip = usize::try_from(known.last + 1 - first).unwrap_or(usize::MAX);
        let mut text = Vec::with_capacity(lines.len() + 256);
        if !state.is_current(&reference) {
            push_line(&mut text, b'@', attempt)?;
        }
        let mut after = known;
        for line in split_lines(lines).skip(skip) {
            after.last += 1;
            after.ended |= push_checked(&mut text, line, after.last)?;
        }
        if after.last > known.last {
            self.append(&mut state, &text)?;
            state.attempts.insert(reference.clone(), after);
            state.goes_on_with(reference, attempt)?;
            if let Some(summary) = &mut state.summary {
                split_lines(lines).skip(skip).for_each(|line| summary.record(line));
            }
            self.extent.send_replace(state.extent());
        }
        Ok(Received::Upto { seq: after.last, ended: after.ended })
    }

    /// Appends whole lines, or nothing of them.
    fn append(&self, state: &mut State, text: &[u8]) -> Result<(), AppendError> {
        if state.frozen {
            return Err(AppendError::Frozen);
        }
        if state.file.is_none() {
            let (file, bytes) = self.create(state.archive.parts)?;
            (state.file, state.bytes, state.lines, state.marks) = (Some(file), bytes, 0, Marks::default());
        }
        let before = state.bytes;
        let Some(file) = &mut state.file else { return Err(AppendError::Frozen) };
        if let Err(error) = file.write_all(text) {
            file.set_len(before)?;
            return Err(error.into());
        }
        state.bytes += text.len() as u64;
        state.lines += split_lines(text).count() as u64;
        Ok(())
    }

    fn create(&self, part: u32) -> io::Result<(File, u64)> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let RunKey { workflow_id, run_id } = self.run.clone();
        let mut line = Vec::new();
        push_line(&mut line, b'#', &Head { workflow_id, run_id, part })?;
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.set_len(0)?;
        file.write_all(&line)?;
        Ok((file, line.len() as u64))
    }

    /// Stops appending, so that the file can be moved. Returns what is archived when the file is, but for the number of its
    /// parts, which is still that of before; `None` when there is no file.
    pub fn freeze(&self) -> Option<ArchivedLog> {
        let mut state = self.lock();
        state.file.as_ref()?;
        state.frozen = true;
        let attempts = state.attempts.iter().map(|(reference, attempt)| (reference.clone(), attempt.last)).collect();
        let lines = state.archive.lines + state.lines;
        let steps = state.summary.as_ref().and_then(Summary::to_json);
        Some(ArchivedLog { lines, attempts, steps, ..state.archive.clone() })
    }

    /// The steps that the log names; `None` when they have to be read from it.
    pub fn steps(&self) -> Option<Vec<Step>> {
        self.lock().summary.as_ref().map(Summary::steps)
    }

    /// Keeps what was read from the log. Returns what is to be recorded of the archived parts, when that is all there is.
    pub fn summarize(&self, summary: Summary) -> Option<ArchivedLog> {
        let mut state = self.lock();
        if state.file.is_some() {
            return None;
        }
        state.archive.steps = summary.to_json();
        state.summary = Some(summary);
        Some(state.archive.clone())
    }

    /// Where to read in the file for what follows `position`, and the position that the file's first line follows.
    pub fn mark_before(&self, position: u64) -> (Mark, u64) {
        let state = self.lock();
        let base = state.archive.lines;
        (state.marks.before(position, base), base)
    }

    /// Ends a freeze: the file is archived as `archive` and is deleted, or stays when archiving failed.
    pub fn thaw(&self, archived: Option<ArchivedLog>) -> io::Result<()> {
        let mut state = self.lock();
        state.frozen = false;
        let Some(archive) = archived else { return Ok(()) };
        fs::remove_file(&self.path)?;
        let (attempts, summary) = (std::mem::take(&mut state.attempts), state.summary.take());
        *state = State { archive, attempts, summary, ..State::default() };
        self.extent.send_replace(state.extent());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves whole lines in the file at worst uncounted; readers and the shipper sort that out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn extent(&self) -> Extent {
        Extent {
            archived: self.archive.lines,
            lines: self.archive.lines + self.lines,
            open_attempts: self.attempts.values().filter(|attempt| !attempt.ended).count(),
        }
    }

    fn is_current(&self, reference: &str) -> bool {
        self.current.as_ref().is_some_and(|current| current.reference == reference)
    }

    /// Lines were appended, the last of them of this attempt.
    fn goes_on_with(&mut self, reference: String, attempt: &AttemptId) -> io::Result<()> {
        if !self.is_current(&reference) {
            let json = serde_json::to_string(attempt)?;
            if let Some(summary) = &mut self.summary {
                summary.attempt(json.as_bytes());
            }
            self.current = Some(Current { reference, json });
        }
        self.mark();
        Ok(())
    }

    fn mark(&mut self) {
        let position = self.archive.lines + self.lines;
        self.marks.grown_to(position, self.bytes, self.current.as_ref().map(|current| &current.json));
    }

    /// Takes up a file that a former start left: cuts off a half-written line, finds each attempt's last record.
    fn recover(&mut self, file: File) -> io::Result<()> {
        let end = whole_end(&file)?;
        file.set_len(end)?;
        while self.bytes < end {
            let lines = read_lines(&file, self.bytes, end)?;
            split_lines(&lines).for_each(|line| self.take_up(line));
            self.bytes += lines.len() as u64;
            self.mark();
        }
        self.file = Some(file);
        Ok(())
    }

    fn take_up(&mut self, line: &[u8]) {
        match line.first() {
            Some(b'#') => return,
            Some(b'@') => {
                let attempt: Option<AttemptId> = serde_json::from_slice(&line[1..]).ok();
                let json = String::from_utf8_lossy(&line[1..]).into_owned();
                self.current = attempt.map(|attempt| Current { reference: attempt.buildkit_ref(), json });
                if let Some(Current { reference, json }) = &self.current {
                    self.attempts.entry(reference.clone()).or_default().ended = false;
                    self.summary.iter_mut().for_each(|summary| summary.attempt(json.as_bytes()));
                }
            }
            _ => {
                self.summary.iter_mut().for_each(|summary| summary.record(line));
                let attempt = self.current.as_ref().and_then(|current| self.attempts.get_mut(&current.reference));
                if let (Some(attempt), Ok(Numbered { seq, kind })) = (attempt, serde_json::from_slice(line)) {
                    *attempt = AttemptState { last: seq, ended: kind == "end" };
                }
            }
        }
        self.lines += 1;
    }
}

fn head(path: &Path) -> io::Result<Head> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?.take(4096)).read_until(b'\n', &mut line)?;
    let json = line.strip_prefix(b"#").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_slice(json)?)
}

/// The part of a record that a scan needs.
#[derive(Deserialize)]
struct Numbered<'a> {
    seq: u64,
    #[serde(rename = "type")]
    kind: &'a str,
}

/// Where the file's whole lines end.
fn whole_end(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    let mut size = length.min(64 << 10);
    loop {
        let mut tail = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut tail, length - size)?;
        let whole = whole_length(&tail) as u64;
        if whole > 0 || size == length {
            return Ok(length - size + whole);
        }
        size = length.min(size * 4);
    }
}

fn push_line(text: &mut Vec<u8>, kind: u8, value: &impl Serialize) -> io::Result<()> {
    text.push(kind);
    serde_json::to_writer(&mut *text, value)?;
    text.push(b'\n');
    Ok(())
}

fn push_record(text: &mut Vec<u8>, record: &LogRecord) -> io::Result<()> {
    serde_json::to_writer(&mut *text, record)?;
    text.push(b'\n');
    Ok(())
}

/// The numbers that records may have: sums of them stay far from overflow, and a frame of empty lines writes little.
fn check_numbers(first: u64, count: u64) -> Result<(), AppendError> {
    match (1..=MAX_NUMBER).contains(&first) && count <= MAX_RECORDS {
        true => Ok(()),
        false => Err(AppendError::Numbers(first)),
    }
}

/// Adds a record as it came when it is one with the right number; otherwise says that there was something unreadable, so that a
/// spool damaged by a crash does not stop all that follows. Returns whether it is the attempt's end.
fn push_checked(text: &mut Vec<u8>, line: &[u8], seq: u64) -> io::Result<bool> {
    match serde_json::from_slice::<LogRecord>(line) {
        Ok(record) if record.seq == seq => {
            text.extend_from_slice(line);
            text.push(b'\n');
            Ok(record.event == LogEvent::End)
        }
        _ => {
            let reason = "a record was damaged on its way".into();
            let event = LogEvent::Cut { records: 1, bytes: line.len() as u64, reason };
            push_record(text, &LogRecord { seq, at_ms: now_ms(), event })?;
            Ok(false)
        }
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
