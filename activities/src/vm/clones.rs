//! Clones: cells whose cache disk begins as a copy of another cell's, shares its content with it and is never written back.
//!
//! ```text
//! main cell, running or not ─► disk copied (held still meanwhile, where its guest answers) ─► clone's directory ─► Driver::start
//!                                                                                                             ─► deleted, disk and all
//! ```

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ::vm::{Guest, disk};

use super::microvm::{Guests, not_up};
use super::{Driver, DriverError, MicrovmDriver};

/// In a clone's directory: the name of the cell that it was copied from. Only what has this file is ever deleted.
pub const CLONE_OF: &str = "clone-of";

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    /// How long the main cell's disk held still; none where its guest did not answer, or does not run. The copy of a disk that is in use
    /// is then as after a power cut.
    pub held_still: Option<Duration>,
    pub took: Duration,
}

/// A driver whose cells can be cloned.
pub trait Clones: Driver {
    /// Makes a cell in `dir`, which must not be there, from the cell in `main`. Whatever fails, no directory is left.
    ///
    /// # Errors
    /// The file system makes no such copies, or a file cannot be written.
    fn clone_cell(&self, main: &Path, dir: &Path) -> impl Future<Output = Result<Cloned, DriverError>> + Send;

    /// Deletes a clone that does not run.
    ///
    /// # Errors
    /// It is none, it runs, or a file cannot be deleted.
    fn delete_clone(&self, dir: &Path) -> impl Future<Output = Result<(), DriverError>> + Send;
}

impl<G: Guests> Clones for MicrovmDriver<G> {
    async fn clone_cell(&self, main: &Path, dir: &Path) -> Result<Cloned, DriverError> {
        let begun = Instant::now();
        tokio::fs::create_dir(dir).await.map_err(|error| not_cloned(dir, &error))?;
        let made = async {
            let (from, to) = (self.guests.cache_disk(main), self.guests.cache_disk(dir));
            let held_still = match Guest::adopt(&self.guests.run_dir(main)) {
                Some(mut guest) => guest.copy_disk(&from, &to).await,
                None => disk::copy(&from, &to).await.map(|()| None),
            };
            let held_still = held_still.map_err(|error| not_up(&error))?;
            self.guests.describe_clone(main, dir)?;
            let name = main.file_name().unwrap_or_default();
            tokio::fs::write(dir.join(CLONE_OF), name.as_encoded_bytes())
                .await
                .map_err(|error| not_cloned(dir, &error))?;
            Ok(held_still)
        };
        match made.await {
            Ok(held_still) => Ok(Cloned { held_still, took: begun.elapsed() }),
            Err(error) => {
                let _ = tokio::fs::remove_dir_all(dir).await;
                Err(error)
            }
        }
    }

    async fn delete_clone(&self, dir: &Path) -> Result<(), DriverError> {
        let refused = |why: &str| DriverError::Machine { why: format!("{} is not deleted: {why}", dir.display()) };
        if !dir.join(CLONE_OF).is_file() {
            return Err(refused("it is no clone's"));
        }
        if self.adopt(dir)?.is_some() {
            return Err(refused("its cell runs"));
        }
        self.guests.clear(dir);
        let run_dir = self.guests.run_dir(dir);
        for gone in [run_dir.as_path(), dir] {
            match tokio::fs::remove_dir_all(gone).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(not_cloned(dir, &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn not_cloned(dir: &Path, error: &io::Error) -> DriverError {
    DriverError::Machine { why: format!("the clone's directory {}: {error}", dir.display()) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::vm::GuestStart;

    /// Cells that nobody starts.
    struct Plain;

    impl Guests for Plain {
        fn check(&self, _dir: &Path, _image: Option<&str>) -> Result<(), DriverError> {
            Ok(())
        }

        fn run_dir(&self, dir: &Path) -> PathBuf {
            dir.join("vm")
        }

        fn cache_disk(&self, dir: &Path) -> PathBuf {
            dir.join("cache.img")
        }

        fn describe_clone(&self, _main: &Path, _dir: &Path) -> Result<(), DriverError> {
            Ok(())
        }

        async fn prepare(&self, _dir: &Path, _image: Option<&str>) -> Result<GuestStart, DriverError> {
            unreachable!("nobody starts them")
        }

        fn clear(&self, _dir: &Path) {}
    }

    /// In memory, where files do not share their content.
    fn cells() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let cells = tempfile::tempdir_in("/dev/shm").unwrap();
        let (main, clone) = (cells.path().join("main"), cells.path().join("clone"));
        std::fs::create_dir(&main).unwrap();
        std::fs::write(main.join("cache.img"), "disk").unwrap();
        (cells, main, clone)
    }

    #[tokio::test]
    async fn a_clone_that_cannot_be_made_leaves_nothing() {
        let (_cells, main, clone) = cells();
        let error = MicrovmDriver::new(Plain).clone_cell(&main, &clone).await.unwrap_err();
        assert!(error.to_string().contains("XFS (mkfs.xfs -m reflink=1)"), "{error}");
        assert!(!clone.exists());
    }

    #[tokio::test]
    async fn what_is_no_clone_is_not_deleted() {
        let (_cells, main, clone) = cells();
        let driver = MicrovmDriver::new(Plain);
        let refused = driver.delete_clone(&main).await.unwrap_err();
        assert!(refused.to_string().ends_with("main is not deleted: it is no clone's"), "{refused}");
        std::fs::create_dir(&clone).unwrap();
        std::fs::write(clone.join(CLONE_OF), "main").unwrap();
        driver.delete_clone(&clone).await.unwrap();
        assert!(main.exists() && !clone.exists());
    }
}
