//! Names for a cell: a caching forwarder inside the builder, which the cell's daemons and steps ask.
//!
//! ```text
//! query ─► cache ── fresh ──────────────────────────────────────────► answer
//!            │ stale, or nothing                                        ▲
//!            ▼                                                          │
//!        a place for this client? ── none ─► dropped                    │
//!            ▼                                                          │
//!        asked already? ─ once for all who ask ─► upstreams, in order ──┤ kept in the cache
//!                                                   │ none has an answer, or not within 1.8 s
//!                                                   ├─ stale answer, for 30 s
//!                                                   └─ SERVFAIL, remembered: a build that fails for it says so
//! ```
//!
//! Messages and the exchange with upstreams are the `hickory` crates'. Cache and listener are not: their resolver forgets an answer
//! when its time is over, so it cannot serve stale ones, and their server works on any number of queries at once and logs two lines for
//! each, while the steps that ask are not trusted.
//!
//! Nothing in here knows builds; what a failure means for one is said in [`crate::build`].

mod cache;
mod forwarder;
mod metrics;
mod question;
pub mod resolvers;
mod room;
mod server;
#[cfg(test)]
mod tests;
mod unresolved;
mod upstreams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(any(test, fuzzing))]
pub(crate) use server::exercise;
pub use unresolved::{Trouble, Unresolved};

use forwarder::{Clock, Forwarder};
use upstreams::Upstreams;

/// Where it listens and whom it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// Over UDP and TCP.
    pub listen: SocketAddr,
    /// In the order in which they are asked; at least one.
    pub upstreams: Vec<SocketAddr>,
    /// How long one of them may take for an answer.
    pub timeout: Duration,
    /// How long an answer is of use after its time to live, when no upstream answers.
    pub stale: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen for queries for names on {address}")]
pub struct DnsError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// The running forwarder. Cheap to clone.
#[derive(Clone)]
pub struct Dns {
    forwarder: Arc<Forwarder>,
    address: SocketAddr,
}

impl Dns {
    /// Listens; what it has begun goes on for as long as the process lives: steps need names until the last one has ended.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(settings: DnsSettings) -> Result<Self, DnsError> {
        Self::start_by(settings, Arc::new(Instant::now)).await
    }

    /// As [`Self::start`]; answers age by this clock.
    async fn start_by(settings: DnsSettings, now: Clock) -> Result<Self, DnsError> {
        let failed = |source| DnsError { address: settings.listen, source };
        let (udp, tcp) = server::bind(settings.listen).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let upstreams = Upstreams::new(settings.upstreams, settings.timeout);
        let forwarder = Forwarder::new(upstreams, settings.stale, now);
        tokio::spawn(server::serve_udp(udp, address.ip(), forwarder.clone()));
        tokio::spawn(server::serve_tcp(tcp, address.ip(), forwarder.clone(), server::LIFE));
        Ok(Self { forwarder, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The questions that nobody had an answer to since then, oldest first: at most the last 64.
    pub fn unresolved_since(&self, since: Instant) -> Vec<Arc<Unresolved>> {
        self.forwarder.unresolved_since(since)
    }
}
