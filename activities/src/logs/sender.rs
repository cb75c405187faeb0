//! The connection to the log receiver, over TLS where that is set: sends what is spooled, goes on where the receiver says, frees what it acknowledged.
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
use tokio_rustls::TlsConnector;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::attempt::Attempt;
use super::spool::Batch;
use super::wire::{self, ToReceiver, ToShipper};
use super::{Shared, lock};
use crate::trust::handshake_problem;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the receiver may leave sent records unacknowledged before the connection counts as dead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Before an attempt that the receiver was busy with is opened again.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where the log receiver is, and whether it is spoken to over TLS.
#[derive(Clone)]
pub struct Receiver {
    /// `host:port`.
    address: String,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.address, if self.tls.is_some() { "TLS" } else { "plain" })
    }
}

/// Without TLS.
impl From<&str> for Receiver {
    fn from(address: &str) -> Self {
        Self::plain(address)
    }
}

/// A connection's bytes, encrypted or not.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

impl Receiver {
    pub fn plain(address: &str) -> Self {
        Self { address: address.to_owned(), tls: None }
    }

    /// Its certificate must be for the host of `address`.
    pub fn tls(address: &str, config: Arc<rustls::ClientConfig>) -> Self {
        Self { address: address.to_owned(), tls: Some(config) }
    }

    /// A connection, within [`CONNECT_TIMEOUT`].
    async fn connect(&self) -> Result<Box<dyn Bytes>, ShipError> {
        let connected = async {
            let stream = TcpStream::connect(&self.address).await.map_err(ShipError::Connect)?;
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return Ok(Box::new(stream) as Box<dyn Bytes>) };
            let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
            let name = host.trim_matches(['[', ']']).to_owned().try_into().map_err(|_| ShipError::Name(host.into()))?;
            let secured = TlsConnector::from(tls.clone()).connect(name, stream).await;
            Ok(Box::new(secured.map_err(|error| ShipError::Tls(handshake_problem(&error)))?) as Box<dyn Bytes>)
        };
        timeout(CONNECT_TIMEOUT, connected).await.map_err(|_| ShipError::Silent)?
    }

    /// Connects and presents the token, as a builder does: what keeps its logs from being taken, if anything.
    ///
    /// # Errors
    /// The reason.
    pub async fn probe(&self, token: &str) -> Result<(), ShipError> {
        let (reader, writer) = tokio::io::split(self.connect().await?);
        let mut frames = FramedRead::new(reader, wire::codec());
        greet(&mut frames, &mut FramedWrite::new(writer, wire::codec()), &Token::new(token)).await
    }
}

/// The bearer token; not shown.
pub struct Token(String);

impl Token {
    pub fn new(token: &str) -> Self {
        Self(token.to_owned())
    }
}

/// Why logs cannot be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error("the log receiver cannot be reached")]
    Connect(#[source] io::Error),
    #[error("there is no TLS with the log receiver: {0}")]
    Tls(String),
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
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
pub async fn run(shared: Arc<Shared>, receiver: Receiver, token: Token) {
    let address = &receiver.address;
    let mut wait = FIRST_WAIT;
    loop {
        let connected = Instant::now();
        if let Err(error) = ship(&shared, &receiver, &token).await {
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
    /// To be opened again then.
    Later(Instant),
}

/// What the two halves of a connection share.
#[derive(Debug)]
struct Connection {
    progress: Mutex<HashMap<String, Progress>>,
    /// Since when records are out without an answer.
    waiting_since: Mutex<Option<Instant>>,
}

/// One connection, until it fails.
async fn ship(shared: &Shared, receiver: &Receiver, token: &Token) -> Result<(), ShipError> {
    let (reader, writer) = tokio::io::split(receiver.connect().await?);
    let mut frames = FramedRead::new(reader, wire::codec());
    let mut sink = FramedWrite::new(writer, wire::codec());
    greet(&mut frames, &mut sink, token).await?;
    tracing::debug!(?receiver, "shipping logs");
    let connection = Connection { progress: Mutex::default(), waiting_since: Mutex::default() };
    tokio::select! {
        end = read_answers(shared, &connection, &mut frames) => end,
        end = send_records(shared, &connection, &mut sink) => end,
        () = silence(&connection) => Err(ShipError::Silent),
    }
}

/// Presents the token and waits to be welcomed.
async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    frames: &mut FramedRead<R, LengthDelimitedCodec>,
    sink: &mut FramedWrite<W, LengthDelimitedCodec>,
    token: &Token,
) -> Result<(), ShipError> {
    let hello = ToReceiver::Hello { version: wire::VERSION, token: token.0.clone() };
    sink.send(wire::encode(&hello, &[])?).await?;
    match timeout(CONNECT_TIMEOUT, answer(frames)).await.map_err(|_| ShipError::Silent)?? {
        ToShipper::Welcome => Ok(()),
        ToShipper::Refused { reason } => Err(ShipError::Refused(reason)),
        other => Err(ShipError::Unexpected(other)),
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
                lock(&connection.progress).insert(reference.clone(), Progress::Next(after.saturating_add(1)));
                shared.acknowledged(&reference, after);
                shared.wake_sender.notify_one();
            }
            ToShipper::Rejected { reference, reason } => {
                lock(&connection.progress).remove(&reference);
                shared.rejected(&reference, &reason);
            }
            ToShipper::Busy { reference } => {
                lock(&connection.progress).insert(reference, Progress::Later(Instant::now() + BUSY_PAUSE));
            }
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
            // A receiver that was busy with an attempt is asked again without being woken.
            let busy = lock(&connection.progress).values().any(|progress| matches!(progress, Progress::Later(_)));
            let pause = if busy { BUSY_PAUSE } else { Duration::MAX };
            timeout(pause, shared.wake_sender.notified()).await.ok();
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
        Some(Progress::Later(at)) if Instant::now() < at => return Ok(false),
        None | Some(Progress::Later(_)) => {
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
