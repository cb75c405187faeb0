//! Moves the logs of runs that have ended to object storage, and reads them from there.
//!
//! A log becomes numbered objects of whole lines, each compressed by itself, so that neither writing nor reading holds more
//! than one in memory. The store learns of them when all are written; only then is the file deleted. A killed api leaves at
//! worst objects the store does not count, which the next try writes again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use activities::logs::lines::{read_lines, split_lines};
use activities::store::{ArchivedLog, PartStart, RunKey};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::index::Mark;
use super::{LogError, LogHub, RunLog};

/// Lines of about this size become one object, bytes before compression.
const PART: usize = 16 << 20;
/// A part is this much and one line, which a frame bounds; more is not one of ours.
const MAX_PART: u64 = 64 << 20;
/// Between two looks for logs to move.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the log of an ended run waits for an attempt whose builder has not come back.
const LATE: Duration = Duration::from_secs(600);
const LEVEL: i32 = 3;

/// Moves logs until `stop`.
pub async fn archive_ended_runs(hub: Arc<LogHub>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
        if let Err(error) = archive_round(&hub).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "logs of ended builds stay on disk for now");
        }
        hub.forget_unused();
    }
}

/// One look at all logs on disk.
pub async fn archive_round(hub: &Arc<LogHub>) -> Result<(), LogError> {
    let listing = hub.clone();
    let runs = tokio::task::spawn_blocking(move || listing.on_disk()).await.map_err(io::Error::other)??;
    for (run, status) in hub.store.run_states(&runs).await? {
        if !status.is_final() {
            continue;
        }
        let log = hub.log(&run).await?;
        let complete = log.extent().borrow().open_attempts == 0;
        if (complete || untouched_for(log.path(), LATE))
            && let Err(error) = archive(hub, &log).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                ?run,
                "the log of an ended build stays on disk for now"
            );
        }
    }
    Ok(())
}

fn untouched_for(path: &Path, time: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed > time))
}

/// Moves one log. Builders that send more of it in the meantime are told to come again.
async fn archive(hub: &LogHub, log: &Arc<RunLog>) -> Result<(), LogError> {
    let Some(archive) = log.freeze() else { return Ok(()) };
    let written = write_parts(hub, log, archive).await;
    let (archived, result) = match written {
        Ok(archive) => (Some(archive), Ok(())),
        Err(error) => (None, Err(error)),
    };
    log.thaw(archived)?;
    result
}

async fn write_parts(hub: &LogHub, log: &Arc<RunLog>, mut archive: ArchivedLog) -> Result<ArchivedLog, LogError> {
    let object_key = hub.object_key(log.run()).await?;
    let end = log.bytes();
    let (mut offset, mut position, mut attempt) = (0, log.extent().borrow().archived, None);
    while offset < end {
        let path = log.path().to_owned();
        let pack = tokio::task::spawn_blocking(move || pack(&path, offset, end)).await;
        let Part { packed, read, lines, last_attempt } = pack.map_err(io::Error::other)??;
        hub.objects.put(&object_key(archive.parts), packed).await?;
        archive.starts.push(PartStart { part: archive.parts, position, attempt: attempt.clone() });
        archive.parts += 1;
        offset += read;
        position += lines;
        attempt = last_attempt.or(attempt);
    }
    hub.store.record_archived_log(log.run(), &archive).await?;
    Ok(archive)
}

/// A part of a log's file.
struct Part {
    /// Compressed.
    packed: Bytes,
    /// How many bytes of the file it is.
    read: u64,
    /// How many positions it has.
    lines: u64,
    /// The last attempt that it names, as JSON.
    last_attempt: Option<String>,
}

fn pack(path: &Path, offset: u64, end: u64) -> io::Result<Part> {
    let file = File::open(path)?;
    let mut lines = Vec::with_capacity(PART);
    while lines.len() < PART && offset + (lines.len() as u64) < end {
        lines.extend(read_lines(&file, offset + lines.len() as u64, end)?);
    }
    let packed = zstd::bulk::compress(&lines, LEVEL)?.into();
    let last_attempt = split_lines(&lines).filter_map(|line| line.strip_prefix(b"@")).last();
    Ok(Part {
        packed,
        read: lines.len() as u64,
        lines: split_lines(&lines).filter(|line| !line.starts_with(b"#")).count() as u64,
        last_attempt: last_attempt.map(|json| String::from_utf8_lossy(json).into_owned()),
    })
}

/// Reads an archived log part by part.
pub struct ArchivedLines {
    hub: Arc<LogHub>,
    object_key: Box<dyn Fn(u32) -> String + Send + Sync>,
    parts: u32,
    next: u32,
}

impl ArchivedLines {
    /// Begins with the part that has what follows `after`, or with the first one; and where that is.
    pub async fn open(hub: &Arc<LogHub>, run: &RunKey, after: u64) -> Result<(Self, Mark), LogError> {
        let object_key = Box::new(hub.object_key(run).await?);
        let ArchivedLog { parts, starts, .. } = hub.store.archived_log(run).await?.unwrap_or_default();
        let start = starts.into_iter().rev().find(|start| start.position <= after && start.part < parts);
        let (next, mark) = match start {
            Some(PartStart { part, position, attempt }) => (part, Mark { position, offset: 0, attempt }),
            None => (0, Mark::default()),
        };
        Ok((Self { hub: hub.clone(), object_key, parts, next }, mark))
    }

    /// The next whole lines; none at the end.
    pub async fn next(&mut self) -> Result<Vec<u8>, LogError> {
        if self.next == self.parts {
            return Ok(Vec::new());
        }
        let key = (self.object_key)(self.next);
        self.next += 1;
        let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("the object {key} of a log is gone"));
        let packed = self.hub.objects.get(&key, MAX_PART).await?.ok_or_else(missing)?;
        let unpacked = tokio::task::spawn_blocking(move || unpack(&packed)).await;
        Ok(unpacked.map_err(io::Error::other)??)
    }
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    zstd::Decoder::new(packed)?.take(MAX_PART).read_to_end(&mut lines)?;
    Ok(lines)
}
