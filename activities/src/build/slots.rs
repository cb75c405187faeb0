//! The cell's slots as its builder sees them: which attempts hold one, whether another may start, and how to make them let go.
//!
//! The limit itself is the worker's: Temporal hands out no more tasks than it has slots. Whether the intake is open is kept on the
//! cache disk, so that a builder that is restarted in the middle of a drain takes no builds either.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use workflows::contract::{AttemptId, CacheStats};
use workflows::policy::{Intake, Refusal};

use super::progress::{Meter, Sight};

/// How many slots there are and are taken, and whether the cell takes builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsView {
    pub slots: u32,
    pub busy: u32,
    pub open: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("whether the cell takes builds cannot be kept in {}", path.display())]
pub struct IntakeError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// The intake as it is on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    open: bool,
    ordered_ms: i64,
}

#[derive(Debug)]
struct State {
    intake: Intake,
    holders: BTreeMap<String, Holder>,
    /// When an attempt that has ended last moved.
    moved: Option<Instant>,
    /// Steps of Dockerfiles, and how many of them came from the cache.
    steps: (u64, u64),
}

/// An attempt that holds a slot.
#[derive(Debug)]
struct Holder {
    evict: watch::Sender<Option<String>>,
    sight: Option<Sight>,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Slots {
    state: Arc<Mutex<State>>,
    view: Arc<watch::Sender<SlotsView>>,
    file: Option<Arc<PathBuf>>,
}

/// A slot that is taken until this is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    reference: String,
    evicted: watch::Receiver<Option<String>>,
}

impl Slots {
    /// Open; kept nowhere.
    pub fn new(slots: u32) -> Self {
        Self::with(Intake::new(slots, true, 0), None)
    }

    /// As the builder's former self left them below `cell_dir`; open at first.
    pub fn restore(slots: u32, cell_dir: &Path) -> Self {
        let file = cell_dir.join("intake.json");
        let kept = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let kept = kept.unwrap_or(Kept { open: true, ordered_ms: 0 });
        Self::with(Intake::new(slots, kept.open, kept.ordered_ms), Some(Arc::new(file)))
    }

    fn with(intake: Intake, file: Option<Arc<PathBuf>>) -> Self {
        let view = SlotsView { slots: intake.slots(), busy: 0, open: intake.is_open() };
        let state = State { intake, holders: BTreeMap::new(), moved: None, steps: (0, 0) };
        Self { state: Arc::new(Mutex::new(state)), view: Arc::new(watch::Sender::new(view)), file }
    }

    /// Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of the view, for the hints.
    pub fn watch(&self) -> watch::Receiver<SlotsView> {
        self.view.subscribe()
    }

    fn changed(&self, state: &State) {
        let view = SlotsView { slots: state.intake.slots(), busy: state.intake.busy(), open: state.intake.is_open() };
        self.view.send_if_modified(|before| std::mem::replace(before, view) != view);
    }

    /// # Errors
    /// When the attempt must not start here.
    pub(super) fn take(&self, attempt: &AttemptId) -> Result<Slot, Refusal> {
        let mut state = self.lock();
        state.intake.take(attempt)?;
        let (evict, evicted) = watch::channel(None);
        let reference = attempt.buildkit_ref();
        state.holders.insert(reference.clone(), Holder { evict, sight: None });
        self.changed(&state);
        Ok(Slot { slots: self.clone(), reference, evicted })
    }

    /// Opens or closes the intake as ordered at `at_ms`; an order older than the last changes nothing.
    ///
    /// # Errors
    /// When it cannot be kept, say on a full disk. It is closed then if that was ordered, for as long as this builder runs; it is not
    /// opened.
    pub fn order(&self, open: bool, at_ms: i64) -> Result<(), IntakeError> {
        let mut state = self.lock();
        let before = state.intake.clone();
        if !state.intake.order(open, at_ms) {
            return Ok(());
        }
        let kept = self.keep(&Kept { open, ordered_ms: at_ms });
        if kept.is_err() && open {
            state.intake = before;
        }
        self.changed(&state);
        kept
    }

    fn keep(&self, kept: &Kept) -> Result<(), IntakeError> {
        let Some(file) = &self.file else { return Ok(()) };
        keep(file, kept).map_err(|source| IntakeError { path: file.to_path_buf(), source })
    }

