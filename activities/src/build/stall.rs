//! Says in a build's log why nothing moves, where the cell knows: long before the attempt counts as stuck.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::progress::Sight;
use crate::pressure::{Slices, Standstill};

/// Steps are silent for so long without anything being wrong; the pressure is that of the last minute, too.
const QUIET: Duration = Duration::from_secs(60);
/// Between two looks at a build that does not move.
const AGAIN: Duration = Duration::from_secs(10);

/// Looks until it is dropped.
pub(super) async fn tell(sight: &Sight, slices: &Slices, note: impl Fn(String)) -> Infallible {
    let mut teller = Teller::default();
    loop {
        let moved = sight.moved();
        let now = Instant::now();
        if now < moved + QUIET {
            sleep_until(moved + QUIET).await;
            continue;
        }
        if let Some(text) = teller.words(moved, now, slices.standstill()) {
            note(text);
        }
        sleep(AGAIN).await;
    }
}

/// Tells each standstill once; it is known by when something last moved before it.
#[derive(Default)]
struct Teller(Option<Instant>);

impl Teller {
    fn words(&mut self, moved: Instant, now: Instant, standstill: Option<Standstill>) -> Option<String> {
        let standstill = standstill.filter(|_| self.0 != Some(moved))?;
        self.0 = Some(moved);
        Some(format!("no step has made progress for {} s: {standstill}", (now - moved).as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_told_once_with_its_reason() {
        let standstill = Some(Standstill { resource: "memory", share: 0.834 });
        let (mut teller, moved) = (Teller::default(), Instant::now());
        let after = |seconds| moved + Duration::from_secs(seconds);
        assert_eq!(teller.words(moved, after(60), None), None, "the step itself is slow");
        assert_eq!(
            teller.words(moved, after(71), standstill).as_deref(),
            Some(
                "no step has made progress for 71 s: the steps on this cell stood still 83 % of the last minute for want of memory"
            )
        );
        assert_eq!(teller.words(moved, after(81), standstill), None);
        assert!(teller.words(after(90), after(151), standstill).is_some(), "the next one");
    }
}
