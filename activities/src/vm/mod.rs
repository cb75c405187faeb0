//! The machines that cells are made of: what a host's agent does with them, whatever they are.
//!
//! ```text
//! start_cell, stop_cell, replug_cell, clone_cell, … (orders of a Cell's workflow) ─► [`Host`] ─► [`Keeper`], one a cell ─► [`Driver`]
//! ```
//!
//! A [`Driver`] knows one kind of machine and nothing of orders: [`ProcessDriver`] or [`MicrovmDriver`]. A [`Keeper`] owns one cell of
//! this host: it claims the cell's directory, finds again what runs there, keeps it running and obeys orders, each once. [`Host`] is
//! the agent's set of activities.
//!
//! What must outlive the agent lies in the cell's directory: `host.lock` (which agent has the cell), `host.json` (what is wanted
//! there, what was ordered and answered), `guard.lock` (which process holds the cell).

mod cells;
mod clones;
mod error;
mod figures;
mod guests;
mod host;
mod identity;
mod keeper;
mod lock;
mod microvm;
mod process;
mod record;

use std::path::Path;
use std::time::Duration;

pub use clones::{
    Cloned, end_half_done as end_half_done_clones, find as find_clones, find_strays as find_stray_clones, main_of,
};
pub use error::{DriverError, HostError};
pub use figures::Clock;
pub use guests::{GuestStart, Guests};
pub use host::{Host, Keep};
pub use identity::{Identity, Process};
pub use keeper::{Begin, Home, Keeper, Notice};
pub use lock::{Lock, LockError};
pub use microvm::MicrovmDriver;
pub use process::{GUARD_LOCK, Launch, Launcher, ProcessDriver};

/// One kind of machine. A cell is known by its directory, the cache disk; a driver keeps nothing beside what it finds there.
pub trait Driver: Send + Sync + 'static {
    /// A running cell: what it takes to watch and end it.
    type Cell: Send + Sync;

    /// Whether a cell could be started so.
    ///
    /// # Errors
    /// The image or the directory is none; nothing was touched.
    fn check(&self, dir: &Path, image: Option<&str>) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Starts a cell that does not run; returns when it is up. A cell that does not come up is ended again. Dropping the future may
    /// leave a starting cell, which [`Driver::adopt`] finds.
    fn start(&self, dir: &Path, image: Option<&str>) -> impl Future<Output = Result<Self::Cell, DriverError>> + Send;

    /// The cell that runs in the directory, whoever started it; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be told whether one runs.
    fn adopt(&self, dir: &Path) -> Result<Option<Self::Cell>, DriverError>;

    /// Asks the cell to end by itself; asked again, it ends at once but tidily. Returns without waiting.
    fn stop(&self, cell: &Self::Cell);

    /// What a cell may take to end in order, however short the grace of its builds is.
    fn least_grace(&self) -> Duration {
        Duration::ZERO
    }

    /// Ends the cell by force. Returns without waiting.
    fn kill(&self, cell: &Self::Cell);

    /// The process on this host that holds the cell.
    fn inspect(&self, cell: &Self::Cell) -> Option<u32>;

    /// Waits for the cell's end; says how it ended, as far as that can be known.
    fn ended(&self, cell: &mut Self::Cell) -> impl Future<Output = String> + Send;

    /// Looks at the network of the cell that runs in the directory and mends it, while the cell goes on; what was wrong. Asked again, nothing
    /// is. Not every kind of machine has a network of its own.
    ///
    /// # Errors
    /// It cannot be mended: the cell has to be started again.
    fn replug(&self, _dir: &Path) -> impl Future<Output = Result<Vec<String>, DriverError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Makes a cell in `dir`, beside `main`, from the cell in `main`, whether that runs or not; it is to run `image`. Whatever fails, no
    /// directory is left; what the same operation has made before is left as it is. Not every kind of machine can be cloned.
    ///
    /// # Errors
    /// It cannot be cloned, another cell is there, or a file cannot be written.
    fn clone_cell(
        &self,
        _main: &Path,
        _dir: &Path,
        _operation: &str,
        _image: Option<&str>,
    ) -> impl Future<Output = Result<Cloned, DriverError>> + Send {
        std::future::ready(Err(DriverError::Machine { why: "only guests are cloned (host.driver)".into() }))
    }

    /// Deletes a clone that does not run, with its disk. Asked again it goes on where it was, and what is not there any more is deleted.
    ///
    /// # Errors
    /// It is none, it runs, or a file cannot be deleted.
    fn delete_clone(&self, _dir: &Path) -> impl Future<Output = Result<(), DriverError>> + Send {
        std::future::ready(Err(DriverError::Machine { why: "only guests are cloned (host.driver)".into() }))
    }
}
