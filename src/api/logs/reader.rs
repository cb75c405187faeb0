//! Reads a run's log by position, from object storage and from the receiver's disk, and waits for more.

use std::fs::File;
use std::io;
use std::sync::Arc;

use activities::logs::lines::{read_lines, split_lines};
use tokio::sync::watch;

use super::archive::ArchivedLines;
use super::index::Mark;
use super::run_log::Extent;
use super::{LogError, LogHub, RunLog};

/// A line of the log, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The records that follow are of this attempt (JSON). Without a position it repeats an earlier line for a reader that
    /// starts in the middle.
    Attempt { position: Option<u64>, json: String },
    /// A [`LogRecord`](workflows::contract::LogRecord) as JSON.
    Record { position: u64, json: String },
}

/// Where in the file the last read ended.
#[derive(Debug)]
struct OnDisk {
    file: File,
    offset: u64,
    /// The position the file's first line follows: tells one file from the next.
    base: u64,
}

/// Follows one run's log.
pub struct LogReader {
    hub: Arc<LogHub>,
    log: Arc<RunLog>,
    extent: watch::Receiver<Extent>,
    /// Up to this position everything is delivered or not wanted.
    after: u64,
    /// The position of the last line read; goes back when the log moves to object storage meanwhile.
    position: u64,
    disk: Option<OnDisk>,
    archived: Option<ArchivedLines>,
    /// Whose records come, and whether the reader has been told.
    attempt: Option<String>,
    told: bool,
}

impl LogReader {
    /// Reads what follows position `after`; 0 is everything.
    pub fn new(hub: Arc<LogHub>, log: Arc<RunLog>, after: u64) -> Self {
        let extent = log.extent();
        Self { hub, log, extent, after, position: 0, disk: None, archived: None, attempt: None, told: false }
    }

    /// How far the log goes now.
    pub fn extent(&self) -> Extent {
        *self.extent.borrow()
    }

    /// Returns when the log has changed since the last call.
    pub async fn changed(&mut self) {
        // The sender lives in the log that this reader holds.
        self.extent.changed().await.ok();
    }

    /// The next lines, some hundred kilobytes at most; none when all there is has been read.
    pub async fn next(&mut self) -> Result<Vec<Item>, LogError> {
        loop {
            let extent = *self.extent.borrow_and_update();
            if self.position.max(self.after) >= extent.lines {
                return Ok(Vec::new());
            }
            let lines = if self.position.max(self.after) < extent.archived {
                self.read_archived().await?
            } else {
                match self.read_disk(extent.archived).await {
                    // It was archived between two looks.
                    Err(LogError::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                    read => read?,
                }
            };
            let items = self.deliver(&lines);
            if !items.is_empty() {
                return Ok(items);
            }
        }
    }

    async fn read_archived(&mut self) -> Result<Vec<u8>, LogError> {
        self.disk = None;
        if self.archived.is_none() {
            let (archived, start) = ArchivedLines::open(&self.hub, self.log.run(), self.after).await?;
            self.archived = Some(archived);
            self.begin_at(start);
        }
        let Some(archived) = &mut self.archived else { return Ok(Vec::new()) };
        archived.next().await
    }

    fn begin_at(&mut self, mark: Mark) {
        self.position = mark.position;
        if mark.attempt.is_some() {
            (self.attempt, self.told) = (mark.attempt, false);
        }
    }

    /// Reads on in the file, whose first line follows position `base`.
    async fn read_disk(&mut self, base: u64) -> Result<Vec<u8>, LogError> {
        // What is archived from now on is more than was opened.
        self.archived = None;
        let disk = self.disk.take().filter(|disk| disk.base == base);
        let start = match disk {
            Some(_) => None,
            None => Some(self.log.mark_before(self.after)),
        };
        // Another base is that of another file: this one was archived between two looks.
        if start.as_ref().is_some_and(|(_, found)| *found != base) {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        let offset = start.as_ref().map_or(0, |(mark, _)| mark.offset);
        let (path, end) = (self.log.path().to_owned(), self.log.bytes());
        let read = move || -> io::Result<(OnDisk, Vec<u8>)> {
            let mut disk = match disk {
                Some(disk) => disk,
                None => OnDisk { file: File::open(path)?, offset, base },
            };
            let lines = read_lines(&disk.file, disk.offset, end.max(disk.offset))?;
            disk.offset += lines.len() as u64;
            Ok((disk, lines))
        };
        let (disk, lines) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        if let Some((mark, _)) = start {
            self.begin_at(mark);
        }
        self.disk = Some(disk);
        Ok(lines)
    }

    fn deliver(&mut self, lines: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        for line in split_lines(lines) {
            if line.first() == Some(&b'#') {
                continue;
            }
            self.position += 1;
            let wanted = self.position > self.after;
            if let Some(attempt) = line.strip_prefix(b"@") {
                let json = String::from_utf8_lossy(attempt).into_owned();
                if wanted {
                    items.push(Item::Attempt { position: Some(self.position), json: json.clone() });
                }
                (self.attempt, self.told) = (Some(json), wanted);
            } else if wanted {
                self.tell_attempt(&mut items);
                let json = String::from_utf8_lossy(line).into_owned();
                items.push(Item::Record { position: self.position, json });
            }
        }
        self.after = self.after.max(self.position);
        items
    }

    fn tell_attempt(&mut self, items: &mut Vec<Item>) {
        if !self.told
            && let Some(json) = self.attempt.clone()
        {
            items.push(Item::Attempt { position: None, json });
            self.told = true;
        }
    }
}
