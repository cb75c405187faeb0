//! Orders to a host's agent, and what it answers.

use serde::{Deserialize, Serialize};

use super::{CellId, PoolName, bounds};

/// What a host is asked to do with one of its cells. The operation's id makes it idempotent: a repeated id gives the first answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOrder {
    /// The caller's own id of this order, unique among the cell's.
    pub operation: String,
    pub cell: CellId,
    pub pool: PoolName,
    /// What the cell is to run, a [`super::CellImage`] of the host's; absent: what it ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How long what runs may take to end by itself before it is killed, milliseconds.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub grace_ms: u64,
    /// The cell that it was copied from, where it is a clone: it lies beside that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CellId>,
}

/// A cell to be made as a copy of one of the host's. The operation is one of the cell that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOrder {
    #[serde(flatten)]
    pub order: HostOrder,
    /// The id of the new cell.
    pub clone: CellId,
    /// As many as the cell that is copied has; the new one's builder says it again when it is up.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::SLOTS_MAX }>")]
    pub slots: u32,
}

/// A clone that was made. It is started by its own Cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostClone {
    pub clone: CellId,
    /// How long the disk of the cell that was copied held still, milliseconds; absent where its guest did not answer, or does not run: the
    /// copy is as after a power cut then.
    #[serde(default, deserialize_with = "bounds::maybe_within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub held_still_ms: Option<u64>,
    /// What making the clone took, milliseconds.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::DURATION_MAX_MS }>")]
    pub took_ms: u64,
}

/// What was wrong with the way to a cell and is not any more; empty when nothing was, as far as its host can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostWire {
    #[serde(default)]
    pub mended: Vec<String>,
}

/// What runs there, as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCell {
    pub cell: CellId,
    pub running: bool,
    /// The process on the host that holds the cell.
    #[serde(default)]
    pub pid: Option<u32>,
    /// When it was started, milliseconds since 1970.
    #[serde(default, deserialize_with = "bounds::maybe_within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub started_ms: Option<i64>,
    /// What it runs or ran last; absent: what its directory names.
    #[serde(default)]
    pub image: Option<String>,
    /// Raised by the host at each start of the cell, whoever caused it.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub generation: u64,
}
