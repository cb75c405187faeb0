//! Answers for as long as they hold, and a while longer in case no upstream answers (RFC 8767). Pure: time is an argument, nothing is
//! asked.
//!
//! ```text
//! kept ── its time to live ──► stale: given out only when the upstreams fail ── `stale` ──► gone
//!            (a day at most)     a failure is believed for 30 s, then they are asked again
//! ```
//!
//! A failure where there is nothing stale is kept for a moment as well (RFC 9520), so that whoever asks at once again does not have the
//! upstreams asked once more.
//!
//! What says that a name does not exist is kept as RFC 2308 has it, for five minutes at most, and is never given out stale: "no such
//! host" ends a build for good, a failure is tried again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use lru::LruCache;

use super::question::Question;
use super::unresolved::Unresolved;

/// The longest that an answer holds, whatever it says of itself.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The longest that a name counts as missing: somebody may just be adding it.
const LONGEST_MISSING: Duration = Duration::from_secs(300);
/// The time to live of stale records, seconds (RFC 8767, section 4).
const STALE_TTL: u32 = 30;
/// How long a failure of the upstreams is believed where there is a stale answer (the failure recheck timer of RFC 8767, section 5).
const FAILURE_HOLDS: Duration = Duration::from_secs(30);
/// The same where there is none: at least a second and at most five minutes, by RFC 9520, section 3.2. A build that tries again after
/// its first pause shall find the upstreams asked again.
const MOMENT: Duration = Duration::from_secs(1);
/// How many failures are kept, some hundred bytes each.
const FAILURES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Answers by question, the least recently used of which go when all of them take more than a limit.
pub struct Cache {
    entries: LruCache<Question, Entry>,
    /// When the upstreams failed on a question without a stale answer, and how.
    failures: LruCache<Question, (Instant, Arc<Unresolved>)>,
    /// What the entries take, and may take, bytes.
    bytes: usize,
    limit: usize,
    stale: Duration,
}

struct Entry {
    /// As on the wire: so its size is known, and it is the smallest form it has.
    answer: Vec<u8>,
    kept: Instant,
    holds: Duration,
    /// How long it may be given out after that.
    stale: Duration,
    /// The upstreams failed on this question and are not asked again before.
    ask_again: Option<Instant>,
}

/// What the cache has for a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    Fresh(Message),
    /// Older than its time to live. The upstreams are to be asked first, unless they failed on it just now.
    Stale {
        answer: Message,
        ask: bool,
    },
    /// The upstreams failed on it a moment ago.
    Failed(Arc<Unresolved>),
    Nothing,
}

impl Cache {
    /// `limit` in bytes; `stale` is how long answers are kept after their time to live.
    pub fn new(limit: usize, stale: Duration) -> Self {
        Self { entries: LruCache::unbounded(), failures: LruCache::new(FAILURES), bytes: 0, limit, stale }
    }

    /// Entries and bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    pub fn look(&mut self, question: &Question, now: Instant) -> Held {
        let held = self.entries.get(question).and_then(|entry| entry.at(now));
        held.unwrap_or_else(|| {
            self.remove(question);
            self.failure(question, now).map_or(Held::Nothing, Held::Failed)
        })
    }

    fn failure(&mut self, question: &Question, now: Instant) -> Option<Arc<Unresolved>> {
        let (at, unresolved) = self.failures.peek(question)?;
        if now.saturating_duration_since(*at) < MOMENT {
            return Some(unresolved.clone());
        }
        self.failures.pop(question);
        None
    }

    /// Keeps an upstream's answer in place of a former one, where it may be kept at all.
    pub fn keep(&mut self, question: Question, mut answer: Message, now: Instant) {
        self.remove(&question);
        self.failures.pop(&question);
        let Some((holds, stale)) = self.lifetime(&question, &answer) else { return };
        // It is between two machines, not part of the answer.
        answer.edns = None;
        // No record outlives the answer that it is part of.
        set_ttl(&mut answer, |ttl| ttl.min(u32::try_from(holds.as_secs()).unwrap_or(u32::MAX)));
        let Ok(answer) = answer.to_vec() else { return };
        let entry = Entry { answer, kept: now, holds, stale, ask_again: None };
        self.bytes += entry.size(&question);
        self.entries.put(question, entry);
        while self.bytes > self.limit {
            let Some((question, entry)) = self.entries.pop_lru() else { return };
            self.bytes -= entry.size(&question);
        }
    }

    /// The upstreams failed on a question: for a while its stale answer is given out at once, or for a moment the failure.
    pub fn failed(&mut self, question: &Question, unresolved: &Arc<Unresolved>, now: Instant) {
        if let Some(entry) = self.entries.peek_mut(question) {
            entry.ask_again = Some(now + FAILURE_HOLDS);
        } else {
            self.failures.put(question.clone(), (now, unresolved.clone()));
        }
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.pop(question) {
            self.bytes -= entry.size(question);
        }
    }

    /// How long an answer holds, and how long it is of use after that; `None` for what must not be kept.
    fn lifetime(&self, question: &Question, answer: &Message) -> Option<(Duration, Duration)> {
        let least = answer.answers.iter().map(|record| record.ttl).min();
        let (ttl, longest, stale) = match answer.metadata.response_code {
            _ if answer.metadata.truncation => return None,
            ResponseCode::NoError if has(answer, question.kind()) => (least?, LONGEST, self.stale),
            // A chain of aliases to something missing is missing as a whole.
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let missing = missing_ttl(&answer.authorities)?;
                (least.map_or(missing, |least| least.min(missing)), LONGEST_MISSING, Duration::ZERO)
            }
            _ => return None,
        };
        // RFC 2181 has a time to live of 0 used once, for the question it answers.
        (ttl > 0).then(|| (Duration::from_secs(ttl.into()).min(longest), stale))
    }
}

