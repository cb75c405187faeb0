//! Named points on a build's way at which a test may end the process, as `kill -9` would, to see what the next one makes of it.
//!
//! | point | process | what stands then |
//! |---|---|---|
//! | `after_admit` | control | the build's row; no attempt |
//! | `after_solve` | builder | the steps in the daemon's cache; the push has begun |
//! | `after_push` | builder | the image by digest; the attempt's end is not told |
//! | `after_report` | builder | the attempt's end is told; the ledger does not know |
//! | `after_outcome` | control | the outcome; no tag |
//! | `before_tag` | control | the tag's claim |
//! | `after_tag` | control | the tag; the outcome does not say so |
//!
//! The environment variable `FAILPOINTS` names a directory. Whoever reaches a point and can remove the file of that name there is
//! ended: each file ends one process, once. By a file `rehearsal` the control that starts next is told to be of the next release
//! ([`workflows::patches::REHEARSAL`]). Without the variable, which is how Kiln runs everywhere but in its tests, nothing is looked at.

use std::path::PathBuf;
use std::sync::LazyLock;

use nix::sys::signal::{Signal, raise};

static ARMED: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("FAILPOINTS").map(PathBuf::from));

/// Ends the process here if the point is armed.
pub fn reach(point: &str) {
    if taken(point) {
        let _ = raise(Signal::SIGKILL);
    }
}

/// Whether a test has ordered this of the process that asks first.
pub fn taken(order: &str) -> bool {
    ARMED.as_ref().is_some_and(|directory| std::fs::remove_file(directory.join(order)).is_ok())
}
