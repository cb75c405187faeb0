//! The forwarder on real sockets, with upstreams on the loopback that do as they are told.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::question::Question;
use super::server;
use super::{Dns, DnsSettings, Trouble};

/// Longer than an answer over the loopback takes on a busy machine, short enough to wait for in vain.
const TIMEOUT: Duration = Duration::from_millis(250);
/// How long a slow upstream takes: once it is in time, twice it is not.
const SLOW: Duration = Duration::from_millis(170);
/// Nothing that is waited for takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).unwrap()
}

pub fn query(host: &str) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(host), RecordType::A));
    query
}

pub fn question(host: &str) -> Question {
    Question::of(&query(host)).unwrap()
}

pub fn a(host: &str, ttl: u32) -> Record {
    Record::from_rdata(name(host), ttl, RData::A(A::new(192, 0, 2, 1)))
}

pub fn answer(question: &Question, records: Vec<Record>) -> Message {
    let mut answer = Message::response(0, OpCode::Query);
    answer.add_query(question.query());
    answer.add_answers(records);
    answer
}

/// Nothing there, with the times of the zone's SOA record: its own and the one it states.
pub fn missing(question: &Question, code: ResponseCode, zone: Option<(u32, u32)>) -> Message {
    let mut answer = answer(question, Vec::new());
    answer.metadata.response_code = code;
    answer.add_authorities(zone.map(|(ttl, minimum)| {
        let soa = SOA::new(name("ns.example"), name("admin.example"), 1, 3600, 600, 86400, minimum);
        Record::from_rdata(name("example"), ttl, RData::SOA(soa))
    }));
    answer
}

/// What an upstream does with a query.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// The name's address, to be kept for so long, seconds.
    Address {
        ttl: u32,
    },
    Says(ResponseCode),
    Silent,
    /// So many addresses, but over UDP just the word that there is more.
    Long(u8),
    /// Addresses, once the test allows it.
    Held,
    /// As [`Self::Long`], but each word takes the greater part of [`TIMEOUT`].
    LongAndSlow(u8),
    /// Addresses, but not a word about names below [`VOID`].
    SilentBelowVoid,
}

const VOID: &str = ".void.example";

impl Manner {
    async fn take_its_time(self) {
        if matches!(self, Self::LongAndSlow(_)) {
            tokio::time::sleep(SLOW).await;
        }
    }
}

/// A resolver on the loopback.
struct Upstream {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicUsize>,
    held: Arc<Semaphore>,
}

impl Upstream {
    async fn start(manner: Manner) -> Self {
        let (udp, tcp) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let upstream = Self {
            address,
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::default(),
            held: Arc::new(Semaphore::new(0)),
        };
        let (manner, asked, held) = (upstream.manner.clone(), upstream.asked.clone(), upstream.held.clone());
        tokio::spawn(async move {
            let udp = Arc::new(udp);
            let mut buffer = [0; 1500];
            loop {
                let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let manner = *manner.lock().unwrap();
                let (udp, held) = (udp.clone(), held.clone());
                tokio::spawn(async move {
                    if manner == Manner::Held {
                        held.acquire().await.unwrap().forget();
                    }
                    manner.take_its_time().await;
                    if let Some(answer) = told(&query, manner, true) {
                        udp.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
                    }
                });
            }
        });
        let manner = upstream.manner.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = framed(&mut stream).await;
                let manner = *manner.lock().unwrap();
                manner.take_its_time().await;
                if let Some(answer) = told(&query, manner, false) {
                    // Who has not waited for it has gone.
                    let _ = try_send_framed(&mut stream, &answer).await;
                }
            }
        });
        upstream
    }

    fn now(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn told(query: &Message, manner: Manner, by_udp: bool) -> Option<Message> {
    let asked = Question::of(query).unwrap();
    let host = asked.host();
    let mut said = match manner {
        Manner::Silent => return None,
        Manner::SilentBelowVoid if host.ends_with(VOID) => return None,
        Manner::SilentBelowVoid => answer(&asked, vec![a(&host, 60)]),
        Manner::Address { ttl } => answer(&asked, vec![a(&host, ttl)]),
        Manner::Held => answer(&asked, vec![a(&host, 60)]),
        Manner::Says(code) => missing(&asked, code, Some((60, 60))),
        Manner::Long(_) | Manner::LongAndSlow(_) if by_udp => {
            let mut cut = answer(&asked, Vec::new());
            cut.metadata.truncation = true;
            cut
        }
        Manner::Long(count) | Manner::LongAndSlow(count) => {
            let address = |last| Record::from_rdata(name(&host), 60, RData::A(A::new(192, 0, 2, last)));
            answer(&asked, (0..count).map(address).collect())
        }
    };
    said.metadata.id = query.metadata.id;
    Some(said)
}

async fn framed(stream: &mut TcpStream) -> Message {
    let mut message = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut message).await.unwrap();
    Message::from_vec(&message).unwrap()
}

