//! Branches of workflows that the release before this one does not know.
//!
//! A release first only *understands* a branch: it follows it where a history has its mark, and puts no mark itself. The next release
//! *takes* it. So each of two releases that follow each other goes on with what the other one has begun, in either order
//! (`docs/decisions/2026-11-21-how-a-release-goes-out.md`).
//!
//! ```text
//! const NEXT: Patch = Patch::understood("next");   // in the release after this one: Patch::taken("next")
//! if NEXT.leads(ctx) { … } else { … }
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use temporalio_sdk::WorkflowContext;

/// A branch, and whether new runs take it.
pub struct Patch {
    name: &'static str,
    taken: AtomicBool,
}

/// A Cell whose builder does not answer has its wire looked at before it is restarted. The first release takes it: there is none before
/// it that could have to go on with what it has begun.
pub static REPLUG: Patch = Patch::taken("replug");

/// A Cell whose builder was started anew tells builds that only the former one took. Taken by the first release too.
pub static FORGOTTEN: Patch = Patch::taken("forgotten");

/// A Cell whose builder was started anew checks it again when a check was taken and not answered. Taken by the first release too.
pub static UNANSWERED: Patch = Patch::taken("unanswered");

/// A Cell or a Pool has the signals that it got written to the audit log. Taken by the first release too.
pub static AUDITED: Patch = Patch::taken("audited");

/// Changes nothing but a build's history: by it the tests rehearse how control goes out and back under running builds.
pub static REHEARSAL: Patch = Patch::understood("rehearsal");

impl Patch {
    pub const fn understood(name: &'static str) -> Self {
        Self { name, taken: AtomicBool::new(false) }
    }

    pub const fn taken(name: &'static str) -> Self {
        Self { name, taken: AtomicBool::new(true) }
    }

    /// From now on this process takes it, as one of the next release would.
    pub fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// Whether a run goes this way: where it has been here before, as it went then.
    pub fn leads<W>(&self, ctx: &WorkflowContext<W>) -> bool {
        // Asked while nothing is replayed, the SDK would put the mark.
        (self.taken.load(Ordering::Relaxed) || ctx.is_replaying()) && ctx.patched(self.name)
    }
}
