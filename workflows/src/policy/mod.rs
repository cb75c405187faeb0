//! Pure policies: values in, a decision and its reasons out. Property-tested without any I/O.

mod placement;

pub use placement::{Choice, HOME_CELLS, HintView, STALE_MS, choose, ring_order};
