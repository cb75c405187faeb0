//! Where an attempt stands: what its heartbeats say, and since when nothing has moved.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::attempts::Progress;

/// Written by the operations, read by heartbeats and by the stuck detector.
#[derive(Debug)]
pub struct Meter {
    progress: watch::Sender<Progress>,
    moved: watch::Sender<Instant>,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    pub fn new() -> Self {
        Self { progress: watch::Sender::new(Progress::default()), moved: watch::Sender::new(Instant::now()) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
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
