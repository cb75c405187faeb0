//! Messages and details as BuildKit v0.33.1 sends them.

use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost_types::Any;

fn any(kind: &str, json: &str) -> Any {
    Any { type_url: format!("github.com/moby/buildkit/{kind}+json"), value: json.as_bytes().to_vec() }
}

fn error(code: Code, message: &str, details: &[Any]) -> SolveError {
    SolveError::from_parts(code, message, details, &Vertexes::default())
}

fn kind(message: &str) -> FailureKind {
    error(Code::Unknown, message, &[]).kind
}

fn registry(message: &str) -> (RegistryStatus, Option<String>) {
    match kind(message) {
        FailureKind::Registry(failure) => (failure.status, failure.host),
        other => panic!("{message}: {other:?}"),
    }
}

#[test]
fn a_failed_step_has_its_exit_code_vertex_and_lines() {
    let dockerfile = STANDARD.encode("FROM base\nRUN true\nRUN exit 42\nRUN never\n");
    let source = format!(
        r#"{{"info":{{"filename":"Dockerfile","data":"{dockerfile}","language":"Dockerfile"}},"ranges":[{{"start":{{"line":3}},"end":{{"line":3}}}}]}}"#
    );
    let details = [
        any("stack.Stack", "{}"),
        any("errdefs.Vertex", r#"{"digest":"sha256:aa"}"#),
        any("errdefs.Source", &source),
        any("gatewayapi.ExitMessage", r#"{"Code":42}"#),
    ];
    let message = r#"process "/bin/sh -c exit 42" did not complete successfully: exit code: 42"#;
    let mut known = Vertexes::default();
    known.names.insert("sha256:aa".into(), "[3/4] RUN exit 42".into());
    let error = SolveError::from_parts(Code::Unknown, message, &details, &known);
    assert_eq!(error.kind, FailureKind::Exit { code: 42, out_of_memory: false });
    assert!(error.kind.is_user_error());
    assert_eq!(error.to_string(), message);
    let vertex = error.vertex.unwrap();
    assert_eq!((vertex.digest.as_str(), vertex.name.as_deref()), ("sha256:aa", Some("[3/4] RUN exit 42")));
    assert_eq!(error.sources.len(), 1);
    assert_eq!(error.sources[0].lines, (3, 3));
    assert_eq!(
        error.sources[0].text,
        "Dockerfile:3\n--------------------\n   1 |     FROM base\n   2 |     RUN true\n   3 | >>> RUN exit 42\n   4 |     RUN never\n   5 |     \n--------------------\n"
    );
}

#[test]
fn a_step_killed_for_memory_is_told_apart() {
    let message = r#"process "/bin/sh -c x" did not complete successfully: cannot allocate memory"#;
    let details = [any("gatewayapi.ExitMessage", r#"{"Code":137}"#)];
    let error = error(Code::ResourceExhausted, message, &details);
    assert_eq!(error.kind, FailureKind::Exit { code: 137, out_of_memory: true });
}

#[test]
fn malformed_details_leave_the_message() {
    let details = [any("gatewayapi.ExitMessage", "{"), any("errdefs.Source", r#"{"info":{"data":"*"}}"#), any("x", "")];
    let error = error(Code::Unknown, "it broke", &details);
    assert_eq!((error.kind, error.sources.len()), (FailureKind::Daemon, 0));
}

#[test]
fn excerpts_are_cut_as_buildkit_cuts_them() {
    let lines: String = (1..=9).map(|number| format!("line {number}\n")).collect();
    let excerpt = |start: u32, end: u32| {
        let data = STANDARD.encode(&lines);
        let json = format!(
            r#"{{"info":{{"filename":"f","data":"{data}"}},"ranges":[{{"start":{{"line":{start}}},"end":{{"line":{end}}}}}]}}"#
        );
        error(Code::Unknown, "", &[any("errdefs.Source", &json)]).sources.pop().map(|excerpt| {
            let shown: Vec<_> =
                excerpt.text.lines().filter_map(|line| line.split(" | ").next()?.trim().parse().ok()).collect();
            (shown, excerpt.lines)
        })
    };
    assert_eq!(excerpt(5, 5), Some((vec![3, 4, 5, 6, 7], (5, 5))));
    assert_eq!(excerpt(4, 6), Some((vec![3, 4, 5, 6, 7], (4, 6))));
    assert_eq!(excerpt(1, 1), Some((vec![1, 2, 3], (1, 1))));
    assert_eq!(excerpt(99, 99), None);
    assert_eq!(excerpt(0, 0), None);
}

#[test]
fn registries_are_classified_by_status() {
    use RegistryStatus::*;
    let push = |rest: &str| format!("failed to push 127.0.0.1:5000/x:1: {rest}");
    let at = |host: &str| Some(host.to_owned());
    let url = "https://127.0.0.1:5000/v2/x/blobs/sha256:ab";
    for (rest, status) in [
        (format!("unexpected status from HEAD request to {url}: 401 Unauthorized"), Unauthorized),
        (format!("unexpected status from PUT request to {url}: 403 Forbidden"), Denied),
        (format!("unexpected status from PUT request to {url}: 404 Not Found"), NotFound),
        (format!("unexpected status from POST request to {url}: 429 Too Many Requests"), RateLimited),
        (format!("unexpected status from PUT request to {url}: 503 Service Unavailable"), Server(503)),
        (format!("unexpected status from PUT request to {url}: 400 Bad Request"), Rejected(400)),
        (
            format!("failed to do request: Head \"{url}\": dial tcp 127.0.0.1:5000: connect: connection refused"),
            Refused,
        ),
        (
            format!(
                "failed to do request: Put \"{url}\": read tcp 1.2.3.4:5->6.7.8.9:443: read: connection reset by peer"
            ),
            Reset,
        ),
        (format!("failed to do request: Put \"{url}\": EOF"), Reset),
        (format!("failed to do request: Head \"{url}\": dial tcp: lookup x on 127.0.0.53:53: no such host"), Dns),
        (format!("failed to do request: Head \"{url}\": dial tcp: lookup x on 10.0.0.2:53: server misbehaving"), Dns),
        (
            format!(
                "failed to do request: Head \"{url}\": dial tcp: lookup x on 10.0.0.2:53: read udp 10.0.0.9:5->10.0.0.2:53: i/o timeout"
            ),
            Dns,
        ),
        (
            format!(
                "failed to do request: Head \"{url}\": dial tcp: lookup x on 10.0.0.2:53: read udp 10.0.0.9:5->10.0.0.2:53: read: connection refused"
            ),
            Dns,
        ),
        (format!("failed to do request: Head \"{url}\": dial tcp 10.0.0.1:443: i/o timeout"), Timeout),
        (
            format!("failed to do request: Head \"{url}\": tls: failed to verify certificate: x509: unknown authority"),
            Tls,
        ),
    ] {
        assert_eq!(registry(&push(&rest)), (status, at("127.0.0.1:5000")), "{rest}");
    }
}

#[test]
fn what_is_fetched_from_elsewhere_fails_for_its_name_too() {
    let add = "Get \"https://files.example/x\": dial tcp: lookup files.example on 10.0.0.2:53: server misbehaving";
    assert_eq!(registry(add), (RegistryStatus::Dns, Some("files.example".into())));
    let git = "failed to fetch remote https://git.example/r.git: git stderr:\nfatal: unable to access 'https://git.example/r.git/': Could not resolve host: git.example: exit status 128";
    assert_eq!(registry(git), (RegistryStatus::Dns, Some("git.example".into())));
}

#[test]
fn pulls_are_classified_too() {
    let resolve = "x: failed to resolve source metadata for docker.io/library/x:latest: ";
    let not_found = format!("{resolve}docker.io/library/x:latest: not found");
    assert_eq!(registry(&not_found).0, RegistryStatus::NotFound);
    let denied = format!(
        "{resolve}pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"
    );
    assert_eq!(registry(&denied).0, RegistryStatus::Denied);
    let token = "failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://auth.example/token: 401 Unauthorized";
    assert_eq!(registry(token), (RegistryStatus::Unauthorized, Some("auth.example".into())));
    assert_eq!(registry("invalid response status 404").0, RegistryStatus::NotFound);
    assert!(!RegistryStatus::NotFound.is_transient());
    assert!(RegistryStatus::Server(500).is_transient());
}

#[test]
fn a_step_that_prints_a_registrys_words_stays_a_step() {
    let details = [any("gatewayapi.ExitMessage", r#"{"Code":1}"#)];
    let message = r#"process "/bin/sh -c echo failed to push x: 503" did not complete successfully: exit code: 1"#;
    assert_eq!(error(Code::Unknown, message, &details).kind, FailureKind::Exit { code: 1, out_of_memory: false });
}

#[test]
fn the_rest_is_told_by_its_words() {
    assert_eq!(kind("job ID abc exists"), FailureKind::DuplicateRef);
    assert_eq!(kind("secret tok: not found"), FailureKind::MissingSecret { id: "tok".into() });
    assert_eq!(kind("failed to mount x: no space left on device"), FailureKind::DiskFull);
    assert_eq!(kind("no active session for x: context deadline exceeded"), FailureKind::ConnectionLost);
    assert_eq!(
        kind(r#"process "x" did not complete successfully: exit code: 137: context canceled"#),
        FailureKind::Cancelled
    );
    let checksum = r#"failed to compute cache key: failed to calculate checksum of ref a::b: "/nope": not found"#;
    assert_eq!(kind(checksum), FailureKind::Definition);
    assert_eq!(kind("failed to read dockerfile: open Dockerfile: no such file or directory"), FailureKind::Definition);
    assert_eq!(error(Code::ResourceExhausted, "cannot allocate memory", &[]).kind, FailureKind::Exhausted);
    assert_eq!(error(Code::Internal, "boom", &[any("errdefs.Frontend", "{}")]).kind, FailureKind::Daemon);
    assert_eq!(kind("boom"), FailureKind::Daemon);
}

#[test]
fn the_step_is_found_by_its_error_where_there_are_no_details() {
    let known = Vertexes {
        names: [("sha256:b".to_owned(), "exporting".to_owned())].into(),
        failed: vec![("sha256:b".to_owned(), "failed to push x: boom".to_owned())],
    };
    let error = SolveError::from_parts(Code::Unknown, "failed to push x: boom", &[], &known);
    assert_eq!(error.vertex.unwrap().name.as_deref(), Some("exporting"));
}
