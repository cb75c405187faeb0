//! The records of a build's log: what the builder ships, the api stores and streams, the command line draws.

use serde::{Deserialize, Serialize};

use super::bounds;

/// One numbered record of one attempt's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogRecord {
    /// Counts from 1 within the attempt, without gaps.
    #[serde(deserialize_with = "bounds::within::<_, _, 1, { bounds::COUNT_MAX }>")]
    pub seq: u64,
    /// Milliseconds since 1970, the builder's clock.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::TIME_MAX_MS }>")]
    pub at_ms: u64,
    #[serde(flatten)]
    pub event: LogEvent,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogEvent {
    /// A step is known, has started or has ended; later records of the same vertex replace earlier ones.
    Vertex {
        /// The vertex digest; identifies the step within the attempt.
        vertex: String,
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        started_ms: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        completed_ms: Option<u64>,
        #[serde(default)]
        cached: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Progress within a step: a layer pulled, a file set transferred.
    Progress {
        vertex: String,
        id: String,
        name: String,
        current: i64,
        /// 0 when unknown.
        total: i64,
        #[serde(default)]
        done: bool,
    },
    /// Output of a step. `text` may end within a line; bytes that are not UTF-8 are replaced.
    Output {
        vertex: String,
        /// 1 standard output, 2 standard error.
        stream: u32,
        text: String,
    },
    /// A warning of the frontend, for example of a lint rule.
    Warning { vertex: String, text: String },
    /// A message of Kiln itself: attempt started, moved to another cell, frontend used.
    Note { text: String },
    /// From here on records are missing: how much was cut and why.
    Cut { records: u64, bytes: u64, reason: String },
    /// The attempt's log is complete.
    End,
}
