//! The connection to the log receiver: sends what is spooled, goes on where the receiver says, frees what it acknowledged.
//!
//! Two halves of one connection run side by side, so that a full socket never keeps acknowledgements from being read. Any
//! error ends both; the next connection starts from what the receiver says it has.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::attempt::Attempt;
use super::spool::Batch;
use super::wire::{self, ToReceiver, ToShipper};
use super::{Shared, lock};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the receiver may leave sent records unacknowledged before the connection counts as dead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The bearer token; not shown.
pub struct Token(String);

impl Token {
    pub fn new(token: &str) -> Self {
        Self(token.to_owned())
    }
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("the log receiver cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the connection to the log receiver broke")]
    Io(#[from] io::Error),
    #[error("the log receiver closed the connection")]
    Closed,
    #[error("the log receiver does not answer")]
    Silent,
    #[error("the log receiver refused the connection: {0}")]
    Refused(String),
    #[error("the log receiver spoke out of turn: {0:?}")]
    Unexpected(ToShipper),
    #[error(transparent)]
    Frame(#[from] wire::BadFrame),
    #[error("the spool cannot be read")]
    Spool(#[source] io::Error),
}

/// Ships until it is aborted.
pub async fn run(shared: Arc<Shared>, address: String, token: Token) {
    let mut wait = FIRST_WAIT;
    loop {
        let connected = Instant::now();
        if let Err(error) = ship(&shared, &address, &token).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                address,
                "logs are spooled until the receiver is back"
            );
            if let ShipError::Refused(reason) = &error {
                tracing::warn!(reason, address, "the log receiver refuses this builder's logs");
            }
        }
        if connected.elapsed() > LONGEST_WAIT {
            wait = FIRST_WAIT;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// How far one attempt is on this connection.
#[derive(Debug, Clone, Copy)]
enum Progress {
    /// Opened; the receiver has not said where to go on.
    Opening,
    /// The next record to send.
    Next(u64),
}

/// What the two halves of a connection share.
#[derive(Debug)]
struct Connection {
    progress: Mutex<HashMap<String, Progress>>,
    /// Since when records are out without an answer.
    waiting_since: Mutex<Option<Instant>>,
}

/// One connection, until it fails.
async fn ship(shared: &Shared, address: &str, token: &Token) -> Result<(), ShipError> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| ShipError::Silent)?;
    let stream = stream.map_err(ShipError::Connect)?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let mut frames = FramedRead::new(reader, wire::codec());
    let mut sink = FramedWrite::new(writer, wire::codec());
    let hello = ToReceiver::Hello { version: wire::VERSION, token: token.0.clone() };
    sink.send(wire::encode(&hello, &[])?).await?;
    match timeout(CONNECT_TIMEOUT, answer(&mut frames)).await.map_err(|_| ShipError::Silent)?? {
        ToShipper::Welcome => {}
        ToShipper::Refused { reason } => return Err(ShipError::Refused(reason)),
        other => return Err(ShipError::Unexpected(other)),
    }
    tracing::debug!(address, "shipping logs");
    let connection = Connection { progress: Mutex::default(), waiting_since: Mutex::default() };
    tokio::select! {
        end = read_answers(shared, &connection, &mut frames) => end,
        end = send_records(shared, &connection, &mut sink) => end,
        () = silence(&connection) => Err(ShipError::Silent),
    }
}

async fn answer<R: AsyncRead + Unpin>(
    frames: &mut FramedRead<R, LengthDelimitedCodec>,
) -> Result<ToShipper, ShipError> {
    let frame = frames.next().await.ok_or(ShipError::Closed)??;
    Ok(wire::decode(frame.freeze())?.0)
}

async fn read_answers<R: AsyncRead + Unpin>(
    shared: &Shared,
    connection: &Connection,
    frames: &mut FramedRead<R, LengthDelimitedCodec>,
) -> Result<(), ShipError> {
    loop {
        match answer(frames).await? {
            ToShipper::Ack { reference, seq } => shared.acknowledged(&reference, seq),
            ToShipper::Resume { reference, after } => {
                lock(&connection.progress).insert(reference.clone(), Progress::Next(after + 1));
                shared.acknowledged(&reference, after);
                shared.wake_sender.notify_one();
            }
            ToShipper::Rejected { reference, reason } => shared.rejected(&reference, &reason),
            ToShipper::Refused { reason } => return Err(ShipError::Refused(reason)),
            other @ ToShipper::Welcome => return Err(ShipError::Unexpected(other)),
        }
        *lock(&connection.waiting_since) = None;
    }
}

async fn send_records<W: AsyncWrite + Unpin>(
    shared: &Shared,
    connection: &Connection,
    sink: &mut FramedWrite<W, LengthDelimitedCodec>,
) -> Result<(), ShipError> {
    loop {
        let mut idle = true;
        for attempt in shared.snapshot() {
            idle &= !send_some(connection, &attempt, sink).await?;
        }
        if idle {
            shared.wake_sender.notified().await;
        }
    }
}

/// Sends the next frame of one attempt; says whether there was one.
async fn send_some<W: AsyncWrite + Unpin>(
    connection: &Connection,
    attempt: &Arc<Attempt>,
    sink: &mut FramedWrite<W, LengthDelimitedCodec>,
) -> Result<bool, ShipError> {
    let progress = lock(&connection.progress).get(&attempt.reference).copied();
    let frame = match progress {
        Some(Progress::Opening) => return Ok(false),
        None => {
            lock(&connection.progress).insert(attempt.reference.clone(), Progress::Opening);
            let (id, first) = attempt.opening();
            wire::encode(&ToReceiver::Open { attempt: id, first }, &[])?
        }
        Some(Progress::Next(from)) => {
            let Some(batch) = read(attempt.clone(), from).await? else { return Ok(false) };
            let after = Progress::Next(batch.first + batch.count);
            lock(&connection.progress).insert(attempt.reference.clone(), after);
            let (reference, first, count) = (attempt.reference.clone(), batch.first, batch.count);
            wire::encode(&ToReceiver::Records { reference, first, count }, &batch.lines)?
        }
    };
    lock(&connection.waiting_since).get_or_insert_with(Instant::now);
    sink.send(frame).await?;
    Ok(true)
}

/// Off the runtime's threads: a busy disk may take its time.
async fn read(attempt: Arc<Attempt>, from: u64) -> Result<Option<Batch>, ShipError> {
    let read = tokio::task::spawn_blocking(move || attempt.read(from)).await;
    read.map_err(io::Error::other).and_then(|read| read).map_err(ShipError::Spool)
}

/// Ends when the receiver leaves something unanswered for too long: its machine may be gone without a word.
async fn silence(connection: &Connection) {
    loop {
        tokio::time::sleep(ACK_TIMEOUT / 6).await;
        if lock(&connection.waiting_since).is_some_and(|since| since.elapsed() > ACK_TIMEOUT) {
            return;
        }
    }
}
