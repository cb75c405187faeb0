//! A copy of a running guest's cache disk.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{ANSWER, Guest};
use crate::control::ControlError;
use crate::disk::{self, DiskError};

/// After so long the guest thaws its disk by itself, whatever became of whoever had it frozen. A copy takes milliseconds.
const FREEZE: Duration = Duration::from_secs(10);

impl Guest {
    /// Copies the cache disk to `to`, on the same file system, while the guest goes on; says how long the disk held still. `None`: the
    /// guest did not freeze it, and the copy is as after a power cut.
    ///
    /// # Errors
    /// As [`disk::copy`].
    pub async fn copy_disk(&mut self, from: &Path, to: &Path) -> Result<Option<Duration>, DiskError> {
        let since = Instant::now();
        let frozen = self.freeze().await;
        let copied = disk::copy(from, to).await;
        if let Err(error) = frozen {
            tracing::warn!(%error, disk = %from.display(), "the disk is copied as it is: the guest does not freeze it");
            return copied.map(|()| None);
        }
        if let Err(error) = self.thaw().await {
            tracing::warn!(%error, disk = %from.display(), "the guest does not answer and will thaw its disk by itself");
        }
        copied.map(|()| Some(since.elapsed()))
    }

    async fn freeze(&mut self) -> Result<(), ControlError> {
        self.control().await?.freeze(FREEZE, ANSWER).await
    }

    async fn thaw(&mut self) -> Result<(), ControlError> {
        self.control().await?.thaw(ANSWER).await
    }
}
