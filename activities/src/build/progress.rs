//! Where an attempt stands: what its heartbeats say, and since when nothing has moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::attempts::Progress;

/// Written by the operations, read by heartbeats and by the stuck detector.
#[derive(Debug)]
pub struct Meter {
    progress: watch::Sender<Progress>,
    moved: watch::Sender<Instant>,
    active: Arc<AtomicU32>,
}

/// An attempt seen from beside it: when something last moved, and how many of its steps run now.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    moved: watch::Receiver<Instant>,
    active: Arc<AtomicU32>,
}

impl Sight {
    pub(super) fn moved(&self) -> Instant {
        *self.moved.borrow()
    }

    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    pub fn new() -> Self {
        Self {
            progress: watch::Sender::new(Progress::default()),
            moved: watch::Sender::new(Instant::now()),
            active: Arc::default(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn sight(&self) -> Sight {
        Sight { moved: self.moved.subscribe(), active: self.active.clone() }
    }

    /// How many steps run now.
    pub(super) fn active(&self, steps: u32) {
        self.active.store(steps, Ordering::Relaxed);
    }

    pub(super) fn operation(&self) -> &'static str {
        self.progress.borrow().operation
    }

    /// Another operation has begun.
    pub(super) fn begin(&self, operation: &'static str) {
        self.progress.send_modify(|progress| progress.operation = operation);
        self.touch();
    }

    pub(super) fn steps(&self, done: u32, total: u32) {
        self.progress.send_modify(|progress| (progress.steps_done, progress.steps_total) = (done, total));
    }

    /// Something has moved.
    pub(super) fn touch(&self) {
        self.moved.send_replace(Instant::now());
    }

    /// Resolves when nothing has moved for `patience`.
    pub(super) async fn stuck(&self, patience: Duration) {
        loop {
            let until = *self.moved.borrow() + patience;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}
