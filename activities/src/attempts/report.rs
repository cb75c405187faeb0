//! The attempt's end, told by its task token.

use std::time::Duration;

use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{ActivityIdentifier, AsyncActivityHandle, Client, RpcOptions};
use workflows::contract::{AttemptResult, BuildError};

use crate::failure::failure;

/// How an attempt ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    Built(Box<AttemptResult>),
    Failed(Box<BuildError>),
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the attempt's end could not be told for {} s; the server finds it by the heartbeat timeout", waited.as_secs())]
    Unheard { waited: Duration, source: Box<AsyncActivityError> },
}

/// The deadline of one report.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// The server has given the attempt up by then.
const GIVE_UP: Duration = Duration::from_secs(120);

pub(super) fn handle(client: &Client, task_token: &[u8]) -> AsyncActivityHandle<Client> {
    let identifier = ActivityIdentifier::from_task_token(task_token.to_vec().into());
    AsyncActivityHandle::new(client.clone(), identifier)
}

/// Tells the server, until it has acknowledged. Safe to repeat: a token ends once, and an attempt that the server no longer knows
/// needs no report.
pub async fn report(client: &Client, task_token: &[u8], outcome: &Outcome) -> Result<(), ReportError> {
    let handle = handle(client, task_token);
    let start = tokio::time::Instant::now();
    loop {
        match once(&handle, outcome).await {
            Ok(()) | Err(AsyncActivityError::NotFound(_)) => return Ok(()),
            Err(source) if start.elapsed() >= GIVE_UP => {
                return Err(ReportError::Unheard { waited: GIVE_UP, source: Box::new(source) });
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Whether anybody waits for an attempt's end. An attempt that the server gave up has been tried again elsewhere, and its build may have
/// ended. While the server does not say, somebody may.
pub async fn is_awaited(client: &Client, task_token: &[u8]) -> bool {
    let options = RpcOptions::builder().timeout(DEADLINE).build();
    let beat = handle(client, task_token).heartbeat(None::<()>, options).await;
    !matches!(beat, Err(AsyncActivityError::NotFound(_)))
}

async fn once(handle: &AsyncActivityHandle<Client>, outcome: &Outcome) -> Result<(), AsyncActivityError> {
    let options = RpcOptions::builder().timeout(DEADLINE).build();
    match outcome {
        Outcome::Built(result) => handle.complete(Some((**result).clone()), options).await,
        Outcome::Failed(error) => handle.fail(failure((**error).clone()), None::<()>, options).await,
        Outcome::Cancelled => handle.report_cancelation(None::<()>, options).await,
    }
}
