//! Processes that were not necessarily started by this one: told apart by number and start time, watched and signalled by pidfd.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process by its number, when it started (clock ticks since the boot), and which boot that was: numbers are used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    pub started: u64,
    pub boot: String,
}

impl Identity {
    /// # Errors
    /// There is no such process, or it has ended and only its parent has not noticed.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = start_time(&stat).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, started, boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned() })
    }

    /// Whether that process still runs.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// The 22nd field of `/proc/<pid>/stat` (proc_pid_stat(5)); `None` for a zombie. The second field may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// A running process, whoever's child it is.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// `None` when it does not run any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(identity: Identity) -> io::Result<Option<Self>> {
        let fd = match pidfd_open(identity.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            opened => opened?,
        };
        // Only now: the number could have passed to another process before it was opened.
        if !identity.lives() {
            return Ok(None);
        }
        // SAFETY: an owned descriptor is always the same open one.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Some(Self { identity, fd }))
    }

    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Sends a signal; to a process that has ended, nothing.
    pub fn signal(&self, signal: Signal) {
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is open, and a null siginfo is allowed (pidfd_send_signal(2)).
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, none, 0) };
    }

    /// Waits for its end. A pidfd is readable from then on.
    pub async fn ended(&self) {
        // An error is the runtime's end: then nobody waits any more.
        let _ = self.fd.readable().await;
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened and is nobody else's; the kernel sets close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = |state: &str| format!("9 (a) b) {state} {}", fields.join(" "));
        assert_eq!(start_time(&stat("S")), Some(22));
        assert_eq!(start_time(&stat("Z")), None);
    }

    #[tokio::test]
    async fn a_foreign_process_is_watched_to_its_end() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let other = Identity { started: identity.started + 1, ..identity.clone() };
        assert!(Process::open(other).unwrap().is_none(), "the same number, another process");
        let process = Process::open(identity.clone()).unwrap().unwrap();
        assert_eq!(process.pid(), child.id());
        process.signal(Signal::SIGKILL);
        process.ended().await;
        assert!(!identity.lives(), "a zombie does not live");
        assert!(Process::open(identity.clone()).unwrap().is_none());
        child.wait().unwrap();
        assert!(Process::open(identity).unwrap().is_none());
        process.signal(Signal::SIGKILL);
    }
}
