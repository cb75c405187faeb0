//! One attempt's records on disk: a directory with `attempt.json` and segments named by their first record's number.
//!
//! One thread appends, the sender reads whole lines behind it. A segment is deleted when all of it is acknowledged and it is not
//! the one being written. An append that fails half-way is taken back, so that a segment holds whole lines only; what a
//! killed process left half-written is cut off by [`recover`].

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use workflows::contract::{AttemptId, LogEvent, LogRecord};

use super::attempt::push_line;
use super::bound::LONGEST_LINE;
use super::lines::{READ, count_lines, read_lines, split_lines, whole_length};

/// A segment is closed when it is larger than this, bytes.
const SEGMENT: u64 = 4 << 20;
const HEAD: &str = "attempt.json";

/// What says whose records these are.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    attempt: AttemptId,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    first: u64,
    /// Records in it.
    count: u64,
    bytes: u64,
}

impl Segment {
    fn last(&self) -> u64 {
        self.first + self.count - 1
    }
}

/// Whole lines for the sender.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    pub first: u64,
    pub count: u64,
    pub lines: Vec<u8>,
}

#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    attempt: AttemptId,
    segments: VecDeque<Segment>,
    /// The last segment, open for appending; `None` before the first record and after a failed append.
    writing: Option<File>,
    /// The number of the next record.
    next: u64,
    /// Where the last read ended: number of the next record, its segment's first record, the offset in that segment.
    cursor: Option<(u64, u64, u64)>,
}

impl Spool {
    /// A spool without records; nothing is on disk before the first append.
    pub fn new(spool_dir: &Path, attempt: &AttemptId) -> Self {
        Self {
            directory: spool_dir.join(attempt.buildkit_ref()),
            attempt: attempt.clone(),
            segments: VecDeque::new(),
            writing: None,
            next: 1,
            cursor: None,
        }
    }

    pub fn attempt(&self) -> &AttemptId {
        &self.attempt
    }

    /// The number the next record gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The lowest number still here; [`Self::next`] when there is none.
    pub fn first(&self) -> u64 {
        self.segments.front().map_or(self.next, |segment| segment.first)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends `count` whole lines. On an error nothing of them is kept.
    pub fn append(&mut self, lines: &[u8], count: u64) -> io::Result<()> {
        let result = self.try_append(lines, count);
        if result.is_err() {
            self.take_back();
        }
        result
    }

    fn try_append(&mut self, lines: &[u8], count: u64) -> io::Result<()> {
        if self.writing.is_none() || self.segments.back().is_none_or(|segment| segment.bytes >= SEGMENT) {
            self.roll()?;
        }
        let (Some(file), Some(segment)) = (&mut self.writing, self.segments.back_mut()) else {
            return Err(io::Error::other("a segment was just opened"));
        };
        file.write_all(lines)?;
        segment.bytes += lines.len() as u64;
        segment.count += count;
        self.next += count;
        Ok(())
    }

    fn roll(&mut self) -> io::Result<()> {
        if self.segments.is_empty() {
            fs::create_dir_all(&self.directory)?;
            fs::write(self.directory.join(HEAD), serde_json::to_vec(&Head { attempt: self.attempt.clone() })?)?;
        }
        let path = self.directory.join(format!("{:020}", self.next));
        self.writing = Some(OpenOptions::new().create(true).write(true).truncate(true).open(&path)?);
        self.segments.push_back(Segment { path, first: self.next, count: 0, bytes: 0 });
        Ok(())
    }

    /// Cuts the last segment back to its whole lines; the next append starts a new one.
    fn take_back(&mut self) {
        if let (Some(file), Some(segment)) = (self.writing.take(), self.segments.back())
            && let Err(error) = file.set_len(segment.bytes)
        {
            tracing::warn!(%error, segment = %segment.path.display(), "a half-written record stays in the log spool");
        }
        if self.segments.back().is_some_and(|segment| segment.count == 0) {
            self.segments.pop_back();
        }
    }

    /// The records from number `from` on, as many as one read gives; `None` when there are none yet. Records that are
    /// acknowledged and gone are skipped.
    pub fn read(&mut self, from: u64) -> io::Result<Option<Batch>> {
        let from = from.max(self.first());
        let Some(segment) = self.segments.iter().find(|segment| segment.count > 0 && from <= segment.last()) else {
            return Ok(None);
        };
        let file = File::open(&segment.path)?;
        let offset = match self.cursor {
            Some((next, first, offset)) if next == from && first == segment.first => offset,
            _ => skip_lines(&file, from - segment.first)?,
        };
        let lines = read_lines(&file, offset, segment.bytes)?;
        let count = count_lines(&lines);
        self.cursor = Some((from + count, segment.first, offset + lines.len() as u64));
        Ok(Some(Batch { first: from, count, lines: sendable(from, lines) }))
    }

    /// Deletes the segments acknowledged up to `seq`, except the one being written; returns how many bytes that freed.
    pub fn acknowledged(&mut self, seq: u64) -> u64 {
        let mut freed = 0;
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.last() <= seq) {
            if let Some(segment) = self.segments.pop_front() {
                remove(&segment.path);
                freed += segment.bytes;
            }
        }
        freed
    }

