//! The attempt's sign of life, and the clock that ends it when nobody hears it.

use std::time::Duration;

use serde::Serialize;
use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{Client, RpcOptions};
use tokio::sync::watch;
use tokio::time::Instant;

use super::report::handle;

/// What the heartbeat's details say, at most 4 KB as JSON: where the attempt stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub operation: &'static str,
    pub steps_done: u32,
    pub steps_total: u32,
}

/// The times of the heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatSettings {
    /// Between two heartbeats that were acknowledged; the deadline of one too.
    pub interval: Duration,
    /// Silence after which the attempt ends itself; shorter than the server's heartbeat timeout.
    pub cut_off_after: Duration,
}

impl HeartbeatSettings {
    /// Between two tries of a heartbeat that was not acknowledged.
    fn retry(&self) -> Duration {
        self.interval * 2 / 5
    }

    /// The same for an attempt that the server gives up after `limit`. Control sets that limit and may have been given another one than
    /// this builder knows of: a sixth of it is left in any case for the solve to be gone.
    pub fn within(self, limit: Option<Duration>) -> Self {
        let latest = limit.map_or(self.cut_off_after, |limit| limit * 5 / 6);
        Self { cut_off_after: self.cut_off_after.min(latest), ..self }
    }
}

/// Why an attempt must end before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The caller asked for it.
    Cancelled,
    /// The server no longer knows the attempt: the build has gone on without it.
    Disowned,
    /// No heartbeat was acknowledged for [`HeartbeatSettings::cut_off_after`].
    CutOff,
}

/// Heartbeats until the attempt has to end. Dropping the future ends the heartbeats.
pub async fn keep_alive(
    client: &Client,
    task_token: &[u8],
    progress: watch::Receiver<Progress>,
    settings: HeartbeatSettings,
) -> Interrupt {
    let handle = handle(client, task_token);
    let options = RpcOptions::builder().timeout(settings.interval).build();
    // The pick-up itself was an acknowledgement. Monotonic: a clock that is set must not end an attempt.
    let mut acknowledged = Instant::now();
    let mut pause = settings.interval;
    loop {
        let beat = async {
            tokio::time::sleep(pause).await;
            let details = progress.borrow().clone();
            tokio::time::timeout(settings.interval, handle.heartbeat(Some(details), options.clone())).await
        };
        let Ok(answer) = tokio::time::timeout_at(acknowledged + settings.cut_off_after, beat).await else {
            return Interrupt::CutOff;
        };
        match answer {
            Ok(Ok(response)) if response.cancel_requested => return Interrupt::Cancelled,
            Ok(Ok(_)) => {
                acknowledged = Instant::now();
                pause = settings.interval;
            }
            Ok(Err(AsyncActivityError::NotFound(_))) => return Interrupt::Disowned,
            Ok(Err(_)) | Err(_) => pause = settings.retry(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_ends_itself_before_the_server_gives_it_up() {
        let settings = HeartbeatSettings { interval: Duration::from_secs(5), cut_off_after: Duration::from_secs(75) };
        let cut_off = |limit| settings.within(limit).cut_off_after.as_secs();
        assert_eq!(cut_off(None), 75);
        assert_eq!(cut_off(Some(Duration::from_secs(90))), 75);
        assert_eq!(cut_off(Some(Duration::from_secs(60))), 50);
        assert_eq!(cut_off(Some(Duration::from_secs(600))), 75);
    }
}
