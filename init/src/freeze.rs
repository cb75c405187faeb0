//! Freezing the cache disk for a copy of it, with a watchdog that thaws by itself.
//!
//! ```text
//!                          ┌──────────┐ failed: a second later
//! thawed ─► freezing ─► frozen ─► thawing ─► thawed
//!              │ the kernel refuses, or it took too long (then thawing) │
//!              └────────────────────────────────────────────────────────┘
//! ```

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use crate::sys::Ended;
use crate::{cache, sys};

/// `FIFREEZE` and `FITHAW` of <linux/fs.h>; the libc crate lacks them.
const FREEZE: libc::c_ulong = 0xc004_5877;
const THAW: libc::c_ulong = 0xc004_5878;

/// After so long a thaw that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    Thawed,
    /// The watchdog runs from the request on, so that a slow freeze is not followed by a long one.
    Freezing {
        until: Instant,
    },
    Frozen {
        until: Instant,
    },
    Thawing,
}

impl Freeze {
    /// When the watchdog thaws.
    pub fn watchdog(self) -> Option<Instant> {
        match self {
            Self::Frozen { until } => Some(until),
            _ => None,
        }
    }

    /// After the end of the job that freezes; `None`: the disk is to be thawed. Only an error's number says that it is not frozen: the kernel
    /// ends a freeze that it has begun, also for a job that was killed meanwhile. `wanted`: somebody waits for it still.
    pub fn after(self, job: Ended, wanted: bool) -> Option<Self> {
        match (self, job) {
            (Self::Freezing { until }, Ended::Exit(0)) if wanted => Some(Self::Frozen { until }),
            (_, Ended::Exit(0) | Ended::Signal(_)) => None,
            (Self::Freezing { .. }, Ended::Exit(_)) => Some(Self::Thawed),
            (other, Ended::Exit(_)) => Some(other),
        }
    }

    /// After the end of the job that thaws. One that was killed before it came to that has left the disk frozen: the watchdog begins again.
    pub fn after_thaw(self, done: bool, now: Instant) -> Self {
        match (self, done) {
            (Self::Thawing, true) => Self::Thawed,
            (Self::Thawing, false) => Self::Frozen { until: now + AGAIN },
            (other, _) => other,
        }
    }
}

/// Returns when nothing more is written to the disk and all that was is on it. What a busy disk has to write out first is most of the work,
/// and builds go on meanwhile.
pub fn freeze() -> io::Result<()> {
    let disk = File::open(cache::MOUNT)?;
    sys::sync_disk(&disk)?;
    sys::ioctl_number(&disk, FREEZE, 0)
}

/// A disk that is not frozen is thawed already.
pub fn thaw() -> io::Result<()> {
    match sys::ioctl_number(&File::open(cache::MOUNT)?, THAW, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_may_be_frozen_for_nobody_is_thawed() {
        let until = Instant::now();
        let freezing = Freeze::Freezing { until };
        assert_eq!(freezing.after(Ended::Exit(0), true), Some(Freeze::Frozen { until }));
        assert_eq!(freezing.after(Ended::Exit(0), false), None, "it took too long");
        assert_eq!(freezing.after(Ended::Signal(libc::SIGKILL), false), None, "killed in the kernel, which goes on");
        assert_eq!(Freeze::Thawed.after(Ended::Exit(0), true), None, "it was to be thawed meanwhile");
    }

    #[test]
    fn a_thaw_that_failed_is_tried_again() {
        let now = Instant::now();
        assert_eq!(Freeze::Thawing.after_thaw(true, now), Freeze::Thawed);
        let again = Freeze::Thawing.after_thaw(false, now);
        assert_eq!(again.watchdog(), Some(now + AGAIN));
        assert_eq!(Freeze::Thawed.after_thaw(false, now), Freeze::Thawed, "a second one was under way, and thawed");
    }

    #[test]
    fn a_freeze_that_was_refused_changes_nothing() {
        let freezing = Freeze::Freezing { until: Instant::now() };
        assert_eq!(freezing.after(Ended::Exit(libc::EBUSY), true), Some(Freeze::Thawed));
        assert_eq!(Freeze::Thawing.after(Ended::Exit(libc::EBUSY), true), Some(Freeze::Thawing));
    }
}
