//! Takes the logs of builders: the other end of [`activities::logs`].
//!
//! A connection belongs to one builder and carries many attempts. Records are acknowledged when they are in the run's file, so a
//! receiver that is killed loses nothing a builder would not send again.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use activities::logs::wire::{self, BadFrame, ToReceiver, ToShipper};
use activities::store::{RunKey, StoreError};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use workflows::contract::AttemptId;

use super::run_log::{AppendError, Received};
use super::{LogError, LogHub, RunLog};
use crate::metrics;

/// How long a new connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

type Frames = Framed<TcpStream, LengthDelimitedCodec>;

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] BadFrame),
    #[error("the builder spoke out of turn")]
    OutOfTurn,
    #[error("the builder did not say who it is")]
    Silent,
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes connections until `stop`; ends when all of them have ended.
pub async fn serve(listener: TcpListener, hub: Arc<LogHub>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let (hub, stop) = (hub.clone(), stop.clone());
                connections.spawn(async move {
                    let ended = stop.run_until_cancelled(Connection::run(stream, hub)).await;
                    if let Some(Err(error)) = ended {
                        tracing::info!(error = &error as &dyn std::error::Error, %peer, "a builder's log connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give others time to free some.
                tracing::warn!(%error, "a log connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// One builder's connection.
struct Connection {
    hub: Arc<LogHub>,
    frames: Frames,
    /// Opened attempts, by reference.
    attempts: HashMap<String, (AttemptId, Arc<RunLog>)>,
}

impl Connection {
    async fn run(stream: TcpStream, hub: Arc<LogHub>) -> Result<(), ReceiveError> {
        stream.set_nodelay(true)?;
        let mut connection = Self { hub, frames: Framed::new(stream, wire::codec()), attempts: HashMap::new() };
        if !connection.let_in().await? {
            return Ok(());
        }
        while let Some(frame) = connection.frames.next().await {
            let (header, lines) = wire::decode(frame?.freeze())?;
            let answer = match header {
                ToReceiver::Hello { .. } => return Err(ReceiveError::OutOfTurn),
                ToReceiver::Open { attempt, first } => connection.open(attempt, first).await?,
                ToReceiver::Records { reference, first, .. } => connection.records(reference, first, lines).await?,
            };
            connection.say(&answer).await?;
        }
        Ok(())
    }

    async fn say(&mut self, answer: &ToShipper) -> Result<(), ReceiveError> {
        self.frames.send(wire::encode(answer, &[])?).await?;
        Ok(())
    }

    /// Nothing is taken from a connection without a valid token.
    async fn let_in(&mut self) -> Result<bool, ReceiveError> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.frames.next()).await;
        let frame = first.map_err(|_| ReceiveError::Silent)?.ok_or(ReceiveError::Silent)??;
        let (ToReceiver::Hello { version, token }, _) = wire::decode(frame.freeze())? else {
            return Err(ReceiveError::OutOfTurn);
        };
        let reason = if !self.hub.store.knows_token(&token).await? {
            "the token is not valid".to_owned()
        } else if version != wire::VERSION {
            format!("this receiver speaks version {}, not {version}", wire::VERSION)
        } else {
            self.say(&ToShipper::Welcome).await?;
            return Ok(true);
        };
        self.say(&ToShipper::Refused { reason }).await?;
        Ok(false)
    }

    async fn open(&mut self, attempt: AttemptId, first: u64) -> Result<ToShipper, ReceiveError> {
        let run = RunKey { workflow_id: attempt.workflow_id.clone(), run_id: attempt.run_id.clone() };
        let log = self.hub.log(&run).await?;
        // An attempt's log is opened when it is picked up: the first word that the build runs.
        self.hub.store.record_pick_up(&run).await?;
        let reference = attempt.buildkit_ref();
        self.attempts.insert(reference.clone(), (attempt.clone(), log.clone()));
        let after = blocking(move || log.open_attempt(&attempt, first)).await?;
        Ok(ToShipper::Resume { reference, after })
    }

    async fn records(&mut self, reference: String, first: u64, lines: Bytes) -> Result<ToShipper, ReceiveError> {
        let (attempt, log) = self.attempts.get(&reference).cloned().ok_or(AppendError::NotOpened)?;
        metrics::LOG_BYTES_RECEIVED.inc_by(lines.len() as u64);
        let received = blocking(move || log.receive(&attempt, first, &lines)).await?;
        Ok(match received {
            Received::Upto(seq) => ToShipper::Ack { reference, seq },
            Received::Gap(after) => ToShipper::Resume { reference, after },
        })
    }
}

/// Parsing and writing a quarter of a megabyte does not belong on the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AppendError> + Send + 'static,
) -> Result<T, ReceiveError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
    Ok(done?)
}
