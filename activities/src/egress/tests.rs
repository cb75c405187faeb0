//! Against servers on this machine's loopback, which is listed or not.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const LIMITS: Limits = Limits { bytes: 1000, deadline: Duration::from_secs(20), redirects: 3 };

/// Answers each request by its first line; keeps the requests. Ends with its value.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", answer).await
    }

    async fn start_on(listen: &str, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind(listen).await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    seen.lock().unwrap().push(request.clone());
                    let _ = stream.write_all(answer(request.lines().next().unwrap_or_default()).as_bytes()).await;
                });
            }
        });
        Self { address, requests, task }
    }

    fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A head, and a body of the length that the head states.
async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return text;
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn redirect(status: u16, location: &str) -> String {
    format!("HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

fn policy(listed: &[&str]) -> Policy {
    let listed = listed.iter().map(|entry| entry.parse().unwrap()).collect();
    Policy { listed, loopback_registries: false }
}

fn egress(listed: &[&str]) -> Egress {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Egress::new(policy(listed), "kiln-test").unwrap()
}

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

/// A DNS that gives the next of these answers for each question.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>);

impl Names {
    fn with(self, name: &str, answers: &[&[&str]]) -> Self {
        let parsed = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        self.0.lock().unwrap().insert(name.to_owned(), parsed);
        self
    }

    fn left(&self, name: &str) -> usize {
        self.0.lock().unwrap()[name].len()
    }
}

impl Lookup for Names {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut names = self.0.lock().unwrap();
        let answers = names.get_mut(name).filter(|answers| !answers.is_empty());
        let answer = answers.map(|answers| answers.remove(0));
        Box::pin(async move { answer.ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }
}

#[test]
fn private_local_and_reserved_addresses_are_not_public() {
    for text in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
    ] {
        assert!(!is_public(text.parse().unwrap()), "{text}");
    }
    for text in [
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.17.0.1",
        "198.20.0.1",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2606:4700:4700::1111",
        "2a00:1450::1",
    ] {
        assert!(is_public(text.parse().unwrap()), "{text}");
    }
}

#[test]
fn entries_are_networks_addresses_and_hosts() {
    for text in
        ["10.1.0.0/16", "fd00::/8", "10.1.2.3", "::1", "10.1.2.3:5000", "[::1]:5000", "r.internal", "r.internal:5000"]
    {
        assert!(text.parse::<Listed>().is_ok(), "{text}");
    }
    for text in
        ["", "10.1.0.0/33", "fd00::/129", "r.internal:", "r.internal:x", "r.internal:70000", "a b", "http://a", "/8"]
    {
        assert!(text.parse::<Listed>().is_err(), "{text:?}");
    }
}

#[test]
fn a_url_is_allowed_by_its_host_and_port() {
    let policy = policy(&["10.1.0.0/16", "10.2.0.1:5000", "r.internal:5000", "any.internal"]);
    let allowed = |text: &str| policy.check(&url(text), None).is_ok();
    for text in [
        "https://1.1.1.1/",
        "https://r.example/",
        "http://10.1.9.9:1/",
        "http://10.2.0.1:5000/",
        "http://r.internal:5000/",
        "http://R.INTERNAL.:5000/",
        "http://any.internal:9/",
        "http://[::ffff:10.1.0.1]/",
    ] {
        assert!(allowed(text), "{text}");
    }
    for text in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://10.2.0.1/",
        "http://10.2.0.1:5001/",
        "http://r.internal/",
        "http://r.internal.:5001/",
        "ftp://r.example/",
        "file:///etc/passwd",
        "http://user@r.example/",
        "http://user:secret@r.example/",
    ] {
        assert!(!allowed(text), "{text}");
    }
}

#[test]
fn a_registry_on_the_loopback_brings_its_own_port_and_no_other() {
    let policy = Policy { loopback_registries: true, ..Policy::default() };
    let allowed = |text: &str, registry: Option<&str>| policy.check(&url(text), registry).is_ok();
    for host in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
        assert!(allowed(&format!("http://{host}/token"), Some(host)), "{host}");
        assert!(!allowed(&format!("http://{host}/token"), None), "{host}");
        assert!(!allowed("http://127.0.0.1:7233/", Some(host)), "{host}");
    }
    // Only the loopback, and not through a name that the DNS points there.
    assert!(!allowed("http://10.0.0.1:5000/", Some("10.0.0.1:5000")));
    assert!(!policy.accepts("r.example", "127.0.0.1".parse().unwrap()));
}

