//! How far the listing may run ahead of the daemon's requests.
//!
//! The daemon reads one stream: behind a long listing, content has to wait until every entry of it has been looked at, so that
//! creating files and filling them come one after the other. With a short lead they go on side by side. What the daemon
//! has looked at is only known from what it asks for, and it asks for nothing that has not changed: silence means that it wants
//! the listing, and doubles the lead.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Entries sent beyond the last one asked for, at first.
const LEAD: usize = 512;
/// How long nothing is asked for before the lead grows.
const SILENCE: Duration = Duration::from_millis(8);

#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// One more than the highest id asked for.
    asked: usize,
    /// Times the lead has doubled.
    doubled: u32,
    over: bool,
}

impl Pace {
    /// Waits until an entry by this number may be sent.
    pub(super) fn wait(&self, number: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.over && number > state.asked.saturating_add(LEAD << state.doubled.min(32)) {
            let asked = state.asked;
            let waited = self.moved.wait_timeout(state, SILENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.asked == asked {
                state.doubled += 1;
            }
        }
    }

    /// The daemon has asked for an entry.
    pub(super) fn asked_for(&self, id: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked = state.asked.max(id as usize + 1);
        self.moved.notify_one();
    }

    /// Nothing will be asked for any more: nobody has to wait.
    pub(super) fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.moved.notify_one();
    }
}
