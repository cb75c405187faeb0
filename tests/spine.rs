//! Whole paths on real parts, as a user runs them: `kiln up` against `kiln dev`.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::spine::{spine, tree};

const HELLO: &str = "FROM busybox\nCOPY a.txt /a.txt\nRUN cat /a.txt > /b.txt && echo said: $(cat /b.txt)\n";

#[test]
fn up_builds_pushes_and_caches() {
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "one")]);
    let first = spine().up(dir.path(), "hello", &[]).ok();
    let result = first.json();
    assert_eq!(result["status"], "succeeded");
    assert!(first.stderr.contains("said: one"), "{}", first.all());
    let image = result["image"].as_str().unwrap();
    assert!(image.starts_with(&format!("{}/hello@sha256:", spine().ready.registry)), "{image}");

    let again = spine().up(dir.path(), "hello", &[]).ok().json();
    assert_eq!(again["digest"], result["digest"]);
    assert_eq!(again["cached_steps"], again["total_steps"]);
    assert!(again["total_steps"].as_u64().unwrap() >= 2, "{again}");
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_built() {
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "aaa")]);
    let mtime = fs::metadata(dir.path().join("a.txt")).unwrap().modified().unwrap();
    let first = spine().up(dir.path(), "edit", &[]).ok().json();
    fs::write(dir.path().join("a.txt"), "bbb").unwrap();
    fs::File::options().write(true).open(dir.path().join("a.txt")).unwrap().set_modified(mtime).unwrap();
    let second = spine().up(dir.path(), "edit", &[]).ok();
    assert!(second.stderr.contains("said: bbb"), "{}", second.all());
    assert_ne!(second.json()["digest"], first["digest"]);
}

#[test]
fn a_failing_step_is_told_with_its_last_lines_and_code() {
    let dir = tree(&[("Dockerfile", "FROM busybox\nRUN echo before; echo the reason; exit 42\n")]);
    let ran = spine().up(dir.path(), "fails", &[]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    let error = &ran.json()["error"];
    assert_eq!(error["class"], "user_error");
    assert_eq!(error["exit_code"], 42);
    assert_eq!(error["log_tail"], serde_json::json!(["before", "the reason"]));
    assert!(error["step"].as_str().unwrap().contains("RUN echo before"), "{error}");
    assert!(error["source"].as_str().unwrap().contains(">>>"), "{error}");
    assert_eq!(ran.json()["attempts"], 1, "a user's error is not retried");
    let log = spine().kiln(&["builds", "logs", ran.json()["build_id"].as_str().unwrap()]).ok();
    assert_eq!(log.stdout.matches("did not complete successfully").count(), 1, "told once: {}", log.all());
}

#[test]
fn bad_dockerfiles_and_images_are_the_users_errors() {
    for (project, dockerfile, expected) in [
        ("syntax", "FROM busybox\nRUM echo\n", "unknown instruction: RUM"),
        ("nobase", "FROM busybox:no-such-tag-here\n", "no-such-tag-here"),
        ("nofile", "FROM busybox\nCOPY nope /\n", "nope"),
    ] {
        let dir = tree(&[("Dockerfile", dockerfile)]);
        let ran = spine().up(dir.path(), project, &[]);
        assert_eq!(ran.code, 1, "{project}: {}", ran.all());
        assert_eq!(ran.json()["error"]["class"], "user_error");
        assert!(ran.json()["error"]["message"].as_str().unwrap().contains(expected), "{project}: {}", ran.all());
    }
}

#[test]
fn wrong_use_ends_before_anything_is_sent() {
    let empty = tree(&[("x", "")]);
    let ran = spine().up(empty.path(), "empty", &[]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(ran.stderr.contains("Dockerfile"), "{}", ran.all());
    let ran = spine().up(std::path::Path::new("/no/such/dir"), "gone", &[]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "x")]);
    assert_eq!(spine().up(dir.path(), "tag", &["-t", "Not A Tag"]).code, 2);
    assert_ne!(spine().up(dir.path(), "platform", &["--platform", "linux/s390x"]).code, 0);
}

#[test]
fn a_wrong_token_is_refused() {
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "x")]);
    let wrong = tree(&[("token", "kiln_wrong\n")]);
    let file = wrong.path().join("token");
    let ran = spine().up(dir.path(), "token", &["--token-file", file.to_str().unwrap()]);
    assert_eq!(ran.code, 3, "{}", ran.all());
}

#[test]
fn a_projects_token_builds_its_project_until_it_is_revoked() {
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "x")]);
    let create = ["tokens", "create", "--project", "scoped", "--name", "ci", "--output", "json"];
    let issued = spine().kiln(&create).ok().json();
    let kept = tree(&[("token", issued["token"].as_str().unwrap())]);
    let file = kept.path().join("token");
    let by = ["--token-file", file.to_str().unwrap()];
    spine().up(dir.path(), "scoped", &by).ok();
    let foreign = spine().up(dir.path(), "hello", &by);
    assert_ne!(foreign.code, 0, "{}", foreign.all());
    assert!(foreign.stderr.contains("there is no project hello"), "{}", foreign.all());
    let listed = spine().kiln(&["builds", "ls", "--output", "json", by[0], by[1]]).ok().json();
    let mut builds = listed["builds"].as_array().unwrap().iter();
    assert!(builds.len() > 0 && builds.all(|build| build["project"] == "scoped"), "{listed}");
    assert_eq!(spine().kiln(&["cells", "ls", by[0], by[1]]).code, 3);
    spine().kiln(&["tokens", "revoke", issued["id"].as_str().unwrap()]).ok();
    let after = spine().up(dir.path(), "scoped", &by);
    assert_eq!(after.code, 3, "{}", after.all());
}