#[tokio::test]
async fn an_unlisted_address_is_not_connected_to() {
    let server = Server::start(|_| ok("internal")).await;
    let error = egress(&[]).send(Request::get(server.url("/")), LIMITS).await.unwrap_err();
    assert!(matches!(&error, EgressError::Refused(Refused { why: Why::Address(_), .. })), "{error:?}");
    assert!(error.is_final());
    let answer = egress(&[&server.address.to_string()]).send(Request::get(server.url("/")), LIMITS).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, b"internal".as_slice()));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_name_leads_to_its_checked_addresses_only() {
    let inner = Server::start(|_| ok("internal")).await;
    let port = inner.address.port();
    let outer = Server::start_on(&format!("127.0.0.2:{port}"), |_| ok("listed")).await;
    let names = Names::default()
        .with("inner.example", &[&["127.0.0.1"]])
        .with("mixed.example", &[&["127.0.0.1", "127.0.0.2"]])
        // A DNS that changes its answer once the first was checked.
        .with("rebound.example", &[&["127.0.0.2"], &["127.0.0.1"]]);
    let client = Egress::with_lookup(policy(&["127.0.0.2/32"]), "kiln-test", names.clone()).unwrap();
    let get = |name: &str| client.send(Request::get(url(&format!("http://{name}:{port}/"))), LIMITS);
    let error = get("inner.example").await.unwrap_err();
    assert!(matches!(&error, EgressError::Refused(Refused { why: Why::Address(_), .. })), "{error:?}");
    assert_eq!(get("mixed.example").await.unwrap().body.as_ref(), b"listed");
    assert_eq!(get("rebound.example").await.unwrap().body.as_ref(), b"listed");
    assert_eq!(names.left("rebound.example"), 1, "the name was resolved once");
    assert!(get("rebound.example").await.is_err());
    let error = get("unknown.example").await.unwrap_err();
    assert!(matches!(error, EgressError::Request { .. }), "{error:?}");
    assert_eq!((inner.requests().len(), outer.requests().len()), (0, 2));
}

#[tokio::test]
async fn each_redirect_is_checked_and_counted() {
    let inner = Server::start(|_| ok("internal")).await;
    let target = inner.url("/secret").to_string();
    let outer = Server::start(move |line| match line.split(' ').nth(1).unwrap() {
        "/in" => redirect(302, &target),
        "/loop" => redirect(307, "/loop"),
        "/twice" => redirect(301, "/once"),
        "/once" => redirect(303, "/end"),
        "/file" => redirect(302, "file:///etc/passwd"),
        "/broken" => redirect(302, "http://[/"),
        _ => ok("end"),
    })
    .await;
    let client = egress(&[&outer.address.to_string()]);
    let get = |path: &str| client.send(Request::get(outer.url(path)), LIMITS);
    assert_eq!(get("/twice").await.unwrap().body.as_ref(), b"end");
    assert!(matches!(get("/in").await, Err(EgressError::Refused(Refused { why: Why::Address(_), .. }))));
    assert!(matches!(get("/file").await, Err(EgressError::Refused(Refused { why: Why::Url, .. }))));
    assert!(matches!(get("/broken").await, Err(EgressError::Redirect { .. })));
    assert!(matches!(get("/loop").await, Err(EgressError::TooManyRedirects { limit: 3, .. })));
    assert_eq!(inner.requests().len(), 0);
    assert_eq!(outer.requests().iter().filter(|request| request.starts_with("GET /loop")).count(), 4);
}

#[tokio::test]
async fn bodies_and_credentials_stay_with_their_origin() {
    let other = Server::start(|_| ok("other")).await;
    let elsewhere = other.url("/").to_string();
    let own = Server::start(move |line| match line.split(' ').nth(1).unwrap() {
        "/elsewhere" => redirect(307, &elsewhere),
        "/again" => redirect(307, "/end"),
        "/turned" => redirect(302, "/end"),
        _ => ok("own"),
    })
    .await;
    let client = egress(&["127.0.0.0/8"]);
    let request = |method, path: &str, body: bool| {
        let mut request = Request::new(method, own.url(path));
        request.headers.insert(ACCEPT, HeaderValue::from_static("text/plain"));
        request.headers.insert("x-own", HeaderValue::from_static("kept"));
        request.authorization = Some(HeaderValue::from_static("Basic canary"));
        request.body = body.then(|| Bytes::from_static(b"canary"));
        client.send(request, LIMITS)
    };
    assert_eq!(request(Method::GET, "/elsewhere", false).await.unwrap().body.as_ref(), b"other");
    assert!(matches!(request(Method::POST, "/elsewhere", true).await, Err(EgressError::RedirectedBody { .. })));
    assert!(matches!(request(Method::POST, "/turned", true).await, Err(EgressError::RedirectedBody { .. })));
    assert_eq!(request(Method::POST, "/again", true).await.unwrap().body.as_ref(), b"own");
    let (seen, own) = (other.requests(), own.requests());
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].contains("canary") && !seen[0].contains("x-own") && seen[0].contains("text/plain"), "{}", seen[0]);
    let last = own.last().unwrap();
    assert!(last.starts_with("POST /end") && last.matches("canary").count() == 2, "{last}");
}

