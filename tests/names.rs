//! Names in a build: the cell's forwarder, between its steps and a resolver of the test's own.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::dev::Dev;
use crate::harness::spine::{Ran, kiln, tree};

/// What every name resolves to.
const ADDRESS: [u8; 4] = [192, 0, 2, 7];
/// An hour.
const TTL: [u8; 4] = [0, 0, 14, 16];
/// The header of a message, bytes.
const HEADER: usize = 12;

/// Knows all names until it falls silent.
struct Resolver {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
}

impl Resolver {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let resolver = Self { address: socket.local_addr().unwrap(), silent: Arc::default() };
        let silent = resolver.silent.clone();
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                if !silent.load(Ordering::Relaxed) {
                    socket.send_to(&answer(&query[..length]), client).unwrap();
                }
            }
        });
        resolver
    }
}

/// RFC 1035, section 4: the same id and question, and the address, if it is one that is asked for (type 1).
fn answer(query: &[u8]) -> Vec<u8> {
    let mut end = HEADER;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = &query[HEADER..end + 5];
    let found = question[question.len() - 4..] == [0, 1, 0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(question);
    if found {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(TTL);
        answer.extend([0, 4]);
        answer.extend(ADDRESS);
    }
    answer
}

fn up(dev: &Dev, run: &str) -> Ran {
    let dir = tree(&[("Dockerfile", &format!("FROM busybox\nRUN {run}\n"))]);
    let dir: &Path = dir.path();
    let args = ["up", dir.to_str().unwrap(), "--project", "names", "--output", "json", "--progress", "plain"];
    Ran::of(&mut kiln(&dev.data, &args))
}

#[test]
fn with_the_resolver_dead_cached_names_resolve_and_a_build_that_fails_says_dns() {
    let resolver = Resolver::start();
    let dir = tempfile::tempdir().unwrap();
    let upstream = format!("dns.upstreams={}", resolver.address);
    let set = ["--set", &upstream, "--set", "dns.timeout_ms=300"];
    let dev = Dev::start(&dir.path().join("data"), &[&["--cells", "1", "--seed", "busybox"], &set[..]].concat());
    up(&dev, "nslookup kept.example | grep 192.0.2.7").ok();

    resolver.silent.store(true, Ordering::Relaxed);
    up(&dev, "echo again; nslookup kept.example | grep 192.0.2.7").ok();
    let failed = up(&dev, "nslookup new.example");
    assert_eq!(failed.code, 75, "not the user's error: {}", failed.all());
    let error = &failed.json()["error"];
    let expected = format!("DNS: new.example could not be resolved: name server {} did not answer; ", resolver.address);
    assert!(error["message"].as_str().is_some_and(|message| message.starts_with(&expected)), "{error}");
    assert_eq!(error["class"], "transient", "{error}");
    assert!(failed.stderr.contains("trying again"), "{}", failed.all());
}
