//! A cell's intake: which attempts hold a slot, and whether another one may start.
//!
//! Orders to open and close carry the time at which they were given. They can arrive late or twice (a check that its Cell no longer
//! waits for runs to its end), so an older one than the last changes nothing, and of two from the same moment closing stands.

use std::collections::BTreeMap;

use crate::contract::AttemptId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intake {
    slots: u32,
    open: bool,
    /// When the last order was given, milliseconds since 1970.
    ordered_ms: i64,
    /// By BuildKit ref.
    running: BTreeMap<String, AttemptId>,
}

/// Why an attempt does not start here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the cell takes no builds now")]
    Closed,
    #[error("all slots of the cell are taken")]
    Full,
    #[error("the attempt runs here already")]
    Runs,
}

impl Intake {
    /// As a builder's former self left it.
    pub fn new(slots: u32, open: bool, ordered_ms: i64) -> Self {
        Self { slots, open, ordered_ms, running: BTreeMap::new() }
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// When the attempt must not start.
    pub fn take(&mut self, attempt: &AttemptId) -> Result<(), Refusal> {
        let reference = attempt.buildkit_ref();
        if !self.open {
            return Err(Refusal::Closed);
        }
        if self.running.contains_key(&reference) {
            return Err(Refusal::Runs);
        }
        if self.running.len() >= self.slots as usize {
            return Err(Refusal::Full);
        }
        self.running.insert(reference, attempt.clone());
        Ok(())
    }

    /// Gives the slot back.
    pub fn leave(&mut self, reference: &str) {
        self.running.remove(reference);
    }

    /// Opens or closes as ordered at `at_ms`; says whether the order counts.
    pub fn order(&mut self, open: bool, at_ms: i64) -> bool {
        let counts = at_ms > self.ordered_ms || (at_ms == self.ordered_ms && !open);
        if counts {
            (self.open, self.ordered_ms) = (open, at_ms);
        }
        counts
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    pub fn ordered_ms(&self) -> i64 {
        self.ordered_ms
    }

    pub fn running(&self) -> impl Iterator<Item = &AttemptId> {
        self.running.values()
    }

    pub fn busy(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32) -> AttemptId {
        let platform = "linux/amd64".parse().unwrap();
        AttemptId { workflow_id: "build/p/k".into(), run_id: "r".into(), platform, number }
    }

    #[test]
    fn nothing_starts_while_it_is_closed_or_full() {
        let mut intake = Intake::new(1, true, 0);
        intake.take(&attempt(1)).unwrap();
        assert_eq!(intake.take(&attempt(1)), Err(Refusal::Runs));
        assert_eq!(intake.take(&attempt(2)), Err(Refusal::Full));
        intake.leave(&attempt(1).buildkit_ref());
        assert!(intake.order(false, 10));
        assert_eq!(intake.take(&attempt(2)), Err(Refusal::Closed));
    }

    #[test]
    fn an_order_that_arrives_late_changes_nothing() {
        let mut intake = Intake::new(1, true, 0);
        assert!(intake.order(false, 10));
        assert!(!intake.order(true, 9), "it was given before the closing");
        assert!(!intake.order(true, 10), "of two from one moment closing stands");
        assert!(!intake.is_open());
        assert!(intake.order(true, 11));
        assert!(intake.is_open());
    }
}
