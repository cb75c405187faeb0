//! The cell's slots as its builder sees them: how many are busy, told to whoever reports hints.

use std::sync::Arc;

use tokio::sync::watch;

/// How many slots there are and are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsView {
    pub slots: u32,
    pub busy: u32,
}

/// Counts running attempts. The limit itself is the worker's: Temporal hands out no more tasks than it has slots.
#[derive(Debug, Clone)]
pub struct Slots {
    view: Arc<watch::Sender<SlotsView>>,
}

/// A slot that is taken until this is dropped.
#[derive(Debug)]
pub struct Slot {
    view: Arc<watch::Sender<SlotsView>>,
}

impl Slots {
    pub fn new(slots: u32) -> Self {
        Self { view: Arc::new(watch::Sender::new(SlotsView { slots, busy: 0 })) }
    }

    /// Changes of the view, for the hints.
    pub fn watch(&self) -> watch::Receiver<SlotsView> {
        self.view.subscribe()
    }

    pub(super) fn take(&self) -> Slot {
        self.view.send_modify(|view| view.busy += 1);
        Slot { view: self.view.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.view.send_modify(|view| view.busy -= 1);
    }
}
