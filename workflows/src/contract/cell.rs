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
