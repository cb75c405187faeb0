//! Listeners over real sockets: certificates that change, peers that do nothing, more peers than there is room for.

#[path = "../../tests/harness/pki.rs"]
pub mod pki;

use std::path::{Path, PathBuf};

use activities::trust::Trust;
use axum::Router;
use axum::routing::get;
use pki::Pki;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::identity::IdentityError;
use super::*;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Limits that are never reached.
const PATIENT: Limits = Limits { idle: PATIENCE, stall: PATIENCE };

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    _task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn served(identity: Option<Identity>, limits: Limits, max_connections: usize) -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (tcp.local_addr().unwrap(), CancellationToken::new());
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        "slow"
    };
    let never = async || std::future::pending::<&str>().await;
    let app = Router::new().route("/", get(async || "hello")).route("/slow", get(slow)).route("/never", get(never));
    let listener = Listener::on(tcp, identity, &["h2", "http/1.1"], max_connections);
    Served { address, stop: stop.clone(), _task: tokio::spawn(serve(listener, app, limits, stop)) }
}

fn identity((cert, key): &(PathBuf, PathBuf)) -> Identity {
    Identity::of(cert, key).unwrap().unwrap().eager()
}

/// The certificate that a new connection is shown.
async fn shown(address: SocketAddr, ca: &Path) -> CertificateDer<'static> {
    let config = Trust::with_file(ca).unwrap().client().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn leaf(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).unwrap()
}

#[tokio::test]
async fn a_changed_certificate_is_used_and_an_unusable_one_is_not() {
    let pki = Pki::new();
    let (first, second) = (pki.issue("first"), pki.issue("second"));
    let live = (pki.path("live.pem"), pki.path("live.key"));
    let put = |from: &(PathBuf, PathBuf)| {
        std::fs::copy(&from.0, &live.0).unwrap();
        std::fs::copy(&from.1, &live.1).unwrap();
    };
    put(&first);
    let served = served(Some(identity(&live)), PATIENT, 16).await;
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&first.0));
    put(&second);
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&second.0));
    std::fs::write(&live.0, "no certificate").unwrap();
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&second.0), "an unreadable file");
    std::fs::copy(&first.0, &live.0).unwrap();
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&second.0), "a certificate without its key");
    put(&first);
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&first.0));
}

#[test]
fn a_certificate_and_a_key_come_together() {
    let pki = Pki::new();
    let ((cert, key), (_, other)) = (pki.issue("a"), pki.issue("b"));
    assert!(Identity::of(Path::new(""), Path::new("")).unwrap().is_none());
    assert!(matches!(Identity::of(&cert, Path::new("")), Err(IdentityError::Half)));
    assert!(matches!(Identity::of(&cert, &other), Err(IdentityError::Pair { .. })));
    assert!(matches!(Identity::of(&key, &key), Err(IdentityError::Certificate { .. })));
    assert!(matches!(Identity::of(&cert, &cert), Err(IdentityError::Key { .. })));
    assert!(Identity::of(&cert, &key).unwrap().is_some());
}

#[tokio::test]
async fn https_needs_an_authority_that_the_client_trusts() {
    let (pki, other) = (Pki::new(), Pki::new());
    let served = served(Some(identity(&pki.issue("api"))), PATIENT, 16).await;
    let url = format!("https://localhost:{}", served.address.port());
    let client = |ca: &Path| Trust::with_file(ca).unwrap().http(reqwest::Client::builder()).unwrap().build().unwrap();
    let answer = client(&pki.ca()).get(&url).send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert!(client(&other.ca()).get(&url).send().await.unwrap_err().is_connect());
    let plain = reqwest::get(format!("http://{}", served.address)).await;
    assert!(plain.is_err(), "plain HTTP is not answered");
}

/// What a connection gets until it is closed, after these bytes were sent on it.
async fn until_closed(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let read = tokio::time::timeout(PATIENCE / 2, stream.read_to_end(&mut got)).await;
    read.expect("the connection is closed").ok();
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let limits = Limits { idle: Duration::from_millis(300), stall: PATIENCE };
    let served = served(None, limits, 16).await;
    assert_eq!(until_closed(served.address, b"").await, "");
    assert_eq!(until_closed(served.address, b"GE").await, "", "not even a version");
    assert_eq!(until_closed(served.address, b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await, "");
    assert!(until_closed(served.address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ends_with("hello"));
    let slow = until_closed(served.address, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(slow.ends_with("slow"), "a request that takes longer is not idle: {slow}");
}

#[tokio::test]
async fn an_http2_connection_that_only_pings_is_closed() {
    let limits = Limits { idle: Duration::from_millis(300), stall: PATIENCE };
    let served = served(None, limits, 16).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"pingpong"].concat();
    let pinging = tokio::spawn(async move {
        while writer.write_all(&ping).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut got = Vec::new();
    let read = tokio::time::timeout(PATIENCE / 2, reader.read_to_end(&mut got)).await;
    read.expect("the connection is closed").ok();
    pinging.abort();
}

#[tokio::test]
async fn a_request_of_which_nothing_moves_is_given_up() {
    let limits = Limits { idle: Duration::from_millis(100), stall: Duration::from_millis(300) };
    let served = served(None, limits, 16).await;
    assert_eq!(until_closed(served.address, b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await, "");
}

#[tokio::test]
async fn connections_over_the_cap_wait_for_room() {
    let served = served(None, PATIENT, 1).await;
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut first = TcpStream::connect(served.address).await.unwrap();
    first.write_all(request).await.unwrap();
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let mut second = TcpStream::connect(served.address).await.unwrap();
    second.write_all(request).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), second.read_exact(&mut head)).await;
    assert!(early.is_err(), "served beside the first one");
    drop(first);
    let late = tokio::time::timeout(PATIENCE, second.read_exact(&mut head)).await;
    late.expect("served in the first one's place").unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_shake_hands_takes_no_place_for_long() {
    let pki = Pki::new();
    let served = served(Some(identity(&pki.issue("api"))), PATIENT, 1).await;
    // Something that is no TLS ends its connection at once; the next one finds room.
    assert!(!until_closed(served.address, b"GET / HTTP/1.1\r\n\r\n").await.contains("hello"));
    assert_eq!(shown(served.address, &pki.ca()).await, leaf(&pki.path("api.pem")));
}
