//! Heartbeats and ends of the activities that last, by task token through the plain client, as [`crate::attempts`] has them and for
//! the same reasons.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{ActivityIdentifier, AsyncActivityHandle, Client, RpcOptions};
use tokio::sync::watch;
use tokio::time::Instant;
use workflows::activities::Pulse;

use crate::failure::typed_failure;

/// The deadline of one report, and between two tries.
const DEADLINE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// The server has given the activity up by then.
const GIVE_UP: Duration = Duration::from_secs(30);

pub fn handle(client: &Client, token: &[u8]) -> AsyncActivityHandle<Client> {
    AsyncActivityHandle::new(client.clone(), ActivityIdentifier::from_task_token(token.to_vec().into()))
}

/// Why an activity has to end that the server no longer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    Cancelled,
    /// The server does not know it any more.
    Disowned,
}

/// Heartbeats until the activity is not wanted any more; `heard` is when the server last answered. A server that is away is tried
/// again and again: its own timer decides.
pub async fn beat(handle: &AsyncActivityHandle<Client>, every: Duration, heard: &watch::Sender<Instant>) -> Unwanted {
    let deadline = every.max(Duration::from_millis(500));
    let options = RpcOptions::builder().timeout(deadline).build();
    loop {
        let answer = tokio::time::timeout(deadline, handle.heartbeat(Some(pulse()), options.clone())).await;
        let pause = match answer {
            Ok(Ok(response)) if response.cancel_requested => return Unwanted::Cancelled,
            Ok(Err(AsyncActivityError::NotFound(_))) => return Unwanted::Disowned,
            Ok(Ok(_)) => {
                heard.send_replace(Instant::now());
                every
            }
            Ok(Err(_)) | Err(_) => every * 2 / 5,
        };
        tokio::time::sleep(pause).await;
    }
}

fn pulse() -> Pulse {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Pulse { at_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX) }
}

/// How an activity ended.
pub enum End<T> {
    Done(T),
    Failed(Failed),
    Cancelled,
}

/// A failure that is told as often as it takes.
#[derive(Debug, Clone)]
pub struct Failed {
    pub kind: &'static str,
    pub why: String,
}

/// Tells the server until it has heard or has given the activity up. Safe to repeat: an activity ends once.
pub async fn tell<T: Clone + serde::Serialize + Send + 'static>(handle: &AsyncActivityHandle<Client>, end: End<T>) {
    let begun = Instant::now();
    let options = || RpcOptions::builder().timeout(DEADLINE).build();
    loop {
        let told = match &end {
            End::Done(value) => handle.complete(Some(value.clone()), options()).await,
            End::Failed(Failed { kind, why }) => {
                handle.fail(typed_failure(kind, why.as_str()), None::<()>, options()).await
            }
            End::Cancelled => handle.report_cancelation(None::<()>, options()).await,
        };
        match told {
            Ok(()) | Err(AsyncActivityError::NotFound(_)) => return,
            Err(error) if begun.elapsed() >= GIVE_UP => {
                return tracing::warn!(%error, "the end of an activity could not be told");
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}
