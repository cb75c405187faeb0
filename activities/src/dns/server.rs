//! The sockets that daemons and steps ask: UDP and TCP, with bounds on both, since steps are not trusted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{DEFAULT_MAX_PAYLOAD_LEN, Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::forwarder::Forwarder;
use super::metrics::{self, Answer};
use super::question::Question;

/// Queries over UDP that are worked on at once; what comes on top is dropped, as a full wire would drop it.
const QUERIES: usize = 512;
/// Connections at once; others wait to be taken.
const CONNECTIONS: usize = 64;
/// How long a connection may be idle, and take for one query or answer.
const IDLE: Duration = Duration::from_secs(5);
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

/// For as long as the process lives.
pub async fn serve_udp(socket: UdpSocket, forwarder: Arc<Forwarder>) {
    let (socket, room) = (Arc::new(socket), Arc::new(Semaphore::new(QUERIES)));
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
        let Ok(permit) = room.clone().try_acquire_owned() else {
            metrics::answered(Answer::Dropped);
            continue;
        };
        let (query, socket, forwarder) = (buffer[..length].to_vec(), socket.clone(), forwarder.clone());
        tokio::spawn(async move {
            if let Some((answer, limit)) = respond(&query, &forwarder).await {
                // A client that has gone is none of our business.
                let _ = socket.send_to(&encoded(&answer, limit), client).await;
            }
            drop(permit);
        });
    }
}

/// For as long as the process lives.
pub async fn serve_tcp(listener: TcpListener, forwarder: Arc<Forwarder>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let forwarder = forwarder.clone();
                tokio::spawn(async move {
                    // Ends with the first thing that is wrong; the client sees that it is closed.
                    let _ = converse(stream, &forwarder).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection with queries for names was not taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One query after the other, each message behind its length (RFC 1035, section 4.2.2).
async fn converse(mut stream: TcpStream, forwarder: &Arc<Forwarder>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = tokio::time::timeout(IDLE, read(&mut stream)).await??;
        let Some((answer, _)) = respond(&query, forwarder).await else { return Ok(()) };
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

/// The answer to a query, and the most it may take over UDP; none to what is no query.
async fn respond(query: &[u8], forwarder: &Arc<Forwarder>) -> Option<(Message, u16)> {
    let query = match parsed(query)? {
        Ok(query) => query,
        Err(id) => {
            metrics::answered(Answer::Refused);
            return Some((Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), 0));
        }
    };
    let mut answer = empty_answer(&query);
    match judged(&query) {
        Err(code) => {
            metrics::answered(Answer::Refused);
            answer.metadata.response_code = code;
        }
        Ok(question) => match forwarder.answer(&question).await {
            Ok(found) => fill(&mut answer, &found),
            Err(_) => answer.metadata.response_code = ResponseCode::ServFail,
        },
    }
    Some((answer, query.max_payload().min(DEFAULT_MAX_PAYLOAD_LEN)))
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
            if let Some(Ok(query)) = parsed(&bytes) {
                let mut answer = empty_answer(&query);
                answer.metadata.response_code = judged(&query).err().unwrap_or_default();
                let answer = encoded(&answer, query.max_payload());
                prop_assert!(answer.len() <= usize::from(query.max_payload()));
                prop_assert_eq!(Message::from_vec(&answer).unwrap().metadata.id, query.metadata.id);
            }
        }
    }
}
