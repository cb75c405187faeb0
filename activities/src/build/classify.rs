//! What BuildKit or object storage said, as the error a build tells.

use buildkit::{FailureKind, SolveError};
use workflows::contract::{BuildError, FailureClass};

use super::events::Recorder;
use crate::failure::with_source;
use crate::snapshots::SnapshotError;

/// The longest message that is kept, bytes: a result has to stay small.
const MESSAGE: usize = 4 << 10;

pub(super) fn snapshot_error(error: &SnapshotError) -> BuildError {
    let class = if error.is_transient() { FailureClass::Transient } else { FailureClass::Refused };
    BuildError::new(class, with_source(error))
}

/// The solve's error with the step, its last lines and its place in the Dockerfile.
pub(super) fn solve_error(error: &SolveError, recorder: &Recorder) -> BuildError {
    let mut told = BuildError::new(class(&error.kind), shortened(&error.message));
    if let Some(vertex) = &error.vertex {
        told.step = vertex.name.clone().or_else(|| recorder.name(&vertex.digest));
        told.log_tail = recorder.tail(&vertex.digest);
    }
    if let FailureKind::Exit { code, out_of_memory } = error.kind {
        told.exit_code = i32::try_from(code).ok();
        told.out_of_memory = out_of_memory;
    }
    told.source = error.sources.last().map(|source| shortened(&source.text));
    told
}

fn class(kind: &FailureKind) -> FailureClass {
    match kind {
        kind if kind.is_user_error() => FailureClass::UserError,
        FailureKind::Registry(_) | FailureKind::Source { .. } => FailureClass::Transient,
        FailureKind::Cancelled => FailureClass::Cancelled,
        _ => FailureClass::CellFault,
    }
}

fn shortened(message: &str) -> String {
    match message.char_indices().nth(MESSAGE) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_owned(),
    }
}
