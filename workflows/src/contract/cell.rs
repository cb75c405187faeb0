//! The Cell workflow's payloads, and what cells say of themselves.

use serde::{Deserialize, Serialize};

use super::{CellId, Platform, PoolName};

/// What a cell reports on every change and each 10 s. A hint may be stale; the worker's slots are the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellHint {
    pub cell: CellId,
    pub pool: PoolName,
    pub platform: Platform,
    pub state: CellState,
    pub slots: u32,
    pub busy: u32,
    /// Raised by the builder at each of its starts.
    pub epoch: u64,
    /// The generation of the cell's cache: raised when it is reset, pruned or on a new disk, so that what was warm is known to be cold.
    #[serde(default)]
    pub generation: u64,
    /// When the cell said so, milliseconds since 1970.
    pub reported_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CellState {
    Provisioning,
    Starting,
    Ready,
    Draining,
    Stopped,
    Updating,
    Unhealthy,
    Deleted,
}

impl CellState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Updating => "updating",
            Self::Unhealthy => "unhealthy",
            Self::Deleted => "deleted",
        }
    }
}

/// The signal `drain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When builds still running are moved, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<jiff::Timestamp>,
}

/// The answer of the query `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellStatus {
    pub cell: CellId,
    pub pool: PoolName,
    pub state: CellState,
    pub slots: u32,
    /// The drain in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainRequest>,
    /// The last ones, oldest first.
    #[serde(default)]
    pub transitions: Vec<Transition>,
}

/// A change of state, or an operator's signal that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Transition {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub state: CellState,
    pub what: String,
}
