//! Freezing the cache disk for a copy of it, with a watchdog that thaws by itself.
//!
//! ```text
//! thawed ─► freezing ─► frozen ─► thawing ─► thawed
//!              │ the kernel refuses, or it took too long (then thawing) │
//!              └────────────────────────────────────────────────────────┘
//! ```

use std::fs::File;
use std::io;
use std::time::Instant;

use crate::{cache, sys};

/// `FIFREEZE` and `FITHAW` of <linux/fs.h>; the libc crate lacks them.
const FREEZE: libc::c_ulong = 0xc004_5877;
const THAW: libc::c_ulong = 0xc004_5878;

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
}

/// Returns when nothing more is written to the disk and all that was is on it.
pub fn freeze() -> io::Result<()> {
    sys::ioctl_number(&File::open(cache::MOUNT)?, FREEZE, 0)
}

/// A disk that is not frozen is thawed already.
pub fn thaw() -> io::Result<()> {
    match sys::ioctl_number(&File::open(cache::MOUNT)?, THAW, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        ended => ended,
    }
}
