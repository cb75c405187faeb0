//! What the binary says of a host's guests: what each is made of, and where its things lie.

use std::path::{Path, PathBuf};

use ::vm::{GuestConfig, Machine, Patience};

use super::{Clock, DriverError};

/// What it takes to start a guest.
#[derive(Debug)]
pub struct GuestStart {
    pub machine: Machine,
    pub config: GuestConfig,
    /// The cache disk's size: it is made so large, and grown to it, never shrunk.
    pub disk_bytes: u64,
    pub patience: Patience,
}

/// What guests are made of on this host.
pub trait Guests: Send + Sync + 'static {
    /// As [`super::Driver::check`].
    ///
    /// # Errors
    /// The image or the directory is none.
    fn check(&self, dir: &Path, image: Option<&str>) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Where the guest of this cell has its sockets, its logs and the record of who runs it.
    fn run_dir(&self, dir: &Path) -> PathBuf;

    /// The cell's cache disk.
    fn cache_disk(&self, dir: &Path) -> PathBuf;

    /// Prepares a start of the cell in `dir`: the image verified, its network there.
    ///
    /// # Errors
    /// As [`Guests::check`], or the network cannot be made.
    fn prepare(&self, dir: &Path, image: Option<&str>) -> impl Future<Output = Result<GuestStart, DriverError>> + Send;

    /// As [`super::Driver::replug`].
    ///
    /// # Errors
    /// As there.
    fn replug(&self, dir: &Path) -> impl Future<Output = Result<Vec<String>, DriverError>> + Send;

    /// Looks whether the rules around the cell that runs in `dir` stand, and puts them up again; what was missing.
    ///
    /// # Errors
    /// They cannot be put up, or it is not known which they were.
    fn guard(&self, dir: &Path) -> impl Future<Output = Result<Vec<String>, DriverError>> + Send;

    /// Takes away what a guest that has ended no longer needs. Not to be broken off: what is left of it would meet the next start.
    fn clear(&self, dir: &Path);

    /// Who sets the clock of a guest that runs.
    fn clock(&self, dir: &Path) -> Clock;
}
