//! SHA-256 of files, remembered for as long as a file is the same: one of 50 MB takes a third of a second, and every
//! start of a cell asks for several.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

/// Changes this far apart have different times, whatever the file system counts in.
const SETTLED: Duration = Duration::from_secs(2);

/// What was read before. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FileDigests {
    known: Arc<Mutex<HashMap<FileId, String>>>,
}

/// A file as it was: writing to it changes the time, which only the kernel sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl FileDigests {
    /// The file's SHA-256 as 64 hex digits, and its size in bytes. Blocks its thread.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(&self, path: &Path) -> io::Result<(String, u64)> {
        let mut file = File::open(path)?;
        let id = FileId::of(&file)?;
        if let Some(id) = id
            && let Some(sha256) = self.known().get(&id)
        {
            return Ok((sha256.clone(), id.bytes));
        }
        let mut hasher = Sha256::new();
        let bytes = io::copy(&mut file, &mut hasher)?;
        let sha256 = hex(&hasher.finalize());
        // Only if it is still the same: it may have been written to while it was read.
        if let Some(id) = id.filter(|id| FileId::of(&file).is_ok_and(|now| now == Some(*id))) {
            self.known().insert(id, sha256.clone());
        }
        Ok((sha256, bytes))
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, HashMap<FileId, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileId {
    /// `None` where the file was changed so shortly before that another change could get the same time.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let changed = UNIX_EPOCH + Duration::from_secs(metadata.ctime().cast_unsigned());
        let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED);
        Ok(is_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

/// The SHA-256 of some bytes as 64 hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
