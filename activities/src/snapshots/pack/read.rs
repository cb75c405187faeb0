//! Reads files that hold still. One that changes while it is read is read again, then refused by name.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::snapshots::entry::{canonical_mode, show};
use crate::snapshots::walk::{TreeError, canonical_time};

/// How often a file is read before it is refused.
const TRIES: u32 = 3;

/// What a file was while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub mode: u32,
    pub mtime: i64,
    pub size: u64,
}

/// A reader of one file that notices when the file changes meanwhile.
pub struct Steady {
    file: File,
    before: Metadata,
}

impl Steady {
    fn open(path: &Path) -> io::Result<Self> {
        // It was a plain file when it was listed; what it may have become since must neither be followed nor waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let before = file.metadata()?;
        if before.is_file() { Ok(Self { file, before }) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    pub fn size(&self) -> u64 {
        self.before.len()
    }

    /// Fills `buffer` from where it ends, up to `most` bytes more; fewer only at the end of the file.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, most: u64) -> io::Result<u64> {
        Ok((&mut self.file).take(most).read_to_end(buffer)? as u64)
    }

    /// Whether nothing has been written to the file since it was opened, after `read` bytes of it.
    fn held_still(&self, read: u64) -> io::Result<bool> {
        let after = self.file.metadata()?;
        let stamp = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        Ok(read == self.before.len() && stamp(&self.before) == stamp(&after))
    }

    fn attributes(&self) -> Attributes {
        Attributes {
            mode: canonical_mode(self.before.mode(), false),
            mtime: canonical_time(self.before.mtime()),
            size: self.before.len(),
        }
    }
}

/// Lets `read` take a file in; it returns how many bytes it read, and is called again when the file changed meanwhile.
pub fn steadily<T>(
    path: &Path,
    name: &[u8],
    mut read: impl FnMut(&mut Steady) -> Result<(T, u64), TreeError>,
) -> Result<(T, Attributes), TreeError> {
    let failed = |error| TreeError::Unreadable { path: path.to_owned(), error };
    for _ in 0..TRIES {
        let mut steady = match Steady::open(path) {
            // Replaced by something else since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) || error.kind() == io::ErrorKind::InvalidInput => {
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            steady => steady.map_err(failed)?,
        };
        let (content, length) = read(&mut steady)?;
        if steady.held_still(length).map_err(failed)? {
            return Ok((content, steady.attributes()));
        }
    }
    Err(TreeError::Changing(show(name)))
}