    /// Deletes everything; returns how many bytes that freed.
    pub fn delete(&mut self) -> u64 {
        let freed = self.bytes();
        self.segments.clear();
        self.writing = None;
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, directory = %self.directory.display(), "a shipped log stays in the spool");
        }
        freed
    }
}

/// The lines with a marker in place of each that is too long to be sent: a former version of the builder did not bound them.
fn sendable(first: u64, lines: Vec<u8>) -> Vec<u8> {
    if split_lines(&lines).all(|line| line.len() <= LONGEST_LINE) {
        return lines;
    }
    let mut sendable = Vec::new();
    for (seq, line) in (first..).zip(split_lines(&lines)) {
        match line.len() <= LONGEST_LINE {
            true => {
                sendable.extend_from_slice(line);
                sendable.push(b'\n');
            }
            false => {
                let reason = format!("a record is longer than {LONGEST_LINE} bytes");
                push_line(&mut sendable, seq, 0, LogEvent::Cut { records: 1, bytes: line.len() as u64, reason });
            }
        }
    }
    sendable
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, segment = %path.display(), "an acknowledged log segment stays in the spool");
    }
}

/// The offset after `count` lines of a file that has as many.
fn skip_lines(file: &File, count: u64) -> io::Result<u64> {
    let (mut left, mut offset, mut chunk) = (count, 0, vec![0; READ]);
    while left > 0 {
        let read = file.read_at(&mut chunk, offset)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a log segment has fewer records than counted"));
        }
        let mut used = 0;
        while left > 0
            && let Some(end) = chunk[used..read].iter().position(|&byte| byte == b'\n')
        {
            used += end + 1;
            left -= 1;
        }
        offset += if left > 0 { read as u64 } else { used as u64 };
    }
    Ok(offset)
}

/// A spool found at start.
#[derive(Debug)]
pub struct Left {
    pub spool: Spool,
    /// Whether its last record is the attempt's end.
    pub ended: bool,
}

/// The spools that former starts left in `spool_dir`. What cannot be read is put aside with a warning.
pub fn recover(spool_dir: &Path) -> io::Result<Vec<Left>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(spool_dir)? {
        let directory = entry?.path();
        match recover_one(&directory) {
            Ok(left) => found.push(left),
            Err(error) => {
                tracing::warn!(%error, directory = %directory.display(), "a log in the spool cannot be read and is dropped");
                fs::remove_dir_all(&directory).or_else(|_| fs::remove_file(&directory)).ok();
            }
        }
    }
    Ok(found)
}

fn recover_one(directory: &Path) -> io::Result<Left> {
    let head: Head = serde_json::from_slice(&fs::read(directory.join(HEAD))?)?;
    let mut numbers: Vec<u64> =
        fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let mut spool =
        Spool { directory: directory.to_owned(), ..Spool::new(directory.parent().unwrap_or(directory), &head.attempt) };
    let mut ended = false;
    for first in numbers {
        let path = directory.join(format!("{first:020}"));
        let text = fs::read(&path)?;
        let whole = whole_length(&text);
        if whole == 0 {
            fs::remove_file(&path)?;
            continue;
        }
        if whole < text.len() {
            OpenOptions::new().write(true).open(&path)?.set_len(whole as u64)?;
        }
        let count = count_lines(&text[..whole]);
        ended = ends(&text[..whole]);
        spool.segments.push_back(Segment { path, first, count, bytes: whole as u64 });
        spool.next = first + count;
    }
    Ok(Left { spool, ended })
}

fn ends(lines: &[u8]) -> bool {
    let last = split_lines(lines).last().unwrap_or_default();
    serde_json::from_slice::<LogRecord>(last).is_ok_and(|record| record.event == LogEvent::End)
}