#[test]
fn an_unreachable_registry_is_retried_and_then_transient() {
    let dir = tree(&[("Dockerfile", "FROM busybox\nLABEL a=b\n")]);
    let ran = spine().up(dir.path(), "away", &["-t", "127.0.0.1:1/x/y:z"]);
    assert_eq!(ran.code, 75, "{}", ran.all());
    assert_eq!(ran.json()["error"]["class"], "transient");
    assert_eq!(ran.json()["attempts"], 1, "no cell is blamed: {}", ran.all());
    assert!(ran.stderr.contains("trying again"), "{}", ran.all());
}

#[test]
fn the_builtin_frontend_stands_for_dockers_and_others_are_refused() {
    let dir = tree(&[("Dockerfile", "# syntax=docker/dockerfile:1.7\nFROM busybox\nLABEL a=c\n")]);
    let ran = spine().up(dir.path(), "syntaxline", &[]).ok();
    assert!(ran.stderr.contains("docker/dockerfile:1.7 is built by buildkitd's built-in frontend"), "{}", ran.all());
    let dir = tree(&[("Dockerfile", "# syntax=evil/frontend:1\nFROM busybox\n")]);
    let ran = spine().up(dir.path(), "evil", &[]);
    assert_eq!(ran.code, 3, "{}", ran.all());
}

#[test]
fn dockers_flags_have_dockers_meaning() {
    let dockerfile =
        "FROM busybox AS one\nARG WHO=nobody\nRUN echo hello $WHO\nFROM one AS two\nRUN echo second stage\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let tag = format!("{}/flags/app:v1", spine().ready.registry);
    let ran = spine()
        .up(dir.path(), "flags", &["--build-arg", "WHO=you", "--target", "one", "--label", "k=v", "-t", &tag])
        .ok();
    assert!(ran.stderr.contains("hello you"), "{}", ran.all());
    assert!(!ran.stderr.contains("second stage"), "{}", ran.all());
    let again = spine().up(dir.path(), "flags", &["--build-arg", "WHO=you", "--target", "one", "--no-cache"]).ok();
    assert_eq!(again.json()["cached_steps"], 0, "{}", again.all());
}

#[test]
fn cache_mounts_belong_to_their_project() {
    let dockerfile = "FROM busybox\nARG N\nRUN --mount=type=cache,target=/c echo $N >> /c/seen && cat /c/seen\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    spine().up(dir.path(), "mounts-a", &["--build-arg", "N=first-a"]).ok();
    let other = spine().up(dir.path(), "mounts-b", &["--build-arg", "N=first-b"]).ok();
    assert!(!other.stderr.contains("first-a"), "{}", other.all());
    let ran = spine().up(dir.path(), "mounts-a", &["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=x"]);
    assert_eq!(ran.code, 3, "{}", ran.all());
}

#[test]
fn a_key_is_built_once_and_refused_for_another_input() {
    let dir = tree(&[("Dockerfile", HELLO), ("a.txt", "keyed")]);
    let first = spine().up(dir.path(), "keyed", &["--key", "commit-1"]).ok().json();
    let again = spine().up(dir.path(), "keyed", &["--key", "commit-1"]).ok();
    assert_eq!(again.json()["digest"], first["digest"]);
    assert!(!again.stderr.contains("said: keyed"), "{}", again.all());
    let other = spine().up(dir.path(), "keyed", &["--key", "commit-1", "--no-cache"]);
    assert_eq!(other.code, 3, "{}", other.all());
    assert!(other.json()["error"]["message"].as_str().unwrap().contains("no_cache"), "{}", other.all());
}

#[test]
fn secrets_reach_the_step_and_nothing_else() {
    let dockerfile =
        "FROM busybox\nRUN --mount=type=secret,id=tok test \"$(cat /run/secrets/tok | wc -c)\" = 29 && echo seen\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    // Put together here, so that this file is not what the search finds.
    let canary = ["canary", "d41d8cd98f00b204e9800"].join("-");
    assert_eq!(canary.len(), 28);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{canary}\n")).unwrap();
    let spec = format!("id=tok,src={}", file.path().display());
    let ran = spine().up(dir.path(), "secret", &["--secret", &spec, "--provenance=max"]).ok();
    assert!(ran.stderr.contains("seen"), "{}", ran.all());
    let found = std::process::Command::new("grep").args(["-rlF", &canary]).arg(&spine().data).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "the secret is on disk");
}

#[test]
fn builds_are_listed_shown_logged_and_cancelled() {
    let dockerfile = "FROM busybox\nRUN echo started; sleep 600\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let ran = spine().up(dir.path(), "longone", &["--detach", "--key", "k1"]).ok();
    let id = ran.json()["build_id"].as_str().unwrap().to_owned();
    wait_for(|| spine().kiln(&["builds", "logs", &id]).stdout.contains("started"), "its output is in the log");
    let list = spine().kiln(&["builds", "ls", "--project", "longone"]).ok();
    assert!(list.stdout.contains("running"), "{}", list.all());
    let show = spine().kiln(&["builds", "show", &id]).ok();
    assert!(show.stdout.contains("RUN echo started"), "{}", show.all());
    let begun = Instant::now();
    spine().kiln(&["builds", "cancel", &id]).ok();
    wait_for(|| spine().kiln(&["builds", "show", &id]).stdout.contains("cancelled"), "it is cancelled");
    assert!(begun.elapsed() < Duration::from_secs(20), "cancelling took {:?}", begun.elapsed());
    let processes = std::process::Command::new("pgrep").args(["-f", "^sleep 600$"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&processes.stdout), "", "the step's process is gone");
}

fn wait_for(condition: impl Fn() -> bool, what: &str) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(200));
    }
}
