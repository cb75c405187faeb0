//! Logs of builds on the api's side: taken from builders over TCP, kept on disk while the build runs, in object storage after
//! that, read from either by position.
//!
//! [`LogHub`] is where writers and readers of a run's log meet. It holds one [`RunLog`] a run that somebody uses.

mod archive;
mod index;
mod reader;
mod receiver;
mod run_log;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use activities::objects::{ObjectError, ObjectStore};
use activities::store::{RunKey, Store, StoreError};
use tokio::sync::OnceCell;
use workflows::contract::parse_build_workflow_id;

pub use archive::archive_ended_runs;
pub use reader::{Item, LogReader};
pub use receiver::serve;
pub use run_log::RunLog;
pub use steps::{Step, steps};

use super::keyring::Keyring;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log cannot be read or written")]
    Io(#[from] io::Error),
    #[error("the store does not know where the log is")]
    Store(#[from] StoreError),
    #[error("{0:?} is no run id")]
    RunId(String),
    #[error("the log cannot be archived or read from the archive")]
    Objects(#[from] ObjectError),
    #[error("the log belongs to no known project")]
    NoProject,
}

pub struct LogHub {
    directory: PathBuf,
    store: Store,
    keyring: Arc<Keyring>,
    objects: ObjectStore,
    runs: Mutex<HashMap<RunKey, Arc<OnceCell<Arc<RunLog>>>>>,
}

impl LogHub {
    /// Keeps logs of running builds in `directory`.
    pub fn new(directory: &Path, store: Store, keyring: Arc<Keyring>, objects: ObjectStore) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned(), store, keyring, objects, runs: Mutex::default() })
    }

    /// The log of a run, empty when nothing has come yet.
    pub async fn log(&self, run: &RunKey) -> Result<Arc<RunLog>, LogError> {
        let path = self.path(run)?;
        let cell = self.lock().entry(run.clone()).or_default().clone();
        let log = cell.get_or_try_init(|| async {
            let archived = self.store.archived_log(run).await?.unwrap_or_default();
            let run = run.clone();
            let loaded = tokio::task::spawn_blocking(move || RunLog::load(path, run, archived)).await;
            Ok::<_, LogError>(Arc::new(loaded.map_err(io::Error::other)??))
        });
        log.await.cloned()
    }

    /// Forgets logs that nobody uses and that have no file.
    pub fn forget_unused(&self) {
        self.lock().retain(|_, cell| {
            let unused = Arc::strong_count(cell) == 1
                && cell.get().is_none_or(|log| Arc::strong_count(log) == 1 && log.bytes() == 0);
            !unused
        });
    }

    /// The runs with a log file on disk.
    pub fn on_disk(&self) -> io::Result<Vec<RunKey>> {
        let mut runs = Vec::new();
        for directory in std::fs::read_dir(&self.directory)? {
            for file in std::fs::read_dir(directory?.path())? {
                let path = file?.path();
                match RunLog::owner(&path) {
                    Ok(run) => runs.push(run),
                    Err(error) => tracing::warn!(%error, file = %path.display(), "not a log"),
                }
            }
        }
        Ok(runs)
    }

    /// The object of a log's part. Says nothing of the key, which may hold anything.
    async fn object_key(&self, run: &RunKey) -> Result<impl Fn(u32) -> String + use<>, LogError> {
        let (name, _) = parse_build_workflow_id(&run.workflow_id).ok_or(LogError::NoProject)?;
        let project = self.store.project(&name).await?.ok_or(LogError::NoProject)?;
        let prefix = format!("p/{}/logs/{}/{}", project.id, directory_name(&run.workflow_id), run.run_id);
        Ok(move |part| format!("{prefix}/{part:05}"))
    }

    /// One directory a workflow id, whose text may hold anything, one file a run.
    fn path(&self, run: &RunKey) -> Result<PathBuf, LogError> {
        let plain = run.run_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain || !(1..=64).contains(&run.run_id.len()) {
            return Err(LogError::RunId(run.run_id.clone()));
        }
        Ok(self.directory.join(directory_name(&run.workflow_id)).join(format!("{}.log", run.run_id)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunKey, Arc<OnceCell<Arc<RunLog>>>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A workflow id as the name of a directory or object: 32 hex digits.
fn directory_name(workflow_id: &str) -> String {
    blake3::hash(workflow_id.as_bytes()).to_hex()[..32].to_owned()
}
