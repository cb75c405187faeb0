//! Takes the logs of builders: the other end of [`activities::logs`].
//!
//! A connection belongs to one builder, whose token is that of its cell, and carries many attempts, all of them placed on that cell.
//! Records are acknowledged when they are in the run's file, so a
//! receiver that is killed loses nothing a builder would not send again.
//!
//! Before a connection has presented a valid token it may send one small frame, in [`HELLO_TIMEOUT`]. After that it may
//! be silent for [`SILENCE`]: a builder that is still there connects again when it has something to send.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use activities::logs::wire::{self, BadFrame, ToReceiver, ToShipper};
use activities::store::{RunKey, StoreError};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use workflows::contract::{AttemptId, CellId, Principal};

use super::run_log::{AppendError, Received};
use super::{LogError, LogHub, RunLog};
use crate::api::principal::Caller;
use crate::listen::{Accepted, Listener, Stream};
use crate::metrics;

/// How long a new connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest frame before the token is known, bytes.
const HELLO_LIMIT: usize = 8 << 10;
/// How long a connection may send nothing, or not the rest of a frame.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a builder may leave an answer unread.
const UNREAD: Duration = Duration::from_secs(30);
/// The most attempts that a builder may have open at once; it has no more slots than the contract allows.
const MAX_OPEN: usize = 4096;

type Frames = Framed<Stream, LengthDelimitedCodec>;

#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] BadFrame),
    #[error("the builder spoke out of turn")]
    OutOfTurn,
    #[error("the builder did not present its token")]
    Silent,
    #[error("the builder's token is not valid any more")]
    Void,
    #[error("the builder has sent nothing for {} s", SILENCE.as_secs())]
    Idle,
    #[error("the builder does not read the answers")]
    Unread,
    #[error("the builder has {MAX_OPEN} attempts open")]
    TooMany,
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes connections until `stop`; ends when all of them have ended.
pub async fn serve(listener: Listener, hub: Arc<LogHub>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (hub, stop, peer) = (hub.clone(), stop.clone(), accepted.peer);
        connections.spawn(async move {
            let ended = stop.run_until_cancelled(Connection::run(accepted, hub)).await;
            if let Some(Err(error)) = ended {
                tracing::info!(error = &error as &dyn std::error::Error, %peer, "a builder's log connection ended");
            }
        });
    }
    connections.close();
    connections.wait().await;
}

/// One builder's connection.
struct Connection {
    hub: Arc<LogHub>,
    caller: Arc<Caller>,
    cell: CellId,
    frames: Frames,
    /// Opened attempts whose end has not come, by reference.
    attempts: HashMap<String, (AttemptId, Arc<RunLog>)>,
}

impl Connection {
    async fn run(accepted: Accepted, hub: Arc<LogHub>) -> Result<(), ReceiveError> {
        let (stream, _room) = accepted.open().await?;
        let mut codec = wire::codec();
        codec.set_max_frame_length(HELLO_LIMIT);
        let mut frames = Framed::new(stream, codec);
        let Some((caller, cell)) = let_in(&hub, &mut frames).await? else { return Ok(()) };
        frames.codec_mut().set_max_frame_length(wire::MAX_FRAME);
        let mut connection = Self { hub, caller, cell, frames, attempts: HashMap::new() };
        while let Some(frame) = timeout(SILENCE, connection.frames.next()).await.map_err(|_| ReceiveError::Idle)? {
            let (header, lines) = wire::decode(frame?.freeze())?;
            connection.check_token().await?;
            let (reference, done) = match header {
                ToReceiver::Hello { .. } => return Err(ReceiveError::OutOfTurn),
                ToReceiver::Open { attempt, first } => (attempt.buildkit_ref(), connection.open(attempt, first).await),
                ToReceiver::Records { reference, first, .. } => {
                    (reference.clone(), connection.records(reference, first, lines).await)
                }
            };
            let answer = done.or_else(|error| connection.about_one_attempt(reference, error))?;
            connection.say(&answer).await?;
        }
        Ok(())
    }