async fn send_framed(stream: &mut TcpStream, message: &Message) {
    try_send_framed(stream, message).await.unwrap();
}

async fn try_send_framed(stream: &mut TcpStream, message: &Message) -> io::Result<()> {
    let message = message.to_vec().unwrap();
    stream.write_u16(message.len().try_into().unwrap()).await?;
    stream.write_all(&message).await
}

/// A forwarder whose clock stands still unless the test says so.
struct Forwarder {
    dns: Dns,
    ahead: Arc<AtomicU64>,
}

impl Forwarder {
    async fn before(upstreams: &[&Upstream]) -> Self {
        Self::patient(upstreams, TIMEOUT).await
    }

    async fn patient(upstreams: &[&Upstream], timeout: Duration) -> Self {
        let settings = DnsSettings {
            listen: "127.0.0.1:0".parse().unwrap(),
            upstreams: upstreams.iter().map(|upstream| upstream.address).collect(),
            timeout,
            stale: Duration::from_secs(3600),
        };
        let ahead = Arc::new(AtomicU64::new(0));
        let (start, clock) = (Instant::now(), ahead.clone());
        let now = move || start + Duration::from_secs(clock.load(Ordering::Relaxed));
        Self { dns: Dns::start_by(settings, Arc::new(now)).await.unwrap(), ahead }
    }

    fn wait(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn ask(&self, host: &str) -> Message {
        self.send(&query(host)).await
    }

    async fn send(&self, query: &Message) -> Message {
        let answer = self.send_bytes(&query.to_vec().unwrap()).await;
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    }

    async fn send_bytes(&self, query: &[u8]) -> Message {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(query, self.dns.address()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }
}

/// One that asks over UDP from an address of its own; the forwarder's is 127.0.0.1.
struct Client {
    socket: UdpSocket,
}

impl Client {
    async fn at(last: u8, dns: &Forwarder) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).await.unwrap();
        socket.connect(dns.dns.address()).await.unwrap();
        Self { socket }
    }

    async fn send(&self, query: &Message) {
        self.socket.send(&query.to_vec().unwrap()).await.unwrap();
    }

    /// Answers to what was sent before are passed over.
    async fn ask(&self, host: &str) -> Message {
        let query = query(host);
        self.send(&query).await;
        let mut buffer = [0; 4096];
        loop {
            let length = tokio::time::timeout(PATIENCE, self.socket.recv(&mut buffer)).await.unwrap().unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            if answer.metadata.id == query.metadata.id && answer.queries == query.queries {
                return answer;
            }
        }
    }
}

/// Code, and the times to live of the answers.
fn seen(answer: &Message) -> (ResponseCode, Vec<u32>) {
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.ttl).collect())
}

