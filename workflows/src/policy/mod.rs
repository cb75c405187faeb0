//! Pure policies: values in, a decision and its reasons out. Property-tested without any I/O.

mod placement;
mod ring;

pub use placement::{Candidate, Choice, Load, PoolMap, STALE_MS, Wanted, Warm, choose};
pub use ring::{Ring, start_of};
