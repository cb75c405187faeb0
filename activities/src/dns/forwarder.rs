//! One answer to one question: from the cache, from an upstream, or stale because no upstream has one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use tokio::sync::watch;

use super::cache::{Cache, Held};
use super::metrics::{self, Answer};
use super::question::Question;
use super::unresolved::Unresolved;
use super::upstreams::Upstreams;

/// What the cache may take, bytes: some tens of thousands of names.
const CACHE_LIMIT: usize = 16 << 20;
/// Where there is a stale answer, a client waits for a new one only so long (the client response timer of RFC 8767, section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// How many failures are remembered.
const REMEMBERED: usize = 64;

/// How long the upstreams say nothing before that is worth a word: on one name they often do.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// What a question comes to.
pub type Outcome = Result<Arc<Message>, Arc<Unresolved>>;

/// What answers age by.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Shared by all queries.
pub struct Forwarder {
    cache: Mutex<Cache>,
    upstreams: Upstreams,
    /// Questions that are being asked: whoever has the same one waits for the same answer.
    pending: Mutex<HashMap<Question, watch::Receiver<Option<Outcome>>>>,
    unresolved: Mutex<VecDeque<(Instant, Arc<Unresolved>)>>,
    silence: Mutex<Silence>,
    now: Clock,
}

impl Forwarder {
    /// `stale` is how long answers are of use after their time to live; `now` is the clock that they age by.
    pub fn new(upstreams: Upstreams, stale: Duration, now: Clock) -> Arc<Self> {
        Arc::new(Self {
            cache: Mutex::new(Cache::new(CACHE_LIMIT, stale)),
            upstreams,
            pending: Mutex::default(),
            unresolved: Mutex::default(),
            silence: Mutex::default(),
            now,
        })
    }

    /// What there is to say without asking anybody; `None` when the upstreams have to be asked.
    pub fn known(&self, question: &Question) -> Option<Outcome> {
        self.look(question).ok()
    }

    /// # Errors
    /// When no upstream has an answer and the cache has none either.
    pub async fn answer(self: &Arc<Self>, question: &Question) -> Outcome {
        let (answer, from) = match self.look(question) {
            Ok(known) => return known,
            Err(Some(stale)) => self.fresh_or(stale, question).await,
            Err(None) => match self.ask(question).await {
                Ok(answer) => (Ok(answer), Answer::Upstream),
                Err(why) => {
                    self.remember(&why);
                    (Err(why), Answer::Failed)
                }
            },
        };
        metrics::answered(from);
        answer
    }

    /// The cache's word; else the stale answer, if there is one, that is good enough when the upstreams have none.
    fn look(&self, question: &Question) -> Result<Outcome, Option<Arc<Message>>> {
        let (known, from) = match lock(&self.cache).look(question, (self.now)()) {
            Held::Fresh(answer) => (Ok(Arc::new(answer)), Answer::Cache),
            Held::Stale { answer, ask: false } => (Ok(Arc::new(answer)), Answer::Stale),
            Held::Stale { answer, ask: true } => return Err(Some(Arc::new(answer))),
            Held::Failed(why) => {
                self.remember(&why);
                (Err(why), Answer::Failed)
            }
            Held::Nothing => return Err(None),
        };
        metrics::answered(from);
        Ok(known)
    }

    /// What a build that fails now may have failed for: the questions without an answer since then, oldest first.
    pub fn unresolved_since(&self, since: Instant) -> Vec<Arc<Unresolved>> {
        let all = lock(&self.unresolved);
        all.iter().filter(|(at, _)| *at >= since).map(|(_, unresolved)| unresolved.clone()).collect()
    }

    /// Late upstreams are waited for in the background: their answer is for the next client.
    async fn fresh_or(self: &Arc<Self>, stale: Arc<Message>, question: &Question) -> (Outcome, Answer) {
        match tokio::time::timeout(STALE_AFTER, self.ask(question)).await {
            Ok(Ok(fresh)) => (Ok(fresh), Answer::Upstream),
            Ok(Err(_)) | Err(_) => (Ok(stale), Answer::Stale),
        }
    }