#[tokio::test]
async fn answers_are_bounded_in_size_and_time() {
    let server = Server::start(|line| match line.split(' ').nth(1).unwrap() {
        "/fits" => ok(&"x".repeat(1000)),
        "/long" => ok(&"x".repeat(1001)),
        // No length: more than the limit, until the client goes.
        "/stream" => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", "x".repeat(1 << 20)),
        // Promises a body and closes.
        _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_owned(),
    })
    .await;
    let client = egress(&["127.0.0.1"]);
    let get = |path: &str, limits| client.send(Request::get(server.url(path)), limits);
    assert_eq!(get("/fits", LIMITS).await.unwrap().body.len(), 1000);
    assert!(matches!(get("/long", LIMITS).await, Err(EgressError::TooLong { limit: 1000, .. })));
    assert!(matches!(get("/stream", LIMITS).await, Err(EgressError::TooLong { limit: 1000, .. })));
    assert!(matches!(get("/short", LIMITS).await, Err(EgressError::Request { .. })));

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let waiting = Request::get(url(&format!("http://{}/", silent.local_addr().unwrap())));
    let begun = Instant::now();
    let error = client.send(waiting, Limits { deadline: Duration::from_millis(200), ..LIMITS }).await.unwrap_err();
    assert!(matches!(error, EgressError::Slow { .. }) && !error.is_final(), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Tokens of registries, as buildkitd's sessions and publish fetch them.
mod tokens {
    use buildkit::{Credential, TokenError, fetch_token};

    use super::*;

    const ASKED: (&str, &str) = ("service", "repository:a:pull");

    async fn fetch(
        client: &Egress,
        registry: &str,
        realm: &Url,
        credential: Option<&Credential>,
    ) -> Result<String, TokenError> {
        fetch_token(client, registry, (realm.as_str(), ASKED.0, ASKED.1), credential).await
    }

    fn password() -> Credential {
        Credential::Basic { username: "user".into(), password: "canary".into() }
    }

    #[tokio::test]
    async fn a_realm_on_an_internal_address_is_not_asked() {
        let internal = Server::start(|_| ok(r#"{"token":"what the internal service answered"}"#)).await;
        let client = egress(&[]);
        for credential in [None, Some(password())] {
            let error = fetch(&client, "r.example", &internal.url("/token"), credential.as_ref()).await.unwrap_err();
            assert!(error.is_refusal(), "{error:?}");
        }
        // A registry of the loopback that a build named opens its own port only.
        let policy = Policy { loopback_registries: true, ..Policy::default() };
        let client = Egress::new(policy, "kiln-test").unwrap();
        let error = fetch(&client, "127.0.0.1:1", &internal.url("/token"), None).await.unwrap_err();
        assert!(error.is_refusal(), "{error:?}");
        assert_eq!(internal.requests().len(), 0);
        let own = internal.address.to_string();
        assert!(fetch(&client, &own, &internal.url("/token"), Some(&password())).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_token_is_not_passed_on() {
        let server = Server::start(|line| match line {
            line if line.contains("/page") => ok("<html>the console of something else</html>"),
            line if line.contains("/json") => ok(r#"{"secret":"canary"}"#),
            line if line.contains("/long") => ok(&format!(r#"{{"token":"{}"}}"#, "x".repeat(64 << 10))),
            _ => redirect(302, "http://127.0.0.1:1/"),
        })
        .await;
        let client = egress(&[&server.address.to_string()]);
        let get = |path: &str| {
            let (client, realm) = (client.clone(), server.url(path));
            async move { fetch(&client, "r.example", &realm, None).await.unwrap_err() }
        };
        for path in ["/page", "/json"] {
            let error = get(path).await;
            assert!(matches!(error, TokenError::NoToken { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
        assert!(get("/long").await.is_refusal());
        assert!(get("/elsewhere").await.is_refusal());
    }

    #[tokio::test]
    async fn an_endless_answer_is_not_read_to_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            let chunk = vec![b' '; 1 << 20];
            let mut sent = 0_u64;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while sent < 2 << 30 && stream.write_all(&chunk).await.is_ok() {
                sent += chunk.len() as u64;
            }
            sent
        });
        let client = egress(&["127.0.0.1"]);
        let error = fetch(&client, "r.example", &url(&format!("http://{address}/")), None).await.unwrap_err();
        assert!(error.is_refusal(), "{error:?}");
        let sent = server.await.unwrap();
        assert!(sent < 64 << 20, "the server got rid of {sent} bytes");
    }

    #[tokio::test]
    async fn credentials_go_in_the_clear_to_listed_hosts_only() {
        let server = Server::start(|_| ok(r#"{"token":"t"}"#)).await;
        let names = Names::default().with("realm.example", &[&["127.0.0.1"]]);
        let client = Egress::with_lookup(policy(&["127.0.0.1"]), "kiln-test", names).unwrap();
        let by_name = url(&format!("http://realm.example:{}/token", server.address.port()));
        let error = fetch(&client, "r.example", &by_name, Some(&password())).await.unwrap_err();
        assert!(error.is_refusal(), "{error:?}");
        assert_eq!(server.requests().len(), 0);
        // Without credentials there is nothing to lose.
        assert_eq!(fetch(&client, "r.example", &by_name, None).await.unwrap(), "t");
        assert_eq!(fetch(&client, "r.example", &server.url("/token"), Some(&password())).await.unwrap(), "t");
    }
}
