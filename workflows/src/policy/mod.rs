//! Pure policies: values in, a decision and its reasons out. Property-tested without any I/O.

mod arguments;
mod faults;
mod intake;
mod lifecycle;
mod placement;
mod repositories;
mod ring;

pub use arguments::{ReservedArgument, check_arguments};
pub use faults::Faults;
pub use intake::{Intake, Refusal};
pub use lifecycle::{Action, Birth, Checked, HostTrouble, Life, Order, Watched};
pub use placement::{Candidate, Choice, Load, PoolMap, STALE_MS, Wanted, Warm, choose};
pub use repositories::{NotAllowed, REPOSITORY_PATTERNS, RegistryPolicy, Sent, is_loopback};
pub use ring::{Ring, start_of};