    /// Asks the upstreams, or waits with whoever does.
    async fn ask(self: &Arc<Self>, question: &Question) -> Outcome {
        let mut asked = lock(&self.pending).entry(question.clone()).or_insert_with(|| self.begin(question)).clone();
        let outcome = asked.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        // Nobody answers who was stopped in the middle: the process ends.
        let gone = || Arc::new(Unresolved { host: question.host(), tried: Vec::new() });
        outcome.ok().flatten().unwrap_or_else(|| Err(gone()))
    }

    /// Goes on when its clients have gone: the answer is kept for the next one. It ends by the upstreams' own patience.
    fn begin(self: &Arc<Self>, question: &Question) -> watch::Receiver<Option<Outcome>> {
        let (told, asked) = watch::channel(None);
        let (own, question) = (self.clone(), question.clone());
        tokio::spawn(async move {
            let place = Place { forwarder: &own, question: &question };
            let outcome = own.look_up(&question).await;
            // First out of the table: whoever comes now finds the cache.
            drop(place);
            told.send_replace(Some(outcome));
        });
        asked
    }

    async fn look_up(&self, question: &Question) -> Outcome {
        match self.upstreams.ask(question).await {
            Ok(answer) => {
                let mut cache = lock(&self.cache);
                cache.keep(question.clone(), answer.clone(), (self.now)());
                metrics::cached(cache.size());
                drop(cache);
                self.heard(None);
                Ok(Arc::new(answer))
            }
            Err(tried) => {
                let unresolved = Arc::new(Unresolved { host: question.host(), tried });
                lock(&self.cache).failed(question, &unresolved, (self.now)());
                self.heard(Some(&unresolved));
                Err(unresolved)
            }
        }
    }

    fn remember(&self, unresolved: &Arc<Unresolved>) {
        let mut all = lock(&self.unresolved);
        // Asked again and again, one name shall not drive out the others.
        all.retain(|(_, other)| other.host != unresolved.host);
        if all.len() == REMEMBERED {
            all.pop_front();
        }
        all.push_back((Instant::now(), unresolved.clone()));
    }

    /// Says once that the upstreams have fallen silent, and once that they are back: steps could fill the log otherwise.
    fn heard(&self, unresolved: Option<&Unresolved>) {
        let anything = unresolved.is_none_or(|unresolved| !unresolved.is_silence());
        let news = lock(&self.silence).heard(anything, (self.now)());
        match news {
            Some(News::Silent) => {
                // Which name it was says nothing.
                let servers = unresolved.map(|unresolved| unresolved.servers().to_string()).unwrap_or_default();
                tracing::warn!("DNS: no upstream answers, names come from the cache alone{servers}");
            }
            Some(News::Back) => tracing::info!("DNS: an upstream answers again"),
            None => {}
        }
    }
}

/// Whether the upstreams say anything at all, to whatever question.
#[derive(Debug, Default)]
struct Silence {
    /// The first question since their last word that got none.
    since: Option<Instant>,
    /// It was told that they are silent.
    told: bool,
}

/// What is worth a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Silent,
    Back,
}

impl Silence {
    /// A question has been asked, and whether anybody said anything.
    fn heard(&mut self, anything: bool, now: Instant) -> Option<News> {
        if anything {
            self.since = None;
            return std::mem::take(&mut self.told).then_some(News::Back);
        }
        let since = *self.since.get_or_insert(now);
        let news = !self.told && now.saturating_duration_since(since) >= SILENT_AFTER;
        self.told |= news;
        news.then_some(News::Silent)
    }
}

/// A question's place among those that are being asked.
struct Place<'a> {
    forwarder: &'a Forwarder,
    question: &'a Question,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.forwarder.pending).remove(self.question);
    }
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_called_silent_when_they_say_nothing_to_any_question_for_a_while() {
        let (start, mut silence) = (Instant::now(), Silence::default());
        let mut heard = |anything, second| silence.heard(anything, start + Duration::from_secs(second));
        for second in 0..60 {
            assert_eq!(heard(second % 9 == 0, second), None, "one name in a zone that is away: {second}");
        }
        assert_eq!(heard(true, 60), None);
        assert_eq!(heard(false, 100), None, "nobody asked meanwhile");
        assert_eq!(heard(false, 109), None);
        assert_eq!(heard(false, 110), Some(News::Silent));
        assert_eq!(heard(false, 300), None, "that is known");
        assert_eq!(heard(true, 301), Some(News::Back));
        assert_eq!(heard(true, 302), None);
        assert_eq!(heard(false, 303), None);
    }
}