impl Entry {
    fn at(&self, now: Instant) -> Option<Held> {
        let age = now.saturating_duration_since(self.kept);
        if age >= self.holds + self.stale {
            return None;
        }
        // It was written by the same library.
        let mut answer = Message::from_vec(&self.answer).ok()?;
        if age < self.holds {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            set_ttl(&mut answer, |ttl| ttl.saturating_sub(age));
            return Some(Held::Fresh(answer));
        }
        set_ttl(&mut answer, |_| STALE_TTL);
        Some(Held::Stale { answer, ask: self.ask_again.is_none_or(|at| at <= now) })
    }

    fn size(&self, question: &Question) -> usize {
        // The list and the table have a copy of the question's handle each.
        self.answer.len() + size_of::<Self>() + 2 * question.size()
    }
}

/// Whether what was asked for is among the answers, not just aliases on the way to it.
fn has(answer: &Message, kind: RecordType) -> bool {
    kind == RecordType::ANY && !answer.answers.is_empty()
        || answer.answers.iter().any(|record| record.record_type() == kind)
}

/// RFC 2308, section 5.
fn missing_ttl(authorities: &[Record]) -> Option<u32> {
    authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}

fn set_ttl(answer: &mut Message, to: impl Fn(u32) -> u32) {
    let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
    sections.into_iter().flatten().for_each(|record| record.ttl = to(record.ttl));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{a, answer, missing, question};
    use super::*;

    const STALE: Duration = Duration::from_secs(600);

    fn cache() -> (Cache, Instant) {
        (Cache::new(1 << 20, STALE), Instant::now())
    }

    fn unresolved(host: &str) -> Arc<Unresolved> {
        Arc::new(Unresolved { host: host.into(), tried: Vec::new() })
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The times to live of what is held.
    fn ttls(held: &Held) -> Vec<u32> {
        let answer = match held {
            Held::Fresh(answer) | Held::Stale { answer, .. } => answer,
            Held::Failed(_) | Held::Nothing => return Vec::new(),
        };
        answer.all_sections().map(|record| record.ttl).collect()
    }

    #[test]
    fn an_answer_ages_turns_stale_and_goes() {
        let (mut cache, start) = cache();
        let asked = question("a.example");
        cache.keep(asked.clone(), answer(&asked, vec![a("a.example", 60), a("a.example", 90)]), start);
        let at = |cache: &mut Cache, after: u64| cache.look(&asked, start + seconds(after));
        assert!(matches!(at(&mut cache, 0), Held::Fresh(_)));
        assert_eq!(ttls(&at(&mut cache, 0)), [60, 60], "no record outlives the answer");
        assert_eq!(ttls(&at(&mut cache, 59)), [1, 1]);
        let stale = at(&mut cache, 60);
        assert!(matches!(stale, Held::Stale { ask: true, .. }), "{stale:?}");
        assert_eq!(ttls(&stale), [30, 30]);
        assert!(matches!(at(&mut cache, 659), Held::Stale { .. }));
        assert_eq!(at(&mut cache, 660), Held::Nothing);
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn upstreams_that_failed_are_left_alone_for_a_while() {
        let (mut cache, start) = cache();
        let asked = question("a.example");
        cache.keep(asked.clone(), answer(&asked, vec![a("a.example", 60)]), start);
        let failed = start + seconds(100);
        cache.failed(&asked, &unresolved("a.example"), failed);
        assert!(matches!(cache.look(&asked, failed + seconds(29)), Held::Stale { ask: false, .. }));
        assert!(matches!(cache.look(&asked, failed + seconds(30)), Held::Stale { ask: true, .. }));
        cache.failed(&question("b.example"), &unresolved("b.example"), failed);
        assert_eq!(cache.size().0, 1);
    }

    #[test]
    fn a_failure_without_a_stale_answer_is_kept_for_a_moment_and_not_beyond_an_answer() {
        let (mut cache, start) = cache();
        let (asked, why) = (question("a.example"), unresolved("a.example"));
        cache.failed(&asked, &why, start);
        assert_eq!(cache.look(&asked, start + Duration::from_millis(999)), Held::Failed(why.clone()));
        assert_eq!(cache.look(&asked, start + seconds(1)), Held::Nothing);
        cache.failed(&asked, &why, start);
        cache.keep(asked.clone(), answer(&asked, vec![a("a.example", 0)]), start);
        assert_eq!(cache.look(&asked, start), Held::Nothing, "it was answered, but not to be kept");
    }

    #[test]
    fn failures_are_bounded() {
        let (mut cache, start) = cache();
        for n in 0..2000 {
            let host = format!("n{n}.example");
            cache.failed(&question(&host), &unresolved(&host), start);
        }
        assert_eq!(cache.failures.len(), 1024);
        assert_eq!(cache.look(&question("n0.example"), start), Held::Nothing);
        assert!(matches!(cache.look(&question("n1999.example"), start), Held::Failed(_)));
    }

    #[test]
    fn what_is_missing_is_kept_as_long_as_its_zone_says_but_not_long_and_never_stale() {
        for (soa, minimum, holds) in [(600, 60, 60), (20, 3600, 20), (7200, 7200, 300)] {
            for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
                let (mut cache, start) = cache();
                let asked = question("no.example");
                cache.keep(asked.clone(), missing(&asked, code, Some((soa, minimum))), start);
                assert!(matches!(cache.look(&asked, start + seconds(holds - 1)), Held::Fresh(_)), "{code} {soa}");
                assert_eq!(cache.look(&asked, start + seconds(holds)), Held::Nothing, "{code} {soa}");
            }
        }
    }

    #[test]
    fn what_must_not_be_kept_replaces_what_was() {
        let asked = question("a.example");
        let mut cut = answer(&asked, vec![a("a.example", 60)]);
        cut.metadata.truncation = true;
        let not_kept = [
            cut,
            answer(&asked, vec![a("a.example", 0)]),
            missing(&asked, ResponseCode::NXDomain, None),
            missing(&asked, ResponseCode::ServFail, Some((60, 60))),
        ];
        for answered in not_kept {
            let (mut cache, start) = cache();
            cache.keep(asked.clone(), answer(&asked, vec![a("a.example", 60)]), start);
            cache.keep(asked.clone(), answered.clone(), start);
            assert_eq!(cache.look(&asked, start), Held::Nothing, "{answered}");
        }
    }

    #[test]
    fn an_endless_answer_holds_for_a_day() {
        let (mut cache, start) = cache();
        let asked = question("a.example");
        cache.keep(asked.clone(), answer(&asked, vec![a("a.example", u32::MAX)]), start);
        assert_eq!(ttls(&cache.look(&asked, start)), [24 * 3600]);
        assert!(matches!(cache.look(&asked, start + seconds(24 * 3600)), Held::Stale { .. }));
    }

    proptest! {
        /// Whatever is asked and answered in whatever order: the limit holds, the sum is right, nothing fresh is older than it says.
        #[test]
        fn the_cache_keeps_to_its_limit(steps in prop::collection::vec((0u8..40, 0u32..300, 0u64..200), 1..200)) {
            let mut cache = Cache::new(4000, STALE);
            let mut now = Instant::now();
            for (name, ttl, pause) in steps {
                now += seconds(pause);
                let asked = question(&format!("n{name}.example"));
                let held = cache.look(&asked, now);
                prop_assert!(ttls(&held).iter().all(|ttl| (1..=300).contains(ttl)), "{:?}", held);
                cache.keep(asked.clone(), answer(&asked, vec![a(&format!("n{name}.example"), ttl)]), now);
                let sum: usize = cache.entries.iter().map(|(question, entry)| entry.size(question)).sum();
                prop_assert_eq!(sum, cache.bytes);
                prop_assert!(sum <= 4000);
                let kept = matches!(cache.look(&asked, now), Held::Fresh(_));
                prop_assert_eq!(kept, ttl > 0);
            }
        }
    }
}
