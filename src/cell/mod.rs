//! The cell as a pair of namespaces: what holds `buildkitd` and `kiln builder` together, and what makes both end.
//!
//! ```text
//! supervisor (kiln dev; none for cells that outlive their host's agent)
//!     │  holds the writing end of a pipe and never writes
//!     ▼
//! kiln __guard --namespaces ── started by kiln host, found by it through --claim; unshares PID and mount namespaces; ends its child
//!     │                        when the supervisor's pipe closes
//!     │  a pipe of its own, held the same way
//!     ▼
//! kiln __cell-init  ── PID 1 of the cell: mounts, network, buildkitd, builder; ends when the guard's pipe closes
//!     ├── buildkitd ── runc steps      in a network namespace of their own; its end is the cell's end
//!     └── kiln builder                 restarted with backoff
//! ```
//!
//! Ends by pipe and not by parentage: the parent-death signal fires when the spawning *thread* ends, and the agent that started a
//! guard may be replaced under it. Whoever of the three is killed, the kernel closes a pipe or ends the PID
//! namespace, and with it go all processes, mounts and virtual interfaces. Firewall rules belong to the host; the next
//! start of this cell or of any other removes them.
//!
//! The module knows nothing about builds or Temporal, runs without an async runtime and must be entered (by [`early`]) before
//! any thread exists: it blocks signals for the whole process and unshares namespaces.

mod buildkitd;
mod guard;
mod init;
mod leftovers;
mod network;
mod plan;
mod steps;
mod watch;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

pub use guard::{GuardOptions, command as guarded};
pub use init::ROLE as INIT_ROLE;
pub use network::{Asked as NetworkAsked, Claim, GuestNetwork, METRICS, Network};
pub use plan::{Cache, Limits, Logs, NETWORK_FILE, Plan, StepShare, Tools};

use crate::settings::Settings;
use crate::terminal;

/// A log larger than this is set aside when its process is started, bytes.
const LOG_CAP: u64 = 16 << 20;

/// Opens a process's log for writing at its end.
///
/// # Errors
/// When it cannot be opened.
pub fn open_log(log: &Path) -> std::io::Result<File> {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_CAP) {
        let _ = fs::rename(log, log.with_extension("log.1"));
    }
    File::options().create(true).append(true).open(log)
}

/// The settings that a command line of this program would have; `None` where it would be refused.
pub type SettingsOf = fn(&[String]) -> Option<Settings>;

/// Runs the hidden subcommands that must not share a process with threads, and says how they ended; `None` for all others.
///
/// `main` calls it first, before the command line is parsed and before any runtime starts.
pub fn early(settings_of: SettingsOf) -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let program = args.next()?;
    // By these names buildkitd runs this program for each step.
    if let Some(code) = kiln_init::call_by_name(&program, std::env::args_os().skip(1)) {
        return Some(code);
    }
    let role = args.next()?;
    let ended = if role == OsStr::new(guard::ROLE) {
        guard::run(args.collect())
    } else if role == OsStr::new(init::ROLE) {
        init::run(args.collect(), settings_of)
    } else if role == OsStr::new(network::MACHINE_ROLE) {
        network::run_machine(args.collect(), settings_of)
    } else {
        return None;
    };
    Some(ended.unwrap_or_else(|error| {
        terminal::note(format_args!("kiln {}: {error:#}", role.to_string_lossy()));
        ExitCode::from(70)
    }))
}
