//! Registry credentials and build secrets on whole paths: they work for as long as a build takes, and are found nowhere afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::harness::dev::eventually;
use crate::harness::gate::{Ask, Gate, Keys};
use crate::harness::scan::Needles;
use crate::harness::spine::{Ran, kiln, spine, tree};
use crate::harness::tool;

/// Shorter than the builds below.
const TOKEN_LIFE: Duration = Duration::from_secs(2);

/// `kiln up` with the docker configuration in `config`.
fn up(dir: &Path, config: &Path, project: &str, more: &[&str]) -> Ran {
    let path = dir.to_str().unwrap();
    let mut args = vec!["up", path, "--project", project, "--output", "json", "--progress", "plain"];
    args.extend(more);
    Ran::of(kiln(&spine().data, &args).env("DOCKER_CONFIG", config))
}

/// What a tag points at in the registry behind all gates.
async fn tagged(repository: &str, tag: &str) -> String {
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", spine().ready.registry);
    let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
    let answer = reqwest::Client::new().head(url).header("accept", accept).send().await.unwrap();
    answer.headers()["docker-content-digest"].to_str().unwrap().to_owned()
}

/// Pulls its base from the gate, works for longer than a token lives, pushes to the gate; then a second build at once, which must not
/// live on the first one's token.
async fn outlives_its_tokens(ask: Ask, repository: &str) -> Gate {
    let gate = Gate::open(&spine().ready.registry, ask, &Keys::new()).await;
    let config = tempfile::tempdir().unwrap();
    gate.docker_config(config.path());
    let dockerfile = format!("FROM {}/library/busybox\nRUN sleep 4; date > /now\n", gate.address);
    let dir = tree(&[("Dockerfile", &dockerfile)]);
    for tag in ["v1", "v2"] {
        let name = format!("{}/{repository}:{tag}", gate.address);
        let ran = up(dir.path(), config.path(), "tokens", &["--no-cache", "-t", &name]).ok();
        assert_eq!(ran.json()["attempts"], 1, "{}", ran.all());
        assert_eq!(ran.json()["digest"], tagged(repository, tag).await);
    }
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_expire_in_mid_build_are_fetched_again() {
    let gate = outlives_its_tokens(Ask::TokenForPassword(TOKEN_LIFE), "tokens/password").await;
    let issued = gate.issued();
    assert!(issued[issued.len() - 1].at - issued[0].at > 2 * TOKEN_LIFE, "{issued:?}");
    assert!(issued.iter().any(|token| token.to_kiln) && issued.iter().any(|token| !token.to_kiln), "{issued:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_serves_buildkitd_and_publishing() {
    let gate = outlives_its_tokens(Ask::TokenForIdentity(TOKEN_LIFE), "tokens/identity").await;
    let issued = gate.issued();
    assert!(issued.iter().all(|token| token.refreshed), "{issued:?}");
    let to_kiln = issued.iter().filter(|token| token.to_kiln).count();
    assert!(to_kiln >= 2, "each build's own requests got a token of their own: {issued:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_sent_where_it_is_asked_for() {
    outlives_its_tokens(Ask::Basic, "tokens/basic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_the_message_says_what_to_do() {
    let gate = Gate::open(&spine().ready.registry, Ask::TokenForPassword(TOKEN_LIFE), &Keys::new()).await;
    let nothing = tempfile::tempdir().unwrap();
    let dir = tree(&[("Dockerfile", "FROM busybox\nLABEL who=nobody\n")]);
    let ran = up(dir.path(), nothing.path(), "nobody", &["-t", &format!("{}/nobody/app:v1", gate.address)]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    let message = ran.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("docker login {}", gate.address)), "{message}");
    assert_eq!(ran.json()["attempts"], 1, "{}", ran.all());
}

/// A build's history as any client reads it, its payloads decoded.
fn history(build_id: &str) -> Vec<u8> {
    let workflow = format!("build/{build_id}");
    let shown = temporal(&["workflow", "show", "--workflow-id", &workflow, "-o", "json"]);
    let parsed: Value = serde_json::from_slice(&shown).unwrap();
    let mut text = shown;
    payloads(&parsed, &mut text);
    text
}

fn temporal(args: &[&str]) -> Vec<u8> {
    let ready = &spine().ready;
    let mut command = Command::new(tool("temporal"));
    command.args(args).args(["--address", &ready.temporal, "--namespace", &ready.namespace]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Everything under a key `data` that is base64.
fn payloads(value: &Value, into: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| match value.as_str() {
            Some(text) if name == "data" => into.extend(STANDARD.decode(text).unwrap_or_default()),
            _ => payloads(value, into),
        }),
        Value::Array(values) => values.iter().for_each(|value| payloads(value, into)),
        _ => {}
    }
}

/// The kinds of place below the data directory that have one of the needles.
fn places(needles: &Needles) -> (BTreeSet<String>, usize) {
    let data = &spine().data;
    let (found, seen) = needles.found_below(data);
    let kind = |path: &Path| {
        let parts: Vec<_> = path.strip_prefix(data).unwrap().iter().map(|part| part.to_string_lossy()).collect();
        match parts.as_slice() {
            [cells, _, part, ..] if cells == "cells" => format!("cells/{part}"),
            [one, ..] => one.trim_end_matches("-wal").to_owned(),
            [] => String::new(),
        }
    };
    (found.iter().map(|path| kind(path)).collect(), seen)
}

/// Secret, password, identity token and the tokens made of them, through a build that succeeds and one whose step fails with the secret
/// at hand. A build argument that is no secret goes the same way, to see that the search finds what is there: in what Temporal, the
/// store, the logs and the registry keep, and in the cell's directory.
///
/// What this cannot see: what is encrypted (the sealed credentials themselves, which are to be there until the build has succeeded), and
/// what lies compressed inside something else, for example a file of a layer whose blob is not the whole file. Snapshot packs and
/// layers, which begin with their compression's own mark, are looked into.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_left_anywhere() {
    let (keys, secret, marker) = (Keys::new(), Keys::new().password, Keys::new().username + &Keys::new().token);
    let gates = [Ask::TokenForPassword(TOKEN_LIFE), Ask::TokenForIdentity(TOKEN_LIFE)];
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &secret).unwrap();
    let secret_spec = format!("id=tok,src={}", file.path().display());
    let arg = format!("MARKER={marker}");
    // The heartbeats come every 5 s: the step lasts for one, and for looking at it.
    let step = "RUN --mount=type=secret,id=tok test -s /run/secrets/tok && echo \"seen, and $MARKER\" && sleep 9";
    for (ask, end) in gates.into_iter().zip(["true", "exit 7"]) {
        let gate = Gate::open(&spine().ready.registry, ask, &keys).await;
        let config = tempfile::tempdir().unwrap();
        gate.docker_config(config.path());
        let dockerfile = format!("FROM {}/library/busybox\nARG MARKER\n{step} && {end}\n", gate.address);
        let dir = tree(&[("Dockerfile", &dockerfile)]);
        let tag = format!("{}/canary/app:v1", gate.address);
        let started = up(
            dir.path(),
            config.path(),
            "canary",
            &["--secret", &secret_spec, "--build-arg", &arg, "--provenance=max", "-t", &tag, "--detach"],
        );
        let id = started.ok().json()["build_id"].as_str().unwrap().to_owned();
        watched(&id, &Needles::of([secret.as_str(), &keys.password, &keys.identity, &keys.token]));
        let ended = kiln(&spine().data, &["builds", "logs", "-f", &id]).output().unwrap();
        let expected = if end == "true" { 0 } else { 1 };
        assert_eq!(ended.status.code(), Some(expected), "{}", String::from_utf8_lossy(&ended.stderr));
        let needles = Needles::of([secret.as_str(), &keys.password, &keys.identity, &keys.token]);
        for text in [history(&id), ended.stdout, ended.stderr] {
            assert!(!needles.are_in(&text), "{}", String::from_utf8_lossy(&text));
        }
        assert!(Needles::of([marker.as_str()]).are_in(&history(&id)), "the search sees what is in a history");
    }
    let (found, seen) = places(&Needles::of([secret.as_str(), &keys.password, &keys.identity, &keys.token]));
    assert_eq!(found, BTreeSet::new(), "of {seen} files");
    let (found, _) = places(&Needles::of([marker.as_str()]));
    for place in ["temporal", "kiln.db", "registry", "cells/buildkit"] {
        assert!(found.contains(place), "the search sees what is in {place}: {found:?}");
    }
    assert!(found.contains("s3") || found.contains("build-logs"), "the search sees what is in logs: {found:?}");
}

/// A running build's pending activity, with the details of its last heartbeat.
fn watched(build_id: &str, needles: &Needles) {
    let workflow = format!("build/{build_id}");
    let beat = eventually("a heartbeat with details", Duration::from_secs(60), || {
        let shown = temporal(&["workflow", "describe", "--workflow-id", &workflow, "-o", "json"]);
        let parsed: Value = serde_json::from_slice(&shown).unwrap();
        let pending = parsed["pendingActivities"].as_array()?.first()?.clone();
        (!pending["heartbeatDetails"].is_null()).then_some((parsed, shown))
    });
    let (parsed, mut text) = beat;
    payloads(&parsed, &mut text);
    assert!(!needles.are_in(&text), "{}", String::from_utf8_lossy(&text));
}
