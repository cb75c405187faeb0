//! The data directory: where things lie in it, and who uses it.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long the guards of a killed `kiln dev` may take to end what it started.
const FORMER_CHILDREN: Duration = Duration::from_secs(15);

/// The file in the data directory on which each guard holds a shared lock.
pub const CHILDREN_LOCK: &str = "children.lock";

/// A data directory in use by this process.
pub struct DataDir {
    path: PathBuf,
    /// Locked for as long as this process lives; holds its process id.
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing and takes it.
    ///
    /// # Errors
    /// When another `kiln dev` uses it, naming that one; when it cannot be made or written.
    pub fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let path = path.map_or_else(default_path, Ok)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let path = path.canonicalize()?;
        let lock = take(&path)?;
        let dir = Self { path, _lock: lock };
        for part in ["logs", "cells", "temporal", "registry", "s3"] {
            fs::create_dir_all(dir.path.join(part))?;
        }
        dir.wait_for_former_children()?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// On which each guard holds a shared lock.
    pub fn children_lock(&self) -> PathBuf {
        self.path.join(CHILDREN_LOCK)
    }

    /// The guards of a `kiln dev` that was killed notice it by themselves and end what they guard; databases and ports are free then.
    fn wait_for_former_children(&self) -> anyhow::Result<()> {
        let file = File::create(self.children_lock())?;
        let deadline = Instant::now() + FORMER_CHILDREN;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                Err(TryLockError::WouldBlock) => {
                    anyhow::bail!("processes of a former kiln dev still use {}", self.path.display())
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }
}

/// Where `kiln dev` keeps everything unless a flag says otherwise.
pub fn usual_path() -> Option<PathBuf> {
    let told = std::env::var_os("KILN_DATA").filter(|value| !value.is_empty()).map(PathBuf::from);
    told.or_else(|| default_path().ok())
}

fn default_path() -> anyhow::Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")));
    Ok(base.context("set --data-dir: neither XDG_DATA_HOME nor HOME is set")?.join("kiln/dev"))
}

fn take(path: &Path) -> anyhow::Result<File> {
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("lock"))
        .with_context(|| format!("cannot write in {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder)?;
            anyhow::bail!("the data directory {} is in use by kiln dev, process {}", path.display(), holder.trim());
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(Some(dir.path().into())).unwrap();
        let refused = DataDir::open(Some(dir.path().into())).err().unwrap().to_string();
        assert!(refused.ends_with(&format!("is in use by kiln dev, process {}", std::process::id())), "{refused}");
        drop(held);
        assert!(DataDir::open(Some(dir.path().into())).is_ok());
    }
}
