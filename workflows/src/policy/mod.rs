//! Pure policies: values in, a decision and its reasons out. Property-tested without any I/O.

mod intake;
mod lifecycle;
mod placement;

pub use intake::{Intake, Refusal};
pub use lifecycle::{Action, Birth, Checked, HostTrouble, Life, Order, Watched};
pub use placement::{Choice, HOME_CELLS, HintView, STALE_MS, choose, ring_order};
