//! How a role is asked to stop: the first SIGINT or SIGTERM asks, the second one ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// Listens for signals from now on. Call it once, inside the runtime.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn stop_on_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked.is_cancelled() {
                tracing::warn!("second signal: ending at once");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("asked to stop; a second signal ends at once");
            asked.cancel();
        }
    });
    Ok(stop)
}
