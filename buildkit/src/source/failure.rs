//! What went wrong while a source was read.

use std::sync::{Arc, Mutex, PoisonError};

/// What went wrong on this side while a source was read: the daemon only repeats the text, as one of many, or says no more than that a
/// transfer was cancelled, where it notices the transfer's end first.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFailures(Arc<Mutex<Option<SourceFailure>>>);

#[derive(Debug, Clone)]
pub(crate) struct SourceFailure {
    /// The name of the source.
    pub(crate) dir: String,
    pub(crate) message: String,
    /// Whether the session has a source of this name.
    pub(crate) is_offered: bool,
}

impl SourceFailures {
    /// Keeps the first failure.
    pub(crate) fn record(&self, failure: SourceFailure) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    pub(crate) fn take(&self) -> Option<SourceFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
