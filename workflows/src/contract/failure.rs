//! What fails how: the classes of failure and their exit codes.

use serde::{Deserialize, Serialize};

/// The class of a failure; its text is the failure type of a Build that closes as Failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// A RUN step fails, no or bad Dockerfile, a step killed for memory, the registry says 401/403/404. Never retried.
    UserError,
    /// Found before anything is started: a bad flag, a path that is not there, an invalid tag.
    Usage,
    /// Registry or storage 429/5xx, refused connection, reset, DNS. Retried inside the operation first; no cell is blamed.
    Transient,
    /// buildkitd died, disk full, attempt lost, cell drained. Another cell, up to 3; what buildkitd answers alike on two
    /// cells is a user error.
    CellFault,
    /// No progress for `stuck_after`. Another cell, once.
    Stuck,
    Cancelled,
    TimedOut,
    /// Bad token, not allowed, over a cap, malformed manifest, same key with another input.
    Refused,
}

impl FailureClass {
    /// The stable name, as in JSON and as Temporal failure type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserError => "user_error",
            Self::Usage => "usage",
            Self::Transient => "transient",
            Self::CellFault => "cell_fault",
            Self::Stuck => "stuck",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
        }
    }

    /// The class of a stable name; `None` for any other text.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::UserError,
            Self::Usage,
            Self::Transient,
            Self::CellFault,
            Self::Stuck,
            Self::Cancelled,
            Self::TimedOut,
            Self::Refused,
        ]
        .into_iter()
        .find(|class| class.as_str() == name)
    }

    /// The exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::UserError => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Transient | Self::CellFault | Self::Stuck => 75,
            Self::TimedOut => 124,
            Self::Cancelled => 130,
        }
    }

    /// Whether the build moves to another cell (at most [`crate::contract::MAX_ATTEMPTS`] in all).
    pub fn moves_to_another_cell(self) -> bool {
        matches!(self, Self::CellFault | Self::Stuck)
    }
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a build or an attempt failed, for the person who reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildError {
    pub class: FailureClass,
    /// What failed, on what, why, what to do next. At most 16 KB together with the other fields.
    pub message: String,
    /// The failed step's name as in the Dockerfile, for example `[build 3/5] RUN make`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The failed step's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the step was killed for memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// The last lines of the failed step's output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// The place in the Dockerfile with a caret line, as BuildKit gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whether buildkitd itself answered with this: the same answer of another cell makes it the build's own error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_answer: bool,
}

impl BuildError {
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            step: None,
            exit_code: None,
            out_of_memory: false,
            log_tail: Vec::new(),
            source: None,
            is_answer: false,
        }
    }
}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for BuildError {}
