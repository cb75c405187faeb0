//! Mistakes in what a user sends, and sizes that only some builds have: told once, as the user's, with all there is to tell.

use std::fs;

use serde_json::Value;

use crate::harness::spine::{Ran, spine, tree};

fn is_told_once(ran: &Ran) -> Value {
    assert_eq!(ran.code, 1, "{}", ran.all());
    let result = ran.json();
    assert_eq!((&result["error"]["class"], &result["attempts"]), (&"user_error".into(), &1.into()), "{result}");
    assert!(!ran.stderr.contains("trying again"), "{}", ran.all());
    result
}

#[test]
fn a_failing_step_of_a_large_dockerfile_is_told_as_any_other() {
    let comment = "# A line as long as those of other Dockerfiles, of which there are a great many here.\n";
    let dockerfile = format!("FROM busybox\n{}RUN echo last words; exit 7\n", comment.repeat(3000));
    let dir = tree(&[("Dockerfile", &dockerfile)]);
    let result = is_told_once(&spine().up(dir.path(), "large", &[]));
    let error = &result["error"];
    assert_eq!((&error["exit_code"], &error["log_tail"]), (&7.into(), &serde_json::json!(["last words"])), "{error}");
    assert!(error["step"].as_str().unwrap().ends_with("RUN echo last words; exit 7"), "{error}");
    assert!(error["source"].as_str().unwrap().contains(">>> RUN echo last words"), "{error}");
}

#[test]
fn a_long_ignore_file_and_many_copies_are_built() {
    let ignored: String =
        (0..300).map(|n| format!("generated/a/longer/path/of/some/build/number-{n:03}/*\n")).collect();
    let copies: String = (0..25)
        .map(|line| {
            let names: Vec<_> = (0..10).map(|n| format!("in/sources/of/some/length/file-{line:02}-{n}.txt")).collect();
            format!("COPY {} /files/\n", names.join(" "))
        })
        .collect();
    let dir =
        tree(&[("Dockerfile", &format!("FROM busybox\n{copies}RUN ls /files | wc -l\n")), (".dockerignore", &ignored)]);
    fs::create_dir_all(dir.path().join("in/sources/of/some/length")).unwrap();
    for (line, n) in (0..25).flat_map(|line| (0..10).map(move |n| (line, n))) {
        fs::write(dir.path().join(format!("in/sources/of/some/length/file-{line:02}-{n}.txt")), "x").unwrap();
    }
    let ran = spine().up(dir.path(), "wide", &[]).ok();
    assert!(ran.stderr.lines().any(|line| line.ends_with(" 250")), "{}", ran.all());
}

#[test]
fn a_malformed_pattern_is_named_and_not_retried() {
    for pattern in ["[in/*.conf", "in/we[ird"] {
        let dir = tree(&[("Dockerfile", &format!("FROM busybox\nCOPY {pattern} /x\n")), ("in/a.conf", "a")]);
        let result = is_told_once(&spine().up(dir.path(), "pattern", &[]));
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(pattern), "{message}");
    }
}

#[test]
fn a_path_that_buildkit_cannot_ask_for_is_told_with_what_to_do() {
    let dir = tree(&[("Dockerfile", "FROM busybox\nCOPY [\"in/a\\tb\", \"/x\"]\n"), ("in/a\tb", "a")]);
    let result = is_told_once(&spine().up(dir.path(), "tab", &[]));
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("control character"), "{message}");
    let dir = tree(&[("Dockerfile", "FROM busybox\nCOPY . /x\n"), (".dockerignore", "a\tb\n")]);
    is_told_once(&spine().up(dir.path(), "tab", &[]));
}

#[test]
fn a_character_that_arrives_in_two_pieces_is_whole_everywhere() {
    let dockerfile = "FROM busybox\nRUN printf 'h\\303'; sleep 1; printf '\\251\\n'; printf 'x\\377y\\n'; exit 3\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let ran = spine().up(dir.path(), "utf8", &[]);
    let result = is_told_once(&ran);
    assert_eq!(result["error"]["log_tail"], serde_json::json!(["hé", "x\u{fffd}y"]), "{result}");
    let log = spine().kiln(&["builds", "logs", result["build_id"].as_str().unwrap()]).ok();
    for shown in [&ran.stderr, &log.stdout] {
        assert!(shown.lines().any(|line| line.ends_with(" hé")), "{shown}");
        assert!(shown.lines().any(|line| line.ends_with(" x\u{fffd}y")), "{shown}");
    }
}

/// Starts a build of an uploaded snapshot as a backend does, without naming a Dockerfile; returns its output.
async fn start_by_api(project: &str, snapshot: &Value) -> String {
    // Fails only when another test did it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ready = &spine().ready;
    let url = format!("{}/v1/projects/{project}/builds", ready.api);
    let body = serde_json::json!({ "input": { "snapshot": snapshot, "no_cache": true } });
    let request = reqwest::Client::new().post(url).bearer_auth(&ready.api_token);
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer: Value = serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap();
    let build = answer["build_id"].as_str().unwrap_or_else(|| panic!("{answer}"));
    spine().kiln(&["builds", "logs", "-f", build]).ok().stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_beside_the_tree_is_found_without_its_path() {
    let elsewhere = tree(&[("My.Dockerfile", "FROM busybox\nCOPY a /a\nRUN echo from beside\n")]);
    let ignored = [
        ("Dockerfile", "FROM busybox\nCOPY . /all\nRUN echo from beside; ls /all\n"),
        (".dockerignore", "Dockerfile\n.dockerignore\nleft-out\n"),
        ("left-out", "x"),
        ("a", "a"),
    ];
    let file = elsewhere.path().join("My.Dockerfile");
    for (dir, more) in [(tree(&ignored), None), (tree(&[("a", "a")]), Some(["-f", file.to_str().unwrap()]))] {
        let more = more.as_ref().map_or(&[][..], |flag| &flag[..]);
        let uploaded = spine().up(dir.path(), "beside", more).ok().json();
        let build = uploaded["build_id"].as_str().unwrap();
        let shown = spine().kiln(&["builds", "show", build, "--output", "json"]).ok().json();
        let log = start_by_api("beside", &shown["snapshot"]).await;
        assert!(log.contains("from beside") && !log.contains("left-out\n"), "{log}");
    }
}
