//! What was fetched, kept on the cell's cache disk under a size cap; what was used longest ago goes first.
//!
//! A cache and no more: content is verified by whoever reads it, a file that is gone or cannot be written is a miss, and a crash leaves
//! nothing half written (a file gets its name when it is complete).

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Starts the name of a file that is being written.
const UNFINISHED: &str = "unfinished-";

/// The files of snapshots on the cache disk, of all projects (apart) and builds of a cell, under one size cap.
pub struct SnapshotCache {
    directory: PathBuf,
    cap: u64,
    index: Mutex<Index>,
}

/// Names something in the cache. Equal for equal projects and names, and for nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 16]);

#[derive(Default)]
struct Index {
    files: HashMap<Key, Cached>,
    /// By when they were used.
    order: BTreeMap<u64, Key>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

struct Cached {
    size: u64,
    used: u64,
}

impl Key {
    /// `project` keeps what belongs to it apart from other projects.
    pub fn new(project: &str, name: &str) -> Self {
        let hash = blake3::hash(format!("{project}\n{name}").as_bytes());
        let (first, _) = hash.as_bytes().split_at(16);
        let mut key = [0; 16];
        key.copy_from_slice(first);
        Self(key)
    }

    fn parse(name: &str) -> Option<Self> {
        let valid = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(name, 16).ok().filter(|_| valid)?;
        Some(Self(number.to_be_bytes()))
    }

    fn name(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl SnapshotCache {
    /// `dir` is made where it is missing. Only one process uses it at a time.
    pub fn open(dir: &Path, cap_bytes: u64) -> io::Result<Arc<Self>> {
        let mut found = Vec::new();
        for shard in 0..=u8::MAX {
            let shard = dir.join(format!("{shard:02x}"));
            fs::create_dir_all(&shard)?;
            scan(&shard, &mut found)?;
        }
        found.sort_unstable_by_key(|(used, ..)| *used);
        let mut index = Index::default();
        found.into_iter().for_each(|(_, key, size)| index.insert(key, size));
        let cache = Self { directory: dir.to_owned(), cap: cap_bytes, index: Mutex::new(index) };
        cache.evict();
        Ok(Arc::new(cache))
    }

    /// The bytes under `key`, and they count as used now.
    pub fn get(&self, key: Key) -> Option<Vec<u8>> {
        if !self.locked().touch(key) {
            return None;
        }
        let path = self.path(key);
        let read = File::open(&path).and_then(|mut file| {
            // The order of use survives a restart.
            let _ = file.set_modified(SystemTime::now());
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes).map(|_| bytes)
        });
        if read.is_err() {
            self.remove(key);
        }
        read.ok()
    }

    pub fn has(&self, key: Key) -> bool {
        self.locked().files.contains_key(&key)
    }

    /// Keeps bytes; whether it could.
    pub fn put(&self, key: Key, bytes: &[u8]) -> bool {
        if bytes.len() as u64 > self.cap {
            return false;
        }
        if let Err(error) = self.write(key, bytes) {
            tracing::warn!(%error, "the snapshot cache cannot be written to");
            return false;
        }
        self.locked().insert(key, bytes.len() as u64);
        self.evict();
        true
    }

    pub fn remove(&self, key: Key) {
        self.locked().remove(key);
        let _ = fs::remove_file(self.path(key));
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.locked().bytes
    }

    fn write(&self, key: Key, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        let unfinished = path.with_file_name(format!("{UNFINISHED}{}", uuid::Uuid::new_v4().simple()));
        let written = File::create_new(&unfinished)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&unfinished, path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    fn evict(&self) {
        loop {
            let mut index = self.locked();
            if index.bytes <= self.cap {
                return;
            }
            let Some((_, &oldest)) = index.order.first_key_value() else { return };
            index.remove(oldest);
            drop(index);
            let _ = fs::remove_file(self.path(oldest));
        }
    }

    fn path(&self, key: Key) -> PathBuf {
        let name = key.name();
        self.directory.join(&name[..2]).join(name)
    }

    fn locked(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in one directory of the cache; what was being written at a crash is removed.
fn scan(shard: &Path, found: &mut Vec<(SystemTime, Key, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(shard)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        } else if let Some(key) = Key::parse(&name) {
            let metadata = entry.metadata()?;
            found.push((metadata.modified()?, key, metadata.len()));
        }
    }
    Ok(())
}

impl Index {
    fn insert(&mut self, key: Key, size: u64) {
        self.remove(key);
        self.clock += 1;
        self.files.insert(key, Cached { size, used: self.clock });
        self.order.insert(self.clock, key);
        self.bytes += size;
    }

    fn touch(&mut self, key: Key) -> bool {
        let Some(cached) = self.files.get_mut(&key) else { return false };
        self.clock += 1;
        self.order.remove(&cached.used);
        cached.used = self.clock;
        self.order.insert(self.clock, key);
        true
    }

    fn remove(&mut self, key: Key) {
        if let Some(cached) = self.files.remove(&key) {
            self.order.remove(&cached.used);
            self.bytes -= cached.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("p", name)
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = SnapshotCache::open(dir.path(), 250).unwrap();
        assert!(cache.put(key("a"), &[1; 100]) && cache.put(key("b"), &[2; 100]));
        assert_eq!(cache.get(key("a")).unwrap(), [1; 100]);
        assert!(cache.put(key("c"), &[3; 100]));
        assert!(!cache.has(key("b")) && cache.has(key("a")) && cache.has(key("c")));
        assert_eq!(cache.bytes(), 200);
        // Times on disk may be coarse: set apart.
        let old = SystemTime::now() - std::time::Duration::from_secs(100);
        File::open(cache.path(key("c"))).unwrap().set_modified(old).unwrap();
        drop(cache);

        let cache = SnapshotCache::open(dir.path(), 150).unwrap();
        assert_eq!((cache.get(key("c")), cache.get(key("a"))), (None, Some(vec![1; 100])));
        assert_eq!(cache.bytes(), 100);
    }

    #[test]
    fn projects_do_not_share() {
        let dir = tempfile::tempdir().unwrap();
        let cache = SnapshotCache::open(dir.path(), 1000).unwrap();
        cache.put(Key::new("p", "x"), b"secret");
        assert_eq!(cache.get(Key::new("q", "x")), None);
    }

    #[test]
    fn what_is_gone_or_was_never_finished_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = SnapshotCache::open(dir.path(), 1000).unwrap();
        cache.put(key("a"), b"1");
        fs::remove_file(cache.path(key("a"))).unwrap();
        assert_eq!(cache.get(key("a")), None);
        assert_eq!(cache.bytes(), 0);
        let unfinished = dir.path().join("00").join("unfinished-1");
        fs::write(&unfinished, b"half").unwrap();
        drop(cache);
        SnapshotCache::open(dir.path(), 1000).unwrap();
        assert!(!unfinished.exists());
    }

    #[test]
    fn a_disk_that_takes_nothing_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let cache = SnapshotCache::open(dir.path(), 1000).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(!cache.put(key("a"), b"1"));
        assert!(!cache.put(key("b"), &[0; 1001]));
        assert_eq!(cache.get(key("a")), None);
    }
}
