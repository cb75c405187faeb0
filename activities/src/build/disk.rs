//! Whether the cell's disk was full while a build was solved.
//!
//! A step that finds the disk full ends with an exit code of its own, and BuildKit may free what it wrote at once, or a minute later. So
//! the free space is looked at meanwhile, which costs a microsecond each time, and once more at the end: on a busy machine the looks in
//! between may come too late.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

/// Between two looks: BuildKit takes longer to remove a failed step's container.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A disk is full when it has less than this free, bytes, or a small one less than this part of it.
const LEAST: u64 = 64 << 20;
const LEAST_PART: u64 = 200;

/// Looks until it is dropped.
pub(super) struct DiskWatch {
    path: PathBuf,
    was_full: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl DiskWatch {
    /// Watches the disk that has `path`.
    pub(super) fn start(path: &Path) -> Self {
        let was_full = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(look(path.to_owned(), was_full.clone()));
        Self { path: path.to_owned(), was_full, task }
    }

    /// Whether it is full, or was seen to be.
    pub(super) fn was_full(&self) -> bool {
        self.was_full.load(Ordering::Relaxed) || is_full(&self.path)
    }
}

/// Returns when the disk that has `path` is not full any more.
pub(super) async fn has_room(path: &Path) {
    while is_full(path) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(path: PathBuf, was_full: Arc<AtomicBool>) {
    while !is_full(&path) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    was_full.store(true, Ordering::Relaxed);
}

/// What the privileged may still use is free: steps run as root.
fn is_full(path: &Path) -> bool {
    statvfs(path).is_ok_and(|disk| {
        let (all, free) = (disk.blocks() * disk.fragment_size(), disk.blocks_free() * disk.fragment_size());
        all > 0 && free < LEAST.min(all / LEAST_PART)
    })
}
