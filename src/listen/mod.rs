//! Listeners that are reachable by strangers: TLS, a cap on connections, limits on how long a peer may take.
//!
//! ```text
//! wait for room ─► accept ─► handshake (TLS, HANDSHAKE) ─► http: serve │ api/logs: frames
//! ```
//!
//! What a connection carries is not known here. Times are measured by this machine's monotonic clock.

mod http;
mod identity;
#[cfg(test)]
pub mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

pub use http::{Limits, serve};
pub use identity::Identity;

/// How long a peer may take for its part of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The wait after a connection could not be accepted: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// An accepted connection's bytes, encrypted or not.
pub type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// A listening socket.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    room: Arc<Semaphore>,
}

/// A connection that was accepted; the cap counts it for as long as `room` lives.
pub struct Accepted {
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    pub peer: SocketAddr,
    pub room: OwnedSemaphorePermit,
}

impl Listener {
    /// Listens on `address` (`host:port`, from `setting`), with at most `max_connections` at a time.
    ///
    /// # Errors
    /// When the address cannot be had, or certificate or key cannot be used.
    pub async fn bind(
        address: &str,
        setting: &str,
        (cert, key): (&Path, &Path),
        protocols: &[&str],
        max_connections: usize,
    ) -> anyhow::Result<Self> {
        let identity = Identity::of(cert, key)?;
        let tcp = TcpListener::bind(address).await;
        let tcp = tcp.with_context(|| format!("cannot listen on {address} ({setting})"))?;
        Ok(Self::on(tcp, identity, protocols, max_connections))
    }

    /// On a socket that listens already, with TLS where there is an identity for it.
    pub fn on(tcp: TcpListener, identity: Option<Identity>, protocols: &[&str], max_connections: usize) -> Self {
        let tls = identity.map(|identity| TlsAcceptor::from(identity.config(protocols)));
        Self { tcp, tls, room: Arc::new(Semaphore::new(max_connections)) }
    }

    /// # Errors
    /// When the socket has none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The next connection, once there is room for it: until then peers wait in the socket's backlog.
    pub async fn accept(&self) -> Accepted {
        let room = self.room().await;
        loop {
            match self.tcp.accept().await {
                Ok((stream, peer)) => return Accepted { stream, tls: self.tls.clone(), peer, room },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn room(&self) -> OwnedSemaphorePermit {
        if let Ok(room) = self.room.clone().try_acquire_owned() {
            return room;
        }
        tracing::warn!(address = ?self.tcp.local_addr().ok(), "all connections are in use; new ones wait");
        loop {
            // An error would mean a closed semaphore, and nothing closes it.
            if let Ok(room) = self.room.clone().acquire_owned().await {
                return room;
            }
        }
    }
}

impl Accepted {
    /// The connection's bytes, after the TLS handshake where there is TLS, and its place under the cap.
    ///
    /// # Errors
    /// When the peer does not speak TLS, or not in time.
    pub async fn open(self) -> io::Result<(Stream, OwnedSemaphorePermit)> {
        self.stream.set_nodelay(true)?;
        let Some(tls) = self.tls else { return Ok((Either::Left(self.stream), self.room)) };
        let secured = tokio::time::timeout(HANDSHAKE, tls.accept(self.stream)).await;
        let stream = secured.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok((Either::Right(stream), self.room))
    }
}