    /// The attempts that hold a slot.
    pub fn running(&self) -> Vec<AttemptId> {
        self.lock().intake.running().cloned().collect()
    }

    pub fn is_open(&self) -> bool {
        self.lock().intake.is_open()
    }

    /// When the order was given that the intake obeys, milliseconds since 1970.
    pub fn ordered_ms(&self) -> i64 {
        self.lock().intake.ordered_ms()
    }

    /// Makes every attempt that runs now let go, so that its build goes elsewhere.
    pub fn evict(&self, reason: &str) {
        for holder in self.lock().holders.values() {
            holder.evict.send_replace(Some(reason.to_owned()));
        }
    }

    /// When an attempt last moved, if any has.
    pub fn moved(&self) -> Option<Instant> {
        let state = self.lock();
        let sights = state.holders.values().filter_map(|holder| holder.sight.as_ref());
        sights.map(Sight::moved).chain(state.moved).max()
    }

    pub(super) fn count(&self, cache: &CacheStats) {
        let mut state = self.lock();
        state.steps.0 += u64::from(cache.total_steps);
        state.steps.1 += u64::from(cache.cached_steps);
    }

    /// Steps of Dockerfiles since the start, and how many of them came from the cache.
    pub fn steps(&self) -> (u64, u64) {
        self.lock().steps
    }

    /// How many steps of all attempts run now.
    pub fn active_steps(&self) -> u32 {
        let state = self.lock();
        state.holders.values().filter_map(|holder| holder.sight.as_ref()).map(Sight::active).sum()
    }
}

fn keep(file: &Path, kept: &Kept) -> io::Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(kept)?)?;
    std::fs::rename(temporary, file)
}

impl Slot {
    /// Lets others see how the attempt goes.
    pub(super) fn follow(&self, meter: &Meter) {
        if let Some(holder) = self.slots.lock().holders.get_mut(&self.reference) {
            holder.sight = Some(meter.sight());
        }
    }

    /// Resolves with the reason when the attempt has to let go.
    pub(super) async fn evicted(&mut self) -> String {
        let told = self.evicted.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match told {
            Ok(reason) => reason.unwrap_or_default(),
            // The sender lives as long as the slot is held.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.intake.leave(&self.reference);
        let holder = state.holders.remove(&self.reference);
        let moved = holder.and_then(|holder| holder.sight).map(|sight| sight.moved());
        state.moved = state.moved.max(moved);
        self.slots.changed(&state);
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
    fn a_restarted_builder_finds_the_intake_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::restore(2, dir.path());
        assert!(slots.is_open());
        slots.order(false, 5).unwrap();
        let again = Slots::restore(2, dir.path());
        assert!(!again.is_open());
        again.order(true, 4).unwrap();
        assert!(!again.is_open(), "an order from before the closing");
        again.order(true, 6).unwrap();
        assert!(Slots::restore(2, dir.path()).is_open());
    }

    #[test]
    fn an_order_that_cannot_be_kept_is_not_acknowledged_and_obeyed_only_to_close() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::restore(2, &dir.path().join("gone"));
        assert!(slots.order(false, 5).is_err());
        assert!(!slots.is_open() && !slots.watch().borrow().open);
        assert!(slots.order(false, 5).is_err(), "the same once more");
        assert!(slots.order(true, 6).is_err());
        assert!(!slots.is_open(), "a builder that was started anew would be closed");
        assert_eq!(slots.ordered_ms(), 5);
    }

    #[tokio::test]
    async fn who_holds_a_slot_is_told_to_let_go() {
        let slots = Slots::new(1);
        let mut slot = slots.take(&attempt(1)).unwrap();
        assert_eq!(slots.take(&attempt(2)).unwrap_err(), Refusal::Full);
        slots.evict("disk");
        assert_eq!(slot.evicted().await, "disk");
        drop(slot);
        assert_eq!(*slots.watch().borrow(), SlotsView { slots: 1, busy: 0, open: true });
        let _next = slots.take(&attempt(2)).unwrap();
        assert_eq!(slots.running(), [attempt(2)]);
    }
}
