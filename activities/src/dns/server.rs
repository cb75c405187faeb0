//! The sockets that daemons and steps ask: UDP and TCP, with bounds on both, since steps are not trusted.
//!
//! ```text
//! query ─► malformed, or the cache knows ──► answered at once, whoever asks
//!              └─ upstreams are asked ─► a place for this client? ── none ─► dropped
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{DEFAULT_MAX_PAYLOAD_LEN, Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::forwarder::{Forwarder, Outcome};
use super::metrics::{self, Answer};
use super::question::Question;
use super::room::{Limits, Room};

/// Queries over UDP that the upstreams are asked for at once; what comes on top is dropped, as a full wire would drop it.
const QUERIES: Limits = Limits { all: 512, reserve: 64, each: 64 };
/// Connections at once; what comes on top is closed.
const CONNECTIONS: Limits = Limits { all: 64, reserve: 8, each: 8 };
/// How long a connection may be idle, and take for one query or answer.
const IDLE: Duration = Duration::from_secs(5);
/// How long a connection may last, whatever goes over it: its place is for others, too.
pub const LIFE: Duration = Duration::from_secs(30);
/// The longest query that is read over UDP.
const DATAGRAM: usize = 4096;
/// The wait after a socket did not give what came: out of file descriptors or memory, most likely.
const PAUSE: Duration = Duration::from_millis(100);
/// The header of a message, bytes.
const HEADER: usize = 12;

/// Both, on the same port.
///
/// # Errors
/// When the address is taken, is not this machine's, or may not be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(address).await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    Ok((udp, tcp))
}

/// Whom the machine's own queries come from, where it listens there.
fn own(listen: IpAddr) -> IpAddr {
    if listen.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen }
}

/// For as long as the process lives.
pub async fn serve_udp(socket: UdpSocket, listen: IpAddr, forwarder: Arc<Forwarder>) {
    let (socket, room) = (Arc::new(socket), Room::new(QUERIES, own(listen)));
    let mut buffer = [0; DATAGRAM];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "a query for a name was not received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (query, question) = match met(&buffer[..length], &forwarder) {
            None => continue,
            Some(Met::Done(answer, limit)) => {
                // A client that has gone, or a full wire, is none of our business, and nobody waits for it here.
                let _ = socket.try_send_to(&encoded(&answer, limit), client);
                continue;
            }
            Some(Met::Open(query, question)) => (query, question),
        };
        let Some(place) = room.enter(client.ip()) else {
            metrics::answered(Answer::Dropped);
            continue;
        };
        let (socket, forwarder) = (socket.clone(), forwarder.clone());
        tokio::spawn(async move {
            let answer = told(&query, &forwarder.answer(&question).await);
            let _ = socket.send_to(&encoded(&answer, limit_of(&query)), client).await;
            drop(place);
        });
    }
}

/// For as long as the process lives; each connection for at most `life`.
pub async fn serve_tcp(listener: TcpListener, listen: IpAddr, forwarder: Arc<Forwarder>, life: Duration) {
    let room = Room::new(CONNECTIONS, own(listen));
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection with queries for names was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = room.enter(client.ip()) else {
            metrics::answered(Answer::Dropped);
            continue;
        };
        let forwarder = forwarder.clone();
        tokio::spawn(async move {
            // Ends with the first thing that is wrong, or with its time; the client sees that it is closed.
            let _ = tokio::time::timeout(life, converse(stream, &forwarder)).await;
            drop(place);
        });
    }
}

/// One query after the other, each message behind its length (RFC 1035, section 4.2.2).
async fn converse(mut stream: TcpStream, forwarder: &Arc<Forwarder>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = tokio::time::timeout(IDLE, read(&mut stream)).await??;
        let answer = match met(&query, forwarder) {
            None => return Ok(()),
            Some(Met::Done(answer, _)) => answer,
            Some(Met::Open(query, question)) => told(&query, &forwarder.answer(&question).await),
        };
        let answer = encoded(&answer, u16::MAX);
        let length = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes();
        tokio::time::timeout(IDLE, stream.write_all(&[&length[..], &answer].concat())).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut query = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

/// What a query comes to before anybody is asked.
enum Met {
    /// Refused, or known: the answer, and the most it may take over UDP.
    Done(Message, u16),
    /// The upstreams have to be asked.
    Open(Message, Question),
}

/// `None` for what is no query and gets no word.
fn met(bytes: &[u8], forwarder: &Forwarder) -> Option<Met> {
    let query = match parsed(bytes)? {
        Ok(query) => query,
        Err(id) => {
            metrics::answered(Answer::Refused);
            return Some(Met::Done(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), 0));
        }
    };
    let question = match judged(&query) {
        Ok(question) => question,
        Err(code) => {
            metrics::answered(Answer::Refused);
            let mut answer = empty_answer(&query);
            answer.metadata.response_code = code;
            return Some(Met::Done(answer, limit_of(&query)));
        }
    };
    Some(match forwarder.known(&question) {
        Some(known) => Met::Done(told(&query, &known), limit_of(&query)),
        None => Met::Open(query, question),
    })
}

