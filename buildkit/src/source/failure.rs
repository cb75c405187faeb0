//! What went wrong while a source was read.

use crate::patterns::BadPattern;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// What went wrong on this side while a source was read: the daemon only repeats the text, as one of many, or says no more than that a
/// transfer was cancelled, where it notices the transfer's end first.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFailures(Arc<Mutex<Option<SourceFailure>>>);

#[derive(Debug, Clone)]
pub(crate) struct SourceFailure {
    /// The name of the source.
    pub(crate) dir: String,
    pub(crate) message: String,
    pub(crate) fault: SourceFault,
}

/// Whose fault a source's failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceFault {
    /// The session has no source of this name.
    NotOffered,
    /// The build selects files by a malformed pattern.
    Pattern,
    /// The source could not be read.
    Unreadable,
}

impl SourceFault {
    /// The fault behind an error of listing a source.
    pub(crate) fn of(error: &io::Error) -> Self {
        let is_pattern = error.get_ref().is_some_and(|source| source.is::<BadPattern>());
        if is_pattern { Self::Pattern } else { Self::Unreadable }
    }
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
