//! The generation of a cell's cache: the number that tells placement that what was warm here is cold now.
//!
//! It is kept on the cache disk beside the name that buildkitd gave its own storage. Another name, or no record at all, means
//! another cache: a new disk, or one whose content was thrown away. Whoever finds a cache pruned, which leaves buildkitd its name,
//! calls [`raise`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Why the generation could not be told.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("buildkitd did not say which storage it works on")]
    Storage(#[source] buildkit::ClientError),
    #[error("cannot {what} the cache's generation in {}", .path.display())]
    Record { what: &'static str, path: PathBuf, source: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The worker id, which buildkitd keeps in its root and makes anew in an empty one.
    storage: String,
    generation: u64,
}

/// The generation of the cache that this buildkitd has; `dir` is on the cell's cache disk. Raised when the storage is another one
/// than at the last call.
///
/// # Errors
/// When buildkitd does not answer, or the record cannot be written.
pub async fn generation(dir: &Path, buildkit: &buildkit::Client) -> Result<u64, CacheError> {
    let workers = buildkit.workers().await.map_err(CacheError::Storage)?;
    let storage = workers.into_iter().next().map(|worker| worker.id).unwrap_or_default();
    let former = read(dir)?;
    let now = current(former.as_ref(), storage, now_ms());
    if former.as_ref() != Some(&now) {
        write(dir, &now)?;
    }
    Ok(now.generation)
}

/// Raises the generation: what was cached is gone. Returns the new one; a cell that has none yet gets its first from
/// [`generation`], and here 0.
///
/// # Errors
/// When the record cannot be read or written.
pub fn raise(dir: &Path) -> Result<u64, CacheError> {
    let Some(former) = read(dir)? else { return Ok(0) };
    let generation = above(former.generation, now_ms());
    write(dir, &Record { generation, ..former })?;
    Ok(generation)
}

fn current(former: Option<&Record>, storage: String, now_ms: u64) -> Record {
    match former {
        Some(former) if former.storage == storage => former.clone(),
        former => Record { storage, generation: above(former.map_or(0, |former| former.generation), now_ms) },
    }
}

/// The time, so that a new disk, which knows no former generation, has a higher one than the disk before it.
fn above(former: u64, now_ms: u64) -> u64 {
    now_ms.max(former + 1)
}

fn record_file(dir: &Path) -> PathBuf {
    dir.join("cache.json")
}

/// A record that cannot be read as one counts as none: the disk was full or is damaged, and warmth is only a preference.
fn read(dir: &Path) -> Result<Option<Record>, CacheError> {
    let path = record_file(dir);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CacheError::Record { what: "read", path, source }),
    }
}

fn write(dir: &Path, record: &Record) -> Result<(), CacheError> {
    let path = record_file(dir);
    let failed = |source| CacheError::Record { what: "note", path: path.clone(), source };
    let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path)).map_err(failed)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_its_generation_and_another_one_has_a_higher_one() {
        let first = current(None, "a".into(), 1000);
        assert_eq!(first, Record { storage: "a".into(), generation: 1000 });
        assert_eq!(current(Some(&first), "a".into(), 2000), first);
        assert_eq!(current(Some(&first), "b".into(), 2000).generation, 2000);
        assert_eq!(current(Some(&first), "b".into(), 500).generation, 1001, "a clock that was set back lowers nothing");
        assert_eq!(current(None, "a".into(), 3000).generation, 3000, "a new disk knows nothing of the former one");
    }

    #[test]
    fn a_raised_generation_is_kept_and_a_damaged_record_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(raise(dir.path()).unwrap(), 0);
        let former = Record { storage: "a".into(), generation: 7 };
        write(dir.path(), &former).unwrap();
        let raised = raise(dir.path()).unwrap();
        assert!(raised > 7);
        assert_eq!(read(dir.path()).unwrap(), Some(Record { storage: "a".into(), generation: raised }));
        std::fs::write(record_file(dir.path()), "{").unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }
}