fn told(query: &Message, outcome: &Outcome) -> Message {
    let mut answer = empty_answer(query);
    match outcome {
        Ok(found) => fill(&mut answer, found),
        Err(_) => answer.metadata.response_code = ResponseCode::ServFail,
    }
    answer
}

/// The most that its client takes over UDP, bytes.
fn limit_of(query: &Message) -> u16 {
    query.max_payload().min(DEFAULT_MAX_PAYLOAD_LEN)
}

/// A query, or just the id of a malformed one. `None` for what is not even a query's beginning, or is an answer: two servers could go
/// on for ever otherwise.
fn parsed(bytes: &[u8]) -> Option<Result<Message, u16>> {
    let (header, id) = (bytes.get(..HEADER)?, u16::from_be_bytes([bytes[0], bytes[1]]));
    if header[2] & 0x80 != 0 {
        return None;
    }
    Some(Message::from_vec(bytes).map_err(|_| id))
}

fn judged(query: &Message) -> Result<Question, ResponseCode> {
    if query.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if query.version() > 0 {
        return Err(ResponseCode::BADVERS);
    }
    let question = Question::of(query).ok_or(ResponseCode::FormErr)?;
    match question.kind() {
        // Whole zones are not for a cell.
        RecordType::AXFR | RecordType::IXFR => Err(ResponseCode::Refused),
        _ => Ok(question),
    }
}

/// With the client's own question, letter by letter: some compare.
fn empty_answer(query: &Message) -> Message {
    let asked = query.metadata;
    let mut answer = Message::new(asked.id, MessageType::Response, asked.op_code);
    answer.metadata.recursion_desired = asked.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.checking_disabled = asked.checking_disabled;
    answer.queries.clone_from(&query.queries);
    answer.edns = query.edns.as_ref().map(|theirs| {
        let mut edns = Edns::new();
        edns.set_max_payload(DEFAULT_MAX_PAYLOAD_LEN).set_dnssec_ok(theirs.flags().dnssec_ok);
        edns
    });
    answer
}

fn fill(answer: &mut Message, found: &Message) {
    answer.metadata.response_code = found.metadata.response_code;
    answer.metadata.authentic_data = found.metadata.authentic_data;
    answer.answers.clone_from(&found.answers);
    answer.authorities.clone_from(&found.authorities);
    answer.additionals.clone_from(&found.additionals);
}

/// What does not fit is left out and said to be: the client asks again over TCP.
fn encoded(answer: &Message, limit: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit.max(512));
    if answer.emit(&mut encoder).is_ok() {
        return bytes;
    }
    let error = Message::error_msg(answer.metadata.id, OpCode::Query, ResponseCode::ServFail);
    error.to_vec().unwrap_or_default()
}

/// For tests and fuzzing: bytes are a query, something to refuse, or nothing; what is answered fits and can be read.
#[cfg(any(test, fuzzing))]
pub fn exercise(bytes: &[u8]) {
    let Some(Ok(query)) = parsed(bytes) else { return };
    let mut answer = empty_answer(&query);
    answer.metadata.response_code = judged(&query).err().unwrap_or_default();
    let answer = encoded(&answer, query.max_payload());
    assert!(answer.len() <= usize::from(query.max_payload().max(512)), "an answer is longer than its client takes");
    let read = Message::from_vec(&answer).map(|answer| answer.metadata.id).ok();
    assert_eq!(read, Some(query.metadata.id), "an answer cannot be read");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::query;
    use super::*;

    proptest! {
        /// Whatever a step sends is a query, something to refuse, or nothing; what is answered fits and can be read.
        #[test]
        fn any_bytes_are_survived(noise in prop::collection::vec((0usize..60, any::<u8>()), 0..12), length in 0usize..80) {
            let mut sent = query("some.name.example");
            sent.set_edns(Edns::new());
            let mut bytes = sent.to_vec().unwrap();
            for (at, byte) in noise {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(length);
            exercise(&bytes);
        }
    }
}
