//! The attempts this builder runs, one small file each on the cache disk, written before an attempt starts and removed after its
//! end was acknowledged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use workflows::contract::AttemptId;

/// One running attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub attempt: AttemptId,
    /// Temporal's token of the activity task, base64.
    pub task_token: String,
    /// The builder's epoch when it started.
    pub epoch: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the attempts' ledger cannot {action} {}", path.display())]
pub struct LedgerError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// The ledger of one cell.
#[derive(Debug, Clone)]
pub struct Ledger {
    dir: PathBuf,
}

impl Ledger {
    /// Opens the ledger below `cell_dir`.
    pub fn open(cell_dir: &Path) -> Result<Self, LedgerError> {
        let dir = cell_dir.join("attempts");
        fs::create_dir_all(&dir).map_err(|source| LedgerError { action: "create", path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// Where it lies: on the cache disk.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, attempt: &AttemptId) -> PathBuf {
        self.dir.join(format!("{}.json", attempt.buildkit_ref()))
    }

    /// Records an attempt that is about to start. Not synced: what a crash of the whole machine loses is found by the heartbeat
    /// timeout.
    pub fn record(&self, entry: &Entry) -> Result<(), LedgerError> {
        let path = self.path(&entry.attempt);
        let temporary = path.with_extension("new");
        let bytes = serde_json::to_vec(entry).unwrap_or_default();
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).map_err(|source| LedgerError {
            action: "write",
            path,
            source,
        })
    }

    /// Forgets an attempt whose end was acknowledged. Unknown ones are no error.
    pub fn forget(&self, attempt: &AttemptId) -> Result<(), LedgerError> {
        let path = self.path(attempt);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The attempts of the builder's former self. A file that was cut short by the crash is removed: its attempt had not started.
    pub fn former(&self) -> Result<Vec<Entry>, LedgerError> {
        let list = |source| LedgerError { action: "list", path: self.dir.clone(), source };
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(list)? {
            let path = file.map_err(list)?.path();
            match fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                Some(entry) => entries.push(entry),
                None => fs::remove_file(&path).map_err(|source| LedgerError { action: "remove", path, source })?,
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32) -> Entry {
        let attempt = AttemptId {
            workflow_id: "build/shop/1".into(),
            run_id: "r".into(),
            platform: "linux/amd64".parse().unwrap(),
            number,
        };
        Entry { attempt, task_token: "dG9rZW4=".into(), epoch: 3 }
    }

    #[test]
    fn a_new_builder_finds_what_the_former_one_ran() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.record(&entry(1)).unwrap();
        ledger.record(&entry(2)).unwrap();
        ledger.forget(&entry(1).attempt).unwrap();
        ledger.forget(&entry(1).attempt).unwrap();
        assert_eq!(Ledger::open(dir.path()).unwrap().former().unwrap(), vec![entry(2)]);
    }

    #[test]
    fn a_file_cut_short_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        fs::write(dir.path().join("attempts/x.new"), b"{\"att").unwrap();
        assert!(ledger.former().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("attempts")).unwrap().count(), 0);
    }
}