    /// What is wrong with one attempt ends neither the connection nor the logs of the others.
    fn about_one_attempt(&mut self, reference: String, error: ReceiveError) -> Result<ToShipper, ReceiveError> {
        match error {
            ReceiveError::Append(AppendError::Frozen) | ReceiveError::TooMany => Ok(ToShipper::Busy { reference }),
            ReceiveError::Append(AppendError::NotOpened | AppendError::Numbers(_))
            | ReceiveError::Log(LogError::RunId(_) | LogError::NoProject) => {
                self.attempts.remove(&reference);
                Ok(ToShipper::Rejected { reference, reason: error.to_string() })
            }
            error => Err(error),
        }
    }

    async fn say(&mut self, answer: &ToShipper) -> Result<(), ReceiveError> {
        send(&mut self.frames, answer).await
    }

    /// A connection may outlive its token.
    async fn check_token(&self) -> Result<(), ReceiveError> {
        self.hub.keyring.recall(&self.caller.hash).await?.map(|_| ()).ok_or(ReceiveError::Void)
    }

    async fn open(&mut self, attempt: AttemptId, first: u64) -> Result<ToShipper, ReceiveError> {
        if self.attempts.len() >= MAX_OPEN {
            return Err(ReceiveError::TooMany);
        }
        let run = RunKey { workflow_id: attempt.workflow_id.clone(), run_id: attempt.run_id.clone() };
        let reference = attempt.buildkit_ref();
        if !self.hub.store.was_placed_on(&run, &self.cell).await? {
            tracing::warn!(cell = %self.cell, ?attempt, "rejected the log of an attempt that was not placed on the cell");
            let reason = format!("the build was not placed on cell {}", self.cell);
            return Ok(ToShipper::Rejected { reference, reason });
        }
        let log = self.hub.log(&run).await?;
        // An attempt's log is opened when it is picked up: the first word that the build runs.
        self.hub.store.record_pick_up(&run).await?;
        self.attempts.insert(reference.clone(), (attempt.clone(), log.clone()));
        let after = blocking(move || log.open_attempt(&attempt, first)).await?;
        Ok(ToShipper::Resume { reference, after })
    }

    async fn records(&mut self, reference: String, first: u64, lines: Bytes) -> Result<ToShipper, ReceiveError> {
        let (attempt, log) = self.attempts.get(&reference).cloned().ok_or(AppendError::NotOpened)?;
        metrics::LOG_BYTES_RECEIVED.inc_by(lines.len() as u64);
        let received = blocking(move || log.receive(&attempt, first, &lines)).await?;
        if let Received::Upto { ended: true, .. } = received {
            self.attempts.remove(&reference);
        }
        Ok(match received {
            Received::Upto { seq, .. } => ToShipper::Ack { reference, seq },
            Received::Gap(after) => ToShipper::Resume { reference, after },
        })
    }
}

async fn send(frames: &mut Frames, answer: &ToShipper) -> Result<(), ReceiveError> {
    let sent = timeout(UNREAD, frames.send(wire::encode(answer, &[])?)).await;
    Ok(sent.map_err(|_| ReceiveError::Unread)??)
}

/// Who connects: nothing is taken from a connection without the valid token of a cell. `None` when it was refused.
async fn let_in(hub: &LogHub, frames: &mut Frames) -> Result<Option<(Arc<Caller>, CellId)>, ReceiveError> {
    let first = timeout(HELLO_TIMEOUT, frames.next()).await;
    let frame = first.map_err(|_| ReceiveError::Silent)?.ok_or(ReceiveError::Silent)??;
    let (ToReceiver::Hello { version, token }, _) = wire::decode(frame.freeze())? else {
        return Err(ReceiveError::OutOfTurn);
    };
    let reason = match hub.keyring.identify(&token).await? {
        Some(_) if version != wire::VERSION => {
            format!("this receiver speaks version {}, not {version}", wire::VERSION)
        }
        Some(caller) => match &caller.principal {
            Principal::Cell { cell } => {
                let cell = cell.clone();
                send(frames, &ToShipper::Welcome).await?;
                return Ok(Some((caller, cell)));
            }
            other => format!("logs come from cells, and the token is that of {}", other.kind()),
        },
        None => "the token is not valid".to_owned(),
    };
    send(frames, &ToShipper::Refused { reason }).await?;
    Ok(None)
}

/// Parsing and writing a quarter of a megabyte does not belong on the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AppendError> + Send + 'static,
) -> Result<T, ReceiveError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
    Ok(done?)
}
