//! The resolvers that are asked, in the order of the settings: over UDP, and over TCP when an answer does not fit.
//!
//! ```text
//! first ─ silent ─► second ─ silent ─► … ─► once more, those that were silent ─► all failed
//!   └─ an answer, or "no such name": that is it. "I cannot" (SERVFAIL, REFUSED) counts as a failure.
//! ```
//!
//! One that was silent lately is asked after the others, so that a dead one costs its timeout now and then and not on each name. All of it
//! is over before clients lose their patience (five seconds in glibc and in Go).

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsRequestSender as _, FirstAnswer as _};
use hickory_net::{DnsHandle as _, NetError};
use hickory_proto::op::{Message, ResponseCode};

use super::metrics;
use super::question::Question;
use super::unresolved::Trouble;

/// The most that asking all of them takes.
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long one that was silent comes after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(10);

pub struct Upstreams {
    servers: Vec<Upstream>,
    /// For one answer over UDP; hickory repeats the question meanwhile.
    timeout: Duration,
    /// Owns the tasks behind TCP connections, so it lives as long as the upstreams.
    runtime: TokioRuntimeProvider,
}

struct Upstream {
    address: SocketAddr,
    /// When it was last found silent, unless it has answered since.
    silent: Mutex<Option<Instant>>,
}

impl Upstreams {
    pub fn new(addresses: Vec<SocketAddr>, timeout: Duration) -> Self {
        let upstream = |address| Upstream { address, silent: Mutex::new(None) };
        let servers = addresses.into_iter().map(upstream).collect();
        Self { servers, timeout, runtime: TokioRuntimeProvider::new() }
    }

    /// # Errors
    /// What was wrong with each, when none of them has an answer.
    pub async fn ask(&self, question: &Question) -> Result<Message, Vec<(SocketAddr, Trouble)>> {
        let until = Instant::now() + PATIENCE;
        let mut order: Vec<_> = self.servers.iter().collect();
        order.sort_by_key(|upstream| upstream.is_suspect());
        let mut troubles = Vec::new();
        for upstream in &order {
            match self.ask_one(upstream, question, until).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => troubles.push((upstream.address, trouble)),
            }
        }
        for (upstream, trouble) in order.iter().zip(&mut troubles).filter(|(_, (_, trouble))| trouble.is_passing()) {
            match self.ask_one(upstream, question, until).await {
                Ok(answer) => return Ok(answer),
                Err(again) => trouble.1 = again,
            }
        }
        Err(troubles)
    }

    async fn ask_one(&self, upstream: &Upstream, question: &Question, until: Instant) -> Result<Message, Trouble> {
        let begun = Instant::now();
        let patience = self.timeout.min(until.saturating_duration_since(begun));
        if patience.is_zero() {
            return Err(Trouble::Silent);
        }
        let asked = self.exchange(upstream.address, question, patience).await;
        metrics::asked(upstream.address, begun.elapsed(), &asked);
        upstream.was_asked(&asked);
        asked
    }

    async fn exchange(&self, address: SocketAddr, question: &Question, patience: Duration) -> Result<Message, Trouble> {
        let begun = Instant::now();
        let mut answer = self.by_udp(address, question, patience).await?;
        if answer.metadata.truncation {
            let left = patience.saturating_sub(begun.elapsed());
            // What does not answer in time has its own end; the library's timeouts count connecting and asking apart.
            let by_tcp = tokio::time::timeout(left, self.by_tcp(address, question, left));
            answer = by_tcp.await.map_err(|_| Trouble::Silent)??;
        }
        match answer.metadata.response_code {
            _ if answer.queries != [question.query()] => Err(Trouble::Garbled("to another question".into())),
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(Trouble::Said(code)),
        }
    }

    /// From a random port; answers with another id, question or sender are passed over.
    async fn by_udp(&self, address: SocketAddr, question: &Question, patience: Duration) -> Result<Message, Trouble> {
        let mut stream = UdpClientStream::builder(address, self.runtime.clone()).with_timeout(Some(patience)).build();
        let answer = stream.send_message(question.request()).first_answer().await;
        answer.map(|answer| answer.into_message()).map_err(trouble)
    }

    async fn by_tcp(&self, address: SocketAddr, question: &Question, patience: Duration) -> Result<Message, Trouble> {
        let exchange = TcpClientStream::exchange(address, None, patience, None, self.runtime.clone()).await;
        let answer = exchange.map_err(trouble)?.send(question.request()).first_answer().await;
        answer.map(|answer| answer.into_message()).map_err(trouble)
    }
}

impl Upstream {
    /// One that says that it cannot tell one name may know all others: it keeps its place, or another one would be asked for names that
    /// only the first knows.
    fn was_asked(&self, asked: &Result<Message, Trouble>) {
        let silent = match asked {
            Ok(_) => None,
            Err(Trouble::Silent | Trouble::Unreachable(_)) => Some(Instant::now()),
            Err(Trouble::Said(_) | Trouble::Garbled(_)) => return,
        };
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
    }

    fn is_suspect(&self) -> bool {
        let silent = *self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }
}

fn trouble(error: NetError) -> Trouble {
    match error {
        NetError::Timeout => Trouble::Silent,
        NetError::Io(error) => Trouble::Unreachable(error.to_string()),
        other => Trouble::Garbled(other.to_string()),
    }
}
