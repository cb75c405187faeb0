//! Which cells a host has: those it keeps, and the clones that are being made. A clone takes its name and its room before anything of it
//! is there; both are looked at and taken under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use workflows::contract::{CellId, CloneOrder};

use super::{HostError, Keeper};

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Cells {
    inner: Arc<RwLock<Inner>>,
    /// The most there may be.
    most: usize,
}

struct Inner {
    kept: BTreeMap<CellId, Keeper>,
    /// Of each clone the order that makes it, which may be under way more than once: an attempt that took too long goes on beside the next.
    under_way: BTreeMap<CellId, (Maker, usize)>,
}

/// The cell that is copied, and its operation.
type Maker = (CellId, String);

/// A clone's name and room, taken until this is dropped.
pub(super) struct Place {
    cells: Cells,
    clone: CellId,
}

impl Cells {
    pub fn new(kept: BTreeMap<CellId, Keeper>, most: usize) -> Self {
        Self { inner: Arc::new(RwLock::new(Inner { kept, under_way: BTreeMap::new() })), most }
    }

    pub fn all(&self) -> BTreeMap<CellId, Keeper> {
        self.read().kept.clone()
    }

    pub fn get(&self, cell: &CellId) -> Option<Keeper> {
        self.read().kept.get(cell).cloned()
    }

    /// Takes a clone's place for its order, which may have it already.
    ///
    /// # Errors
    /// Another order makes a clone of this name, or there is no room for one more.
    pub fn take_place(&self, asked: &CloneOrder) -> Result<Place, HostError> {
        let (maker, clone) = ((asked.order.cell.clone(), asked.order.operation.clone()), asked.clone.clone());
        let mut inner = self.write();
        let is_new = !inner.kept.contains_key(&clone) && !inner.under_way.contains_key(&clone);
        if is_new && inner.taken() >= self.most {
            return Err(HostError::Full { max: self.most });
        }
        let (by, attempts) = inner.under_way.entry(clone.clone()).or_insert_with(|| (maker.clone(), 0));
        if *by != maker {
            return Err(HostError::Taken { cell: clone });
        }
        *attempts += 1;
        Ok(Place { cells: self.clone(), clone })
    }

    /// Keeps a cell from now on; one that is kept already is left as it is. Who keeps it.
    pub fn keep(&self, cell: &CellId, keeper: impl FnOnce() -> Keeper) -> Keeper {
        self.write().kept.entry(cell.clone()).or_insert_with(keeper).clone()
    }

    /// Keeps a cell no more, unless another keeper has its name by now.
    pub fn forget(&self, cell: &CellId, keeper: &Keeper) {
        let mut inner = self.write();
        if inner.kept.get(cell).is_some_and(|kept| kept.is(keeper)) {
            inner.kept.remove(cell);
        }
    }

    /// Nothing panics while it holds the lock.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn taken(&self) -> usize {
        self.kept.len() + self.under_way.keys().filter(|clone| !self.kept.contains_key(*clone)).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.cells.write();
        if let Some((_, attempts)) = inner.under_way.get_mut(&self.clone) {
            *attempts -= 1;
            if *attempts == 0 {
                inner.under_way.remove(&self.clone);
            }
        }
    }
}
