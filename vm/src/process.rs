//! A process that may be another's child: known by its id and start time, waited for and killed without ever meaning a later process
//! that got the same id.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// What identifies a process for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since the machine's start.
    pub started: u64,
}

impl Process {
    /// What identifies this start of the machine; process ids and start times come again after it.
    pub(crate) fn boot() -> Option<String> {
        Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
    }

    /// The process that has this id now; `None` when there is none (or only what is left of one that ended).
    pub fn find(pid: i32) -> Option<Self> {
        let started = alive_since(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, started })
    }

    pub fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Waits for its end; whether it came in time.
    pub async fn ended(self, patience: Duration) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(true) };
        // Readable from the process's end on.
        // SAFETY: the descriptor is owned by what it is registered with, and stays the same.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(timeout(patience, fd.readable()).await.is_ok())
    }

    /// Kills it where it still runs, and waits until it is gone.
    pub async fn kill(self, patience: Duration) -> io::Result<bool> {
        self.signal(libc::SIGKILL);
        self.ended(patience).await
    }

    /// Sends a signal; one that has ended gets none, nor does whoever has its id now.
    pub fn signal(self, signal: i32) {
        if let Ok(Some(fd)) = self.open() {
            // SAFETY: an open pidfd; the other arguments are numbers or nothing.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, 0usize, 0) };
        }
    }

    /// A descriptor that means this very process, `None` when it has ended.
    fn open(self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: numbers only; the descriptor is new and nobody else's.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, self.pid, 0);
            if fd < 0 {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
            }
            OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
        };
        // Looked at with the descriptor open: from now on the id cannot become another's unnoticed.
        Ok(self.is_alive().then_some(fd))
    }
}

/// The start time in the text of `/proc/<pid>/stat`, unless the process has ended and only waits to be reaped. The second field is the
/// program's name in parentheses, which may hold anything.
fn alive_since(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // Field 22; the state was the third.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        assert_eq!(alive_since(stat), Some(987_654));
        assert_eq!(alive_since(&stat.replace(") S", ") Z")), None);
    }

    #[tokio::test]
    async fn a_process_is_killed_and_waited_for() {
        let mut child = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::find(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(!process.ended(Duration::from_millis(10)).await.unwrap());
        let another = Process { started: process.started + 1, ..process };
        assert!(another.kill(Duration::from_secs(5)).await.unwrap(), "that one has ended long ago");
        assert!(process.is_alive(), "and this one was not meant");
        assert!(process.kill(Duration::from_secs(5)).await.unwrap());
        child.wait().await.unwrap();
        assert!(!process.is_alive() && process.ended(Duration::ZERO).await.unwrap());
    }
}
