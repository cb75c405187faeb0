//! Why an order cannot be carried out. Refusals stand until somebody changes something; the rest is worth another try.

use std::io;
use std::path::PathBuf;

use ::vm::disk::DiskError;
use workflows::contract::{BuildError, CellId, FailureClass, HostId};

use super::LockError;
use crate::entities::EntityError;
use crate::failure::with_source;

/// What a driver says of one cell.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("{} is not there: the cell has no directory on this host", path.display())]
    NoDirectory { path: PathBuf },
    #[error("{} is no description of a cell", path.display())]
    Plan { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{image:?} is no image of this kind of cell: {why}")]
    Image { image: String, why: String },
    #[error("this host cannot run the cell: {why}")]
    Machine { why: String },
    #[error("the cell cannot be started")]
    Spawn(#[source] io::Error),
    /// Ended again by itself or by the driver.
    #[error("the cell did not come up: {why}")]
    NotUp { why: String },
    #[error("the cell has no credential for the api: {why}")]
    Credential { why: String },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{} is there already", dir.display())]
    Taken { dir: PathBuf },
    #[error("what runs in {} cannot be told", path.display())]
    Unclear { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// What a host answers instead of [`workflows::contract::HostCell`].
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("host {host} has no cell {cell}; its cells are {known}")]
    UnknownCell { host: HostId, cell: CellId, known: String },
    #[error("cell {cell} is not this host's to run")]
    Claimed { cell: CellId, source: LockError },
    #[error("cell {cell} belongs to host {by}: its Cell was started there; terminate that workflow to move the cell")]
    Elsewhere { cell: CellId, by: String },
    #[error("operation {operation:?} was {first} before; an id names one operation")]
    Reused { operation: String, first: &'static str },
    #[error("the record {} of the cell cannot be used", path.display())]
    Record { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("there is a cell {cell} already")]
    Taken { cell: CellId },
    #[error("the host has as many cells as it may ({max}, host.max_cells)")]
    Full { max: usize },
    #[error("cell {cell} is no clone: only clones are deleted with their disks")]
    NoClone { cell: CellId },
    #[error("cell {cell} does not end, not even by force")]
    Stays { cell: CellId },
    #[error("whose cell it is cannot be asked")]
    Temporal(#[from] EntityError),
    #[error("the start of cell {cell} was broken off by a later order")]
    Overtaken { cell: CellId },
    #[error("the host's agent is ending")]
    Ending,
}

impl HostError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::UnknownCell { .. }
            | Self::Claimed { .. }
            | Self::Elsewhere { .. }
            | Self::Reused { .. }
            | Self::Taken { .. }
            | Self::Full { .. }
            | Self::NoClone { .. }
            | Self::Overtaken { .. } => FailureClass::Refused,
            Self::Driver(
                DriverError::NoDirectory { .. }
                | DriverError::Plan { .. }
                | DriverError::Image { .. }
                | DriverError::Taken { .. }
                | DriverError::Disk(DiskError::NoReflink { .. })
                | DriverError::Machine { .. },
            ) => FailureClass::Refused,
            Self::Driver(_) | Self::Stays { .. } => FailureClass::CellFault,
            Self::Record { .. } | Self::Temporal(_) | Self::Ending => FailureClass::Transient,
        }
    }
}

impl From<&HostError> for BuildError {
    fn from(error: &HostError) -> Self {
        Self::new(error.class(), with_source(error))
    }
}
