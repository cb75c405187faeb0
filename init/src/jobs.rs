//! Work that may block, in forked children with deadlines, so that the event loop never does.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    CheckDisk,
    MountDisk,
    UnmountDisk,
    LateModules,
    RemoveRubbish,
    Freeze,
    Thaw,
    Resize,
}

impl Work {
    /// How long it may take. A check of a large disk that was not unmounted takes minutes.
    pub fn deadline(self) -> Duration {
        Duration::from_secs(match self {
            Self::CheckDisk => 900,
            Self::MountDisk | Self::LateModules => 60,
            // Inode tables of the new part are cleared, which may be gigabytes.
            Self::Resize => 600,
            Self::UnmountDisk => 15,
            Self::RemoveRubbish => 3600,
            Self::Freeze | Self::Thaw => 10,
        })
    }
}

/// One child at work.
pub struct Job {
    pub work: Work,
    /// The control channel's request to be answered with the outcome, until it is.
    pub request: Option<String>,
    pid: i32,
    until: Instant,
    overdue: bool,
}

#[derive(Default)]
pub struct Jobs(Vec<Job>);

impl Jobs {
    /// Runs `act` in a child.
    pub fn start(
        &mut self,
        work: Work,
        request: Option<String>,
        act: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let pid = sys::fork(act)?;
        self.note(work, request, pid);
        Ok(())
    }

    /// Runs a program.
    pub fn spawn(&mut self, work: Work, mut command: Command) -> io::Result<()> {
        let pid = command.spawn()?.id().cast_signed();
        self.note(work, None, pid);
        Ok(())
    }

    fn note(&mut self, work: Work, request: Option<String>, pid: i32) {
        self.0.push(Job { work, request, pid, until: Instant::now() + work.deadline(), overdue: false });
    }

    /// The job whose child ended.
    pub fn ended(&mut self, pid: i32) -> Option<Job> {
        let at = self.0.iter().position(|job| job.pid == pid)?;
        Some(self.0.remove(at))
    }

    /// Kills what takes too long and says which requests will get no other answer. The job itself stays until its child is gone: a call
    /// that the kernel does not interrupt may still succeed.
    pub fn give_up(&mut self, now: Instant) -> Vec<(Work, Option<String>)> {
        let late = self.0.iter_mut().filter(|job| !job.overdue && job.until <= now);
        late.map(|job| {
            job.overdue = true;
            let _ = sys::kill(job.pid, libc::SIGKILL);
            (job.work, job.request.take())
        })
        .collect()
    }

    /// Kills what uses the cache disk and is not needed any more.
    pub fn let_go_of_disk(&self) {
        for job in self.0.iter().filter(|job| matches!(job.work, Work::RemoveRubbish | Work::Resize)) {
            let _ = sys::kill(job.pid, libc::SIGKILL);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().filter(|job| !job.overdue).map(|job| job.until).min()
    }
}