#[tokio::test]
async fn an_answer_is_asked_for_once_in_its_time() {
    let upstream = Upstream::start(Manner::Address { ttl: 60 }).await;
    let dns = Forwarder::before(&[&upstream]).await;
    assert_eq!(seen(&dns.ask("a.example").await), (ResponseCode::NoError, vec![60]));
    dns.wait(20);
    let mut other_case = query("A.Example");
    other_case.set_edns(Edns::new());
    let again = dns.send(&other_case).await;
    assert!(again.answers[0].ttl <= 40, "{again}");
    assert!(again.queries[0].name().eq_case(&name("A.Example")), "the client's own letters: {again}");
    assert!(again.edns.is_some() && again.metadata.recursion_available);
    assert_eq!(upstream.asked(), 1);
    dns.wait(41);
    assert_eq!(seen(&dns.ask("a.example").await), (ResponseCode::NoError, vec![60]));
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn a_missing_name_is_remembered_as_missing() {
    let upstream = Upstream::start(Manner::Says(ResponseCode::NXDomain)).await;
    let dns = Forwarder::before(&[&upstream]).await;
    for _ in 0..2 {
        let answer = dns.ask("no.example").await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1, "resolvers behind this one cache it, too");
    }
    assert_eq!(upstream.asked(), 1);
    dns.wait(61);
    upstream.now(Manner::Address { ttl: 60 });
    assert_eq!(seen(&dns.ask("no.example").await).0, ResponseCode::NoError);
}

#[tokio::test]
async fn with_the_upstream_dead_cached_names_still_resolve_and_others_are_told() {
    let upstream = Upstream::start(Manner::Address { ttl: 60 }).await;
    let dns = Forwarder::before(&[&upstream]).await;
    dns.ask("kept.example").await;
    upstream.now(Manner::Silent);
    let begun = Instant::now();
    assert_eq!(seen(&dns.ask("new.example").await), (ResponseCode::ServFail, vec![]));
    dns.wait(120);
    assert_eq!(seen(&dns.ask("kept.example").await), (ResponseCode::NoError, vec![30]));
    let asked = upstream.asked();
    assert_eq!(seen(&dns.ask("kept.example").await), (ResponseCode::NoError, vec![30]));
    assert_eq!(upstream.asked(), asked, "the failure is believed for a while");

    let [unresolved] = dns.dns.unresolved_since(begun).try_into().unwrap();
    assert!(unresolved.is_silence());
    assert_eq!(
        unresolved.to_string(),
        format!("new.example could not be resolved: name server {} did not answer", upstream.address)
    );
    assert!(dns.dns.unresolved_since(Instant::now()).is_empty());

    dns.wait(31);
    upstream.now(Manner::Address { ttl: 50 });
    assert_eq!(seen(&dns.ask("kept.example").await), (ResponseCode::NoError, vec![50]));
    dns.wait(60 + 3600);
    upstream.now(Manner::Silent);
    assert_eq!(seen(&dns.ask("kept.example").await).0, ResponseCode::ServFail, "too old");
}

#[tokio::test]
async fn upstreams_are_asked_in_order_and_one_that_was_silent_last() {
    let first = Upstream::start(Manner::Silent).await;
    let second = Upstream::start(Manner::Says(ResponseCode::Refused)).await;
    let third = Upstream::start(Manner::Address { ttl: 60 }).await;
    let dns = Forwarder::before(&[&first, &second, &third]).await;
    assert_eq!(seen(&dns.ask("a.example").await).0, ResponseCode::NoError);
    let asked = (first.asked(), second.asked());
    assert!(asked.0 >= 1 && asked.1 == 1, "{asked:?}");
    first.now(Manner::Address { ttl: 60 });
    assert_eq!(seen(&dns.ask("b.example").await).0, ResponseCode::NoError);
    assert_eq!((first.asked(), second.asked(), third.asked()), (asked.0, 2, 2), "the silent one is spared");

    third.now(Manner::Says(ResponseCode::ServFail));
    first.now(Manner::Says(ResponseCode::Refused));
    let begun = Instant::now();
    assert_eq!(seen(&dns.ask("c.example").await).0, ResponseCode::ServFail);
    let [unresolved] = dns.dns.unresolved_since(begun).try_into().unwrap();
    let troubles: Vec<_> = unresolved.tried.iter().map(|(_, trouble)| trouble.clone()).collect();
    let refused = Trouble::Said(ResponseCode::Refused);
    assert_eq!(troubles, [refused.clone(), Trouble::Said(ResponseCode::ServFail), refused]);
    assert!(!unresolved.is_silence());
}

