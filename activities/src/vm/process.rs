//! The first kind of cell: processes in namespaces of their own, held by a guard process that outlives the agent.
//!
//! The guard holds an exclusive lock on the cell's `guard.lock` for as long as it lives, and has written there who it is. So
//! whether a cell runs is the kernel's answer, and a new agent finds the guard by pid and start time without having been told.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::{Driver, DriverError, Identity, Lock, Process};

/// The name of the guard's lock in the cell's directory.
pub const GUARD_LOCK: &str = "guard.lock";

/// How long a cell may take to come up.
const UP_PATIENCE: Duration = Duration::from_secs(30);
const UP_POLL: Duration = Duration::from_millis(20);
/// How long a guard may take to be gone after SIGQUIT.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How much of a failed start's log is looked at for its last line, bytes.
const LOG_TAIL: u64 = 4096;

/// How a cell is started.
pub struct Launch {
    /// Runs the guard, which locks [`GUARD_LOCK`]. SIGTERM asks it to end its cell, a second one to be quick, SIGQUIT kills.
    pub command: std::process::Command,
    /// The cell is up when this socket answers.
    pub socket: PathBuf,
    /// Where the command writes.
    pub log: PathBuf,
}

/// How cells are started is the binary's own business: the guard is one of its subcommands.
pub trait Launcher: Send + Sync + 'static {
    /// As [`Driver::check`].
    ///
    /// # Errors
    /// The image or the directory is none.
    fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError>;

    /// Prepares a start of the cell in `dir`.
    ///
    /// # Errors
    /// As [`Launcher::check`], or a file cannot be written.
    fn launch(&self, dir: &Path, image: Option<&str>) -> Result<Launch, DriverError>;
}

/// Cells of processes.
pub struct ProcessDriver<L> {
    launcher: Arc<L>,
}

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    process: Process,
    /// Absent when it was adopted.
    child: Option<Child>,
}

impl<L: Launcher> ProcessDriver<L> {
    pub fn new(launcher: L) -> Self {
        Self { launcher: Arc::new(launcher) }
    }

    /// Asks the launcher on a thread that may block: an image's programs are read as a whole.
    async fn ask<T: Send + 'static>(
        &self,
        dir: &Path,
        image: Option<&str>,
        what: fn(&L, &Path, Option<&str>) -> Result<T, DriverError>,
    ) -> Result<T, DriverError>
    where
        L: Launcher,
    {
        let (launcher, dir, image) = (self.launcher.clone(), dir.to_owned(), image.map(str::to_owned));
        let asked = tokio::task::spawn_blocking(move || what(&launcher, &dir, image.as_deref())).await;
        asked.unwrap_or_else(|error| Err(DriverError::Spawn(io::Error::other(error))))
    }
}

impl<L: Launcher> Driver for ProcessDriver<L> {
    type Cell = Guard;

    async fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        self.ask(dir, image, L::check).await
    }

    async fn start(&self, dir: &Path, image: Option<&str>) -> Result<Guard, DriverError> {
        let launch = self.ask(dir, image, L::launch).await?;
        let said_before = std::fs::metadata(&launch.log).map_or(0, |log| log.len());
        let mut child = Command::from(launch.command).spawn().map_err(DriverError::Spawn)?;
        let process = child.id().and_then(|pid| Process::open(Identity::of(pid).ok()?).ok()?);
        let why = tokio::select! {
            () = answers(&launch.socket) => None,
            status = child.wait() => Some(format!("{}{}", ended(status), last_line(&launch.log, said_before))),
            () = tokio::time::sleep(UP_PATIENCE) => {
                Some(format!("nothing answers at {} after {} s", launch.socket.display(), UP_PATIENCE.as_secs()))
            }
        };
        match (process, why) {
            (Some(process), None) => Ok(Guard { process, child: Some(child) }),
            (process, why) => {
                if let Some(process) = process {
                    process.signal(Signal::SIGQUIT);
                    let _ = tokio::time::timeout(END_PATIENCE, child.wait()).await;
                }
                Err(DriverError::NotUp { why: why.unwrap_or_else(|| "it ended at once".into()) })
            }
        }
    }

    fn adopt(&self, dir: &Path) -> Result<Option<Guard>, DriverError> {
        let path = dir.join(GUARD_LOCK);
        let unclear = |source: io::Error| DriverError::Unclear { path: path.clone(), source: source.into() };
        let Some(holder) = Lock::holder(&path).map_err(unclear)? else { return Ok(None) };
        let identity = serde_json::from_str(&holder)
            .map_err(|source| DriverError::Unclear { path: path.clone(), source: source.into() })?;
        let process = Process::open(identity).map_err(unclear)?;
        Ok(process.map(|process| Guard { process, child: None }))
    }

    fn stop(&self, cell: &Guard) {
        cell.process.signal(Signal::SIGTERM);
    }

    fn kill(&self, cell: &Guard) {
        cell.process.signal(Signal::SIGQUIT);
    }

    fn inspect(&self, cell: &Guard) -> Option<u32> {
        Some(cell.process.pid())
    }

    async fn ended(&self, cell: &mut Guard) -> String {
        match &mut cell.child {
            Some(child) => ended(child.wait().await),
            None => {
                cell.process.ended().await;
                "how is not known: it was adopted".into()
            }
        }
    }
}

fn ended(status: io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

async fn answers(socket: &Path) {
    while UnixStream::connect(socket).await.is_err() {
        tokio::time::sleep(UP_POLL).await;
    }
}

/// The last line of what a failed start has written, with a colon before it; nothing when it wrote nothing.
fn last_line(log: &Path, from: u64) -> String {
    let tail = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL))))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim_end().lines().next_back().unwrap_or_default().to_owned())
    };
    match tail() {
        Ok(line) if !line.is_empty() => format!(": {line}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_start_wrote_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "former life\n").unwrap();
        assert_eq!(last_line(file.path(), 12), "");
        std::fs::write(file.path(), "former life\none\nthe reason\n").unwrap();
        assert_eq!(last_line(file.path(), 12), ": the reason");
        assert_eq!(last_line(Path::new("/nowhere"), 0), "");
    }
}
