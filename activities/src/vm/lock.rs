//! Who has a thing of this host to itself: a file that is locked for as long as its holder lives and names it.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// In a cell's directory: which agent has the cell.
pub const HOST_LOCK: &str = "host.lock";
/// A look at the holder takes the lock for a moment: a taker tries for so long.
const LOOKED_AT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{} is held by {by}", path.display())]
    Held { path: PathBuf, by: String },
    #[error("cannot lock {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A taken lock. The kernel frees it when the process ends, however that happens.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock and writes who has it, one line.
    ///
    /// # Errors
    /// Somebody else has it; the file cannot be made.
    pub fn take(path: &Path, holder: &str) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = open(path).map_err(failed)?;
        let deadline = Instant::now() + LOOKED_AT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { path: path.to_owned(), by: read(&mut file).map_err(failed)? });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        write(&mut file, holder).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// Who has the lock; `None` when nobody does. A holder that has not written its name yet has an empty one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn holder(path: &Path) -> io::Result<Option<String>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => read(&mut file).map(Some),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn write(file: &mut File, holder: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{holder}")
}

fn read(file: &mut File) -> io::Result<String> {
    let mut holder = String::new();
    file.rewind()?;
    file.read_to_string(&mut holder)?;
    Ok(holder.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(Lock::holder(&path).unwrap(), None);
        let held = Lock::take(&path, "host a, process 7").unwrap();
        assert_eq!(Lock::holder(&path).unwrap().as_deref(), Some("host a, process 7"));
        let refused = Lock::take(&path, "host b, process 8").unwrap_err().to_string();
        assert!(refused.ends_with("lock is held by host a, process 7"), "{refused}");
        drop(held);
        assert_eq!(Lock::holder(&path).unwrap(), None);
        Lock::take(&path, "b").unwrap();
    }
}