#[tokio::test]
async fn one_name_that_an_upstream_cannot_tell_does_not_put_it_behind_the_others() {
    let internal = Upstream::start(Manner::Says(ResponseCode::ServFail)).await;
    let public = Upstream::start(Manner::Says(ResponseCode::NXDomain)).await;
    let dns = Forwarder::before(&[&internal, &public]).await;
    assert_eq!(seen(&dns.ask("broken.example").await).0, ResponseCode::NXDomain);
    internal.now(Manner::Address { ttl: 60 });
    assert_eq!(seen(&dns.ask("internal.example").await).0, ResponseCode::NoError);
    assert_eq!(public.asked(), 1);
}

#[tokio::test]
async fn a_failure_is_believed_for_a_moment_and_told_to_each_build_that_meets_it() {
    let upstream = Upstream::start(Manner::Says(ResponseCode::ServFail)).await;
    let dns = Forwarder::before(&[&upstream]).await;
    assert_eq!(seen(&dns.ask("a.example").await).0, ResponseCode::ServFail);
    let second = Instant::now();
    assert_eq!(seen(&dns.ask("a.example").await).0, ResponseCode::ServFail);
    assert_eq!(upstream.asked(), 1);
    let [unresolved] = dns.dns.unresolved_since(second).try_into().unwrap();
    assert_eq!(unresolved.host, "a.example");
    dns.ask("b.example").await;
    for _ in 0..100 {
        dns.ask("a.example").await;
    }
    let hosts: Vec<_> = dns.dns.unresolved_since(second).iter().map(|one| one.host.clone()).collect();
    assert_eq!(hosts, ["b.example", "a.example"], "one name does not drive out the others");
    upstream.now(Manner::Address { ttl: 60 });
    dns.wait(1);
    assert_eq!(seen(&dns.ask("a.example").await).0, ResponseCode::NoError);
}

#[tokio::test]
async fn what_is_too_long_for_udp_goes_over_tcp_on_both_sides() {
    let upstream = Upstream::start(Manner::Long(60)).await;
    let dns = Forwarder::before(&[&upstream]).await;
    let cut = dns.ask("long.example").await;
    assert!(cut.metadata.truncation && cut.answers.len() < 60, "{cut}");
    let mut stream = TcpStream::connect(dns.dns.address()).await.unwrap();
    for _ in 0..2 {
        send_framed(&mut stream, &query("long.example")).await;
        let whole = framed(&mut stream).await;
        assert!(!whole.metadata.truncation && whole.answers.len() == 60, "{whole}");
    }
    let mut roomy = query("long.example");
    roomy.edns.get_or_insert_with(Edns::new).set_max_payload(4096);
    assert_eq!(dns.send(&roomy).await.answers.len(), 60, "it fits into what the client takes");
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn over_tcp_an_upstream_has_what_is_left_of_its_time() {
    let upstream = Upstream::start(Manner::LongAndSlow(60)).await;
    let dns = Forwarder::before(&[&upstream]).await;
    let begun = Instant::now();
    assert_eq!(seen(&dns.ask("long.example").await).0, ResponseCode::ServFail);
    let [unresolved] = dns.dns.unresolved_since(begun).try_into().unwrap();
    assert!(unresolved.is_silence(), "{unresolved}");
}

#[tokio::test]
async fn one_question_of_many_is_asked_once() {
    let upstream = Upstream::start(Manner::Held).await;
    let dns = Forwarder::before(&[&upstream]).await;
    let asked = question("a.example");
    let forwarder = &dns.dns.forwarder;
    // All of them wait by the time the first one's query has arrived: they are polled in turn before it can be.
    let all = join_all((0..50).map(|_| forwarder.answer(&asked)));
    let release = async {
        while upstream.asked() == 0 {
            tokio::task::yield_now().await;
        }
        upstream.held.add_permits(1);
    };
    let (answers, ()) = tokio::join!(all, release);
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().answers.len() == 1));
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn who_asks_for_too_much_leaves_places_for_the_others_and_is_told_what_is_known() {
    let upstream = Upstream::start(Manner::SilentBelowVoid).await;
    let dns = Forwarder::patient(&[&upstream], Duration::from_secs(4)).await;
    dns.ask("kept.example").await;
    let greedy = Client::at(2, &dns).await;
    for n in 0..600 {
        greedy.send(&query(&format!("n{n}{VOID}"))).await;
        if n % 50 == 49 {
            // One socket's queries are taken in their order: all of them have been by then.
            assert_eq!(seen(&greedy.ask("kept.example").await).0, ResponseCode::NoError, "after {n}");
        }
    }
    assert_eq!(seen(&Client::at(3, &dns).await.ask("new.example").await).0, ResponseCode::NoError);
    assert_eq!(seen(&dns.ask("own.example").await).0, ResponseCode::NoError);
}

