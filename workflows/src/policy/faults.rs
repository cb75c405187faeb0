//! How many cells a build may try, and when two failures alike say that more would not help.

use crate::contract::{BuildError, FailureClass, MAX_ATTEMPTS};

/// The failures that moved a build from cell to cell.
#[derive(Debug, Default)]
pub struct Faults {
    /// Cells used up; an attempt that was stuck leaves one more cell.
    used: u32,
    /// What buildkitd answered last, in its comparable form.
    answer: Option<String>,
}

impl Faults {
    /// Takes in a failure that moves to another cell; returns the build's error when it may not move again.
    ///
    /// The same answer of two buildkitds is about what they were asked: the build's own error. Other failures (a full
    /// disk, a lost attempt, a drain) are about the cell, however alike they are.
    pub fn next(&mut self, error: BuildError) -> Option<BuildError> {
        self.used += if error.class == FailureClass::Stuck { MAX_ATTEMPTS - 1 } else { 1 };
        let answer = error.is_answer.then(|| comparable(&error.message));
        if answer.is_some() && answer == self.answer {
            return Some(own(error));
        }
        self.answer = answer;
        (self.used >= MAX_ATTEMPTS).then_some(error)
    }
}

fn own(mut error: BuildError) -> BuildError {
    error.class = FailureClass::UserError;
    error.message.push_str("; two cells failed alike, so the cause is in the build");
    error
}

/// A message without what differs from one cell to the next: ids, times, paths of temporary files. Each word with a
/// digit in it counts as the same.
fn comparable(message: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let words = message.split_inclusive(|c| !is_word(c));
    words.map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "#" } else { word }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(message: &str) -> BuildError {
        BuildError { is_answer: true, ..BuildError::new(FailureClass::CellFault, message) }
    }

    #[test]
    fn the_same_answer_of_two_cells_is_the_builds_own_error() {
        let mut faults = Faults::default();
        assert_eq!(faults.next(answer("failed to mount /tmp/buildkit-mount123: bad option")), None);
        let error = faults.next(answer("failed to mount /tmp/buildkit-mount4567: bad option")).unwrap();
        assert_eq!(error.class, FailureClass::UserError);
        assert!(error.message.contains("two cells failed alike"), "{error}");
    }

    #[test]
    fn other_answers_and_faults_of_cells_go_on_to_the_third() {
        let fault = |message: &str| BuildError::new(FailureClass::CellFault, message);
        for errors in [
            [answer("no such device"), answer("bad option"), answer("no such device")],
            [fault("drained"), fault("drained"), fault("drained")],
            [answer("bad option"), fault("bad option"), answer("bad option")],
        ] {
            let mut faults = Faults::default();
            let [first, second, third] = errors;
            assert_eq!((faults.next(first), faults.next(second)), (None, None));
            assert_eq!(faults.next(third.clone()), Some(third));
        }
    }

    #[test]
    fn a_stuck_attempt_leaves_one_more_cell() {
        let stuck = || BuildError::new(FailureClass::Stuck, "no progress");
        let mut faults = Faults::default();
        assert_eq!(faults.next(stuck()), None);
        assert_eq!(faults.next(stuck()), Some(stuck()));
    }

    proptest! {
        #[test]
        fn no_build_tries_more_cells_than_it_may(kinds in proptest::collection::vec(0..4u8, 3..10)) {
            let mut faults = Faults::default();
            let error = |kind| match kind {
                0 => answer("one"),
                1 => answer("other"),
                2 => BuildError::new(FailureClass::Stuck, "stuck"),
                _ => BuildError::new(FailureClass::CellFault, "lost"),
            };
            let tried = kinds.into_iter().take_while(|kind| faults.next(error(*kind)).is_none()).count();
            prop_assert!(tried < MAX_ATTEMPTS as usize);
        }
    }
}
