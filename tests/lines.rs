//! Waiting lines and tags: who is first, who has the tag, and what a second start of the same build is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::dev::{Dev, eventually, registry_port};
use crate::harness::running::Running;
use crate::harness::spine::{Ran, kiln, spine, tree};

fn run(data: &Path, args: &[&str]) -> Ran {
    Ran::of(&mut kiln(data, args))
}

/// Starts a build and gives its id.
fn start(data: &Path, dir: &Path, project: &str, more: &[&str]) -> String {
    let mut args = vec!["up", dir.to_str().unwrap(), "--project", project, "--detach", "--output", "json"];
    args.extend(more);
    run(data, &args).ok().json()["build_id"].as_str().unwrap().to_owned()
}

/// Waits for a build's end and gives its result.
fn result(data: &Path, id: &str) -> Value {
    eventually("the build has ended", Duration::from_secs(120), || {
        let shown = run(data, &["builds", "show", id, "--output", "json"]).json();
        let ended = ["succeeded", "failed", "cancelled"].contains(&shown["status"].as_str().unwrap_or_default());
        ended.then(|| shown["result"].clone())
    })
}

/// When its cell picked a build up, by the builder's clock: the time of its log's first record.
async fn picked_up(dev: &Dev, id: &str) -> u64 {
    let url = format!("{}/v1/builds/{}/events?follow=false", dev.ready.api, id.replace('/', "%2F"));
    let request = reqwest::Client::new().get(url).bearer_auth(&dev.ready.api_token);
    let events = request.send().await.unwrap().text().await.unwrap();
    let records = events.lines().filter_map(|line| line.strip_prefix("data:"));
    let records = records.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let first = records.filter_map(|record| record["at_ms"].as_u64()).next();
    first.unwrap_or_else(|| panic!("{id} has no record: {events}"))
}

/// One slot, and it is taken: those that wait for it run one after the other, in the order in which they came. A free slot is another
/// matter: who comes just when it becomes free may be before one that has waited for less than five seconds (Temporal's
/// `matching.backlogNegligibleAge`).
#[tokio::test(flavor = "multi_thread")]
async fn first_come_is_first_served() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let before = Running::begin(&dev, "before", 600.0);
    let context = tree(&[("Dockerfile", "FROM busybox\nARG N\nRUN echo build $N\n")]);
    let ids: Vec<String> = (0..8)
        .map(|n| {
            let arguments = ["--key", &format!("k{n}"), "--build-arg", &format!("N={n}")];
            let id = start(&dev.data, context.path(), "line", &arguments);
            eventually("it is in the cell's line", Duration::from_secs(30), || {
                let shown = run(&dev.data, &["builds", "show", &id, "--output", "json"]).ok().json();
                shown["cell"].is_string().then_some(())
            });
            id
        })
        .collect();
    run(&dev.data, &["builds", "cancel", &before.id]).ok();
    let mut order = Vec::new();
    for id in &ids {
        let ended = result(&dev.data, id);
        assert_eq!(ended["status"], "succeeded", "{ended}");
        assert_eq!(ended["attempts"].as_array().unwrap().len(), 1, "{ended}");
        order.push((picked_up(&dev, id).await, id.clone()));
    }
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(order, sorted, "in the order in which they came");
}

/// Two builds for one tag: it ends at the one that started later, though the other one ended last.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_ends_at_the_build_that_started_later() {
    let data = &spine().data;
    let tag = format!("{}/race/app:latest", spine().ready.registry);
    let slow = tree(&[("Dockerfile", "FROM busybox\nRUN echo begun; sleep 8; echo slow > /who\n")]);
    let quick = tree(&[("Dockerfile", "FROM busybox\nRUN echo quick > /who\n")]);
    let older = start(data, slow.path(), "race", &["-t", &tag]);
    let newer = start(data, quick.path(), "race", &["-t", &tag]);
    let newer = result(data, &newer);
    let shown = run(data, &["builds", "show", &older, "--output", "json"]).json();
    assert_eq!(shown["status"], "running", "the older one is still at it: {shown}");
    let older = result(data, &older);
    assert_eq!((&newer["tags"][0]["outcome"], &older["tags"][0]["outcome"]), (&"written".into(), &"superseded".into()));
    assert_ne!(newer["digest"], older["digest"]);
    let url = format!("http://{}/v2/race/app/manifests/latest", spine().ready.registry);
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let answer = reqwest::Client::new().head(url).header("accept", accept).send().await.unwrap();
    assert_eq!(answer.headers()["docker-content-digest"].to_str().unwrap(), newer["digest"]);
}

/// A key stands for one input, also after a failure: with the file mended it is another build.
#[test]
fn a_failed_keys_other_input_is_refused_by_field() {
    let dir = tree(&[("Dockerfile", "FROM busybox\nCOPY n /\nRUN grep -q good /n\n"), ("n", "bad")]);
    let up = || spine().up(dir.path(), "again", &["--key", "commit-1"]);
    let first = up();
    assert_eq!(first.code, 1, "{}", first.all());
    let again = run(&spine().data, &["builds", "retry", "again/commit-1", "--output", "json"]);
    assert_eq!(again.code, 1, "the same file fails again: {}", again.all());

    fs::write(dir.path().join("n"), "good").unwrap();
    let mended = up();
    assert_eq!(mended.code, 3, "{}", mended.all());
    let message = mended.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("these fields differ: snapshot, tags"), "{message}");
    let again = run(&spine().data, &["builds", "retry", "again/commit-1", "--output", "json"]);
    assert_eq!(again.code, 1, "the key still stands for its first input: {}", again.all());
    spine().up(dir.path(), "again", &["--key", "commit-2"]).ok();
}

/// Unchanged input, the cause gone: the retry succeeds, on the cell that has the steps in its cache.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_succeeds_once_the_registry_is_back() {
    let port = registry_port();
    let dir = tree(&[("Dockerfile", "FROM busybox\nRUN date > /when\n")]);
    let tag = format!("127.0.0.1:{port}/retry/app:v1");
    let first = spine().up(dir.path(), "retry", &["--key", "k", "-t", &tag]);
    assert_eq!(first.code, 75, "{}", first.all());
    let registry = tokio::spawn(forward(port));
    let again = run(&spine().data, &["builds", "retry", "retry/k", "--output", "json"]).ok().json();
    registry.abort();
    assert_eq!(again["cell"], first.json()["cell"]);
    assert_eq!((&again["cached_steps"], &again["total_steps"]), (&1.into(), &1.into()), "{again}");
    let shown = run(&spine().data, &["builds", "show", "retry/k", "--output", "json"]).json();
    let runs: Vec<_> = shown["runs"].as_array().unwrap().iter().map(|run| run["status"].as_str().unwrap()).collect();
    assert_eq!(runs, ["succeeded", "failed"]);
}

/// The registry at another port.
async fn forward(port: u16) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    while let Ok((mut near, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut far = tokio::net::TcpStream::connect(&spine().ready.registry).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}
