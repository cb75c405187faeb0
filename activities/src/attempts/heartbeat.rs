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
#[derive(Debug, Clone, Copy)]
pub struct HeartbeatSettings {
    /// Between two heartbeats that were acknowledged.
    pub interval: Duration,
    /// The deadline of one.
    pub deadline: Duration,
    /// Between two tries of one that was not.
    pub retry: Duration,
    /// Silence after which the attempt ends itself; shorter than the server's heartbeat timeout.
    pub cut_off_after: Duration,
}

impl HeartbeatSettings {
    pub fn new(cut_off_after: Duration) -> Self {
        Self {
            interval: Duration::from_secs(5),
            deadline: Duration::from_secs(5),
            retry: Duration::from_secs(2),
            cut_off_after,
        }
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
    let options = RpcOptions::builder().timeout(settings.deadline).build();
    // The pick-up itself was an acknowledgement. Monotonic: a clock that is set must not end an attempt.
    let mut acknowledged = Instant::now();
    let mut pause = settings.interval;
    loop {
        tokio::time::sleep(pause).await;
        let details = progress.borrow().clone();
        let answer = tokio::time::timeout(settings.deadline, handle.heartbeat(Some(details), options.clone())).await;
        match answer {
            Ok(Ok(response)) if response.cancel_requested => return Interrupt::Cancelled,
            Ok(Ok(_)) => {
                acknowledged = Instant::now();
                pause = settings.interval;
            }
            Ok(Err(AsyncActivityError::NotFound(_))) => return Interrupt::Disowned,
            Ok(Err(_)) | Err(_) if acknowledged.elapsed() >= settings.cut_off_after => return Interrupt::CutOff,
            Ok(Err(_)) | Err(_) => pause = settings.retry,
        }
    }
}
