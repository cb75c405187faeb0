//! Hostile manifests, many at once: they are refused, and the api's memory stays within what it has for them.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::Api;

/// How many at once.
const AT_ONCE: usize = 64;
/// The most memory that the process may have, bytes.
const MOST: u64 = 512 << 20;

fn number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A manifest of these encoded entries, and what follows them, and its snapshot's id.
fn manifest(entries: &[u8], rest: &[u8]) -> (String, Bytes) {
    let mut body = Vec::with_capacity(entries.len() + rest.len() + 8);
    number(&mut body, entries.len() as u64);
    body.extend_from_slice(entries);
    body.extend_from_slice(rest);
    let stored = [b"kiln-manifest 1\n".as_slice(), &zstd::bulk::compress(&body, 1).unwrap()].concat();
    (blake3::hash(entries).to_hex().to_string(), stored.into())
}

fn entries(count: u64) -> Vec<u8> {
    let mut out = b"kiln-entries 1\n".to_vec();
    number(&mut out, count);
    out
}

/// What takes many times its own size, each in another way.
fn hostile() -> Vec<(String, Bytes)> {
    // One pack of 45 million frames of three bytes.
    let mut frames = vec![1];
    frames.extend([7; 32]);
    number(&mut frames, 8 << 20);
    number(&mut frames, 45 << 20);
    frames.extend([0, 1, 1].repeat(45 << 20));
    // One file of four million chunks.
    let mut chunks = entries(1);
    chunks.extend(b"\x01f");
    number(&mut chunks, 0o755 << 2 | 3);
    number(&mut chunks, 4 << 20);
    chunks.extend([[1].as_slice(), &[9; 32]].concat().repeat(4 << 20));
    // Four million packs, whose digests differ in their ends.
    let mut packs = Vec::new();
    number(&mut packs, 4 << 20);
    for n in 0..4_u32 << 20 {
        packs.extend([0; 28]);
        packs.extend(n.to_be_bytes());
        packs.extend([1, 0]);
    }
    // As long as it may be, and nothing in it.
    let noise: Vec<u8> = (0..60_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    vec![
        manifest(&entries(0), &frames),
        manifest(&chunks, &[0; 9]),
        manifest(&entries(0), &packs),
        manifest(&noise, &[]),
        ("0".repeat(64), [b"kiln-manifest 1\n".as_slice(), &noise].concat().into()),
    ]
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Prints the most memory that the process had meanwhile, beyond the manifests that the clients send.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test below, in a process of its own"]
async fn many_hostile_manifests() {
    let hostile = hostile();
    let of_clients: u64 = hostile.iter().map(|(_, manifest)| manifest.len() as u64).sum();
    let api = Api::start(false).await;
    api.post("/v1/projects", json!({ "name": "hello" })).await;
    let (most, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watching = std::thread::spawn({
        let (most, over) = (most.clone(), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let requests = (0..AT_ONCE).map(|n| {
        let (id, manifest) = hostile[n % hostile.len()].clone();
        let request = api.request(Method::PUT, &format!("/v1/projects/hello/snapshots/{id}?session=s"));
        // A client that is still sending when it is refused may find the connection closed.
        async move { request.body(manifest).send().await.ok().map(|answer| answer.status()) }
    });
    let statuses: Vec<_> = futures::future::join_all(requests).await.into_iter().flatten().collect();
    over.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    let refused = |status: &StatusCode| {
        matches!(*status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_REQUEST)
    };
    assert!(statuses.iter().all(refused), "{statuses:?}");
    let checked = statuses.iter().filter(|status| **status == StatusCode::UNPROCESSABLE_ENTITY).count();
    assert!(checked > 0, "{statuses:?}");
    println!("{checked} checked; most {} bytes", most.load(Ordering::Relaxed).saturating_sub(of_clients));
    api.stop().await;
}

#[test]
fn many_hostile_manifests_at_once_stay_within_the_apis_memory() {
    let exe = std::env::current_exe().unwrap();
    let name = "api::tests::manifests::many_hostile_manifests";
    let ran = Command::new(exe).args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let most = said.lines().find_map(|line| line.split_once("most ")?.1.strip_suffix(" bytes")?.parse::<u64>().ok());
    let most = most.unwrap();
    println!("{AT_ONCE} hostile manifests at once: {} MB", most / 1_000_000);
    assert!(most < MOST, "{} MB", most / 1_000_000);
}
