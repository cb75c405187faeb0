//! Attempts: what a builder keeps and says of the builds it runs, so that none is lost, doubled or stuck.
//!
//! * [`Ledger`]: the attempts' task tokens on the cache disk. A builder that starts again answers for those of its former self.
//! * [`keep_alive`]: the heartbeats, sent through the plain client every 5 s. The answer is the acknowledgement and carries the
//!   cancel request. Cut off for too long, the attempt ends by itself, before the server gives the build to another cell.
//! * [`report`]: the attempt's end, through the plain client too. The SDK drops a completion once its own idea of the heartbeat
//!   timeout has passed, and it does not know of heartbeats that it did not send.

mod heartbeat;
mod ledger;
mod report;

pub use heartbeat::{HeartbeatSettings, Interrupt, Progress, keep_alive};
pub use ledger::{Entry, Ledger, LedgerError};
pub use report::{Outcome, ReportError, is_awaited, report};