/// A connection from that address, if it gets an answer over it.
async fn connected(last: u8, to: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
    let mut stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await.unwrap().ok()?;
    answered(&mut stream).await.then_some(stream)
}

/// Whether a query over it gets its answer; it is one that is refused, so no upstream is asked.
async fn answered(stream: &mut TcpStream) -> bool {
    let mut refused = query("a.example");
    refused.queries[0].query_type = RecordType::AXFR;
    let refused = refused.to_vec().unwrap();
    let length = u16::try_from(refused.len()).unwrap().to_be_bytes();
    let exchange = async {
        stream.write_all(&[&length[..], &refused].concat()).await?;
        stream.read_u16().await
    };
    let Ok(length) = tokio::time::timeout(PATIENCE, exchange).await.unwrap() else { return false };
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.is_ok()
}

#[tokio::test]
async fn one_clients_connections_leave_room_for_others() {
    let dns = Forwarder::before(&[&Upstream::start(Manner::Silent).await]).await;
    let to = dns.dns.address();
    let mut kept = Vec::new();
    while let Some(stream) = connected(2, to).await {
        kept.push(stream);
    }
    assert_eq!(kept.len(), 8);
    assert!(connected(3, to).await.is_some() && connected(1, to).await.is_some());
    drop(kept.pop());
    let again = async { while connected(2, to).await.is_none() {} };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_although_something_goes_over_it() {
    let upstream = Upstream::start(Manner::Silent).await;
    let dns = Forwarder::before(&[&upstream]).await;
    let (_udp, tcp) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let life = Duration::from_millis(300);
    tokio::spawn(server::serve_tcp(tcp, address.ip(), dns.dns.forwarder.clone(), life));
    let mut stream = connected(2, address).await.unwrap();
    let until_closed = async { while answered(&mut stream).await {} };
    tokio::time::timeout(PATIENCE, until_closed).await.unwrap();
}

fn edns_version_1() -> Edns {
    let mut edns = Edns::new();
    edns.set_version(1);
    edns
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_never_passed_on() {
    let upstream = Upstream::start(Manner::Address { ttl: 60 }).await;
    let dns = Forwarder::before(&[&upstream]).await;
    let with = |change: fn(&mut Message)| {
        let mut query = query("a.example");
        change(&mut query);
        query
    };
    for (query, code) in [
        (with(|query| query.queries.clear()), ResponseCode::FormErr),
        (with(|query| query.queries.push(query.queries[0].clone())), ResponseCode::FormErr),
        (with(|query| query.metadata.op_code = OpCode::Status), ResponseCode::NotImp),
        (with(|query| query.queries[0].query_type = RecordType::AXFR), ResponseCode::Refused),
        (with(|query| query.edns = Some(edns_version_1())), ResponseCode::BADVERS),
    ] {
        // By number: 16 has two names.
        assert_eq!(u16::from(seen(&dns.send(&query).await).0), u16::from(code), "{query}");
    }
    let mut torn = query("a.example").to_vec().unwrap();
    torn.pop();
    assert_eq!(seen(&dns.send_bytes(&torn).await).0, ResponseCode::FormErr);

    // An answer, and half a header: neither gets a word, or the next query's answer would not be the first to come.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let answer = with(|query| query.metadata.message_type = hickory_proto::op::MessageType::Response);
    let last = query("a.example");
    let mut sent: VecDeque<Vec<u8>> = [answer.to_vec().unwrap(), vec![1, 2, 3], last.to_vec().unwrap()].into();
    while let Some(bytes) = sent.pop_front() {
        socket.send_to(&bytes, dns.dns.address()).await.unwrap();
    }
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, last.metadata.id);
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap();
    let settings = DnsSettings { listen, upstreams: vec![listen], timeout: TIMEOUT, stale: Duration::from_secs(1) };
    let error = Dns::start(settings).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen for queries for names on {listen}"));
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}
