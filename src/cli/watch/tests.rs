//! Following a build over connections that break, against a small server.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use workflows::contract::{LogEvent, LogRecord};

use super::*;
use crate::settings::{Secret, Settings};

/// What the server does at each connection to the stream, and at each question for the build; the last one stays.
#[derive(Clone)]
struct Script {
    streams: Vec<Stream>,
    builds: Vec<(u16, Value)>,
    /// Whether the result is waited for.
    to_the_end: bool,
    asked_streams: Arc<AtomicUsize>,
    asked_builds: Arc<AtomicUsize>,
    /// The positions after which a stream was wanted.
    after: Arc<Mutex<Vec<u64>>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            builds: Vec::new(),
            to_the_end: true,
            asked_streams: Arc::default(),
            asked_builds: Arc::default(),
            after: Arc::default(),
        }
    }
}

#[derive(Clone)]
enum Stream {
    /// These bytes, then the stream ends.
    Whole(String),
    /// These bytes, then the connection is cut.
    Cut(String),
    Status(u16),
}

#[derive(serde::Deserialize)]
struct After {
    after: u64,
}

async fn events(State(script): State<Script>, Query(After { after }): Query<After>) -> Response {
    script.after.lock().unwrap().push(after);
    let asked = script.asked_streams.fetch_add(1, Ordering::SeqCst);
    match script.streams[asked.min(script.streams.len() - 1)].clone() {
        Stream::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Stream::Whole(text) => stream_of(text, None),
        Stream::Cut(text) => stream_of(text, Some(io::Error::other("cut"))),
    }
}

fn stream_of(text: String, cut: Option<io::Error>) -> Response {
    let pieces: Vec<io::Result<String>> = text.chars().map(|c| Ok(c.to_string())).collect();
    // What was not written yet when a body fails is dropped, so the failure waits for its turn.
    let end = async move {
        tokio::task::yield_now().await;
        cut.map_or_else(|| Ok(String::new()), Err)
    };
    let body = axum::body::Body::from_stream(futures::stream::iter(pieces).chain(futures::stream::once(end)));
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn build(State(script): State<Script>) -> Response {
    let asked = script.asked_builds.fetch_add(1, Ordering::SeqCst);
    let (status, body) = script.builds[asked.min(script.builds.len() - 1)].clone();
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

/// Serves the script and returns all news of the run.
async fn news_of(script: Script) -> Vec<News> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/v1/builds/{build}/events", get(events))
        .route("/v1/builds/{build}", get(build))
        .with_state(script.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut settings = Settings::default();
    settings.api.url = format!("http://{address}");
    settings.api.token = Secret::new("t");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(&settings).unwrap();
    let start = if script.to_the_end { follow } else { log_so_far };
    let mut receiver = start(client, "web/a".into(), "r1".into());
    let mut all = Vec::new();
    while let Some(news) = receiver.recv().await {
        all.push(news);
    }
    server.abort();
    all
}

fn log(position: u64, text: &str) -> String {
    let record = LogRecord { seq: position, at_ms: 0, event: LogEvent::Note { text: text.into() } };
    format!("event: log\nid: {position}\ndata: {}\n\n", serde_json::to_string(&record).unwrap())
}

fn result() -> Value {
    json!({"status": "succeeded", "image": "r.example/web@sha256:00"})
}

fn info(run_id: &str, result: Option<Value>) -> Value {
    json!({
        "build_id": "web/a", "project": "web", "key": "a", "workflow_id": "build/web/a", "run_id": run_id,
        "status": "running", "snapshot": "0", "created_ms": 0, "result": result,
        "input": {"project": "web", "snapshot": "0".repeat(64), "tags": []},
    })
}

/// Notes by their text, other news by their kind.
fn told(news: &[News]) -> Vec<String> {
    let tell = |news: &News| match news {
        News::Event(BuildEvent::Log(_, LogRecord { event: LogEvent::Note { text }, .. })) => text.clone(),
        News::Event(_) => "event".into(),
        News::Away(_) => "away".into(),
        News::Back => "back".into(),
        News::Cut(_) => "cut".into(),
        News::Ended(result) => format!("ended: {}", result.status.as_str()),
        News::Lost(failure) => format!("lost: {failure}"),
    };
    news.iter().map(tell).collect()
}

#[tokio::test]
async fn a_broken_stream_is_resumed_without_a_gap_or_a_double() {
    let last = format!("event: result\ndata: {}\n\n", result());
    let script = Script {
        streams: vec![
            Stream::Cut(format!("{}{}event: log\nid: 3\ndata: {{\"seq\"", log(1, "one"), log(2, "two"))),
            Stream::Status(503),
            // A server that sends again what was seen already.
            Stream::Cut(format!("{}{}", log(2, "two"), log(3, "three"))),
            Stream::Cut(format!("{}{last}", log(4, "four"))),
        ],
        builds: vec![(200, info("r1", None))],
        ..Script::default()
    };
    let news = news_of(script.clone()).await;
    assert_eq!(told(&news), ["one", "two", "three", "four", "ended: succeeded"]);
    assert_eq!(*script.after.lock().unwrap(), [0, 2, 2, 3]);
}

#[tokio::test]
async fn without_a_stream_the_build_is_asked_for() {
    let script = Script {
        streams: vec![Stream::Status(500)],
        builds: vec![(200, info("r1", None)), (503, json!({})), (200, info("r1", Some(result())))],
        ..Script::default()
    };
    assert_eq!(told(&news_of(script).await), ["cut", "ended: succeeded"]);
}

#[tokio::test]
async fn the_log_of_a_build_that_ended_while_the_stream_was_broken_is_shown_whole() {
    let last = format!("event: result\ndata: {}\n\n", result());
    let script = Script {
        streams: vec![
            Stream::Cut(format!("{}{}", log(1, "one"), log(2, "two"))),
            Stream::Status(503),
            Stream::Cut(log(3, "three")),
            Stream::Whole(format!("{}{last}", log(4, "four"))),
        ],
        builds: vec![(200, info("r1", Some(result())))],
        ..Script::default()
    };
    assert_eq!(told(&news_of(script).await), ["one", "two", "three", "four", "ended: succeeded"]);
}

#[tokio::test]
async fn a_log_so_far_is_read_to_its_end_or_said_to_be_cut() {
    let script = Script {
        to_the_end: false,
        streams: vec![Stream::Cut(log(1, "one")), Stream::Status(503), Stream::Whole(log(2, "two"))],
        builds: vec![(200, info("r2", None))],
        ..Script::default()
    };
    assert_eq!(told(&news_of(script).await), ["one", "two"]);
    let script = Script {
        to_the_end: false,
        streams: vec![Stream::Cut(log(1, "one")), Stream::Cut(String::new())],
        builds: vec![(200, info("r1", Some(result())))],
        ..Script::default()
    };
    let news = told(&news_of(script).await);
    assert!(news.len() == 2 && news[1].starts_with("lost: build web/a can no longer be followed: "), "{news:?}");
}

#[tokio::test]
async fn what_will_not_pass_ends_the_following() {
    let refused = json!({"error": {"class": "usage", "message": "there is no build web/a"}});
    let script = Script { streams: vec![Stream::Status(404)], builds: vec![(404, refused)], ..Script::default() };
    assert_eq!(
        told(&news_of(script).await),
        [
            "lost: build web/a can no longer be followed: there is no build web/a\n  it may go on; see `kiln builds show web/a`"
        ]
    );
    let script = Script {
        streams: vec![Stream::Status(503)],
        builds: vec![(200, info("r2", Some(result())))],
        ..Script::default()
    };
    assert_eq!(
        told(&news_of(script).await),
        [
            "lost: build web/a can no longer be followed: it was started again meanwhile\n  it may go on; see `kiln builds show web/a`"
        ]
    );
}

mod reports {
    use workflows::contract::{BuildError, BuildResult, FailureClass};

    use super::super::report::{OwnTimings, exit_code, failure, json, success};
    use super::*;

    const OWN: OwnTimings = OwnTimings { upload: 300, total: 3_400 };

    fn built() -> BuildResult {
        let digest = format!("sha256:{}", "0".repeat(64));
        serde_json::from_value(json!({
            "status": "succeeded", "digest": digest, "image": format!("r.example/web@{digest}"),
            "platforms": [{"platform": "linux/amd64", "digest": digest, "cell": "cell-2"}],
            "attempts": [
                {"number": 1, "platform": "linux/amd64", "cell": "cell-1", "buildkit_ref": "x", "outcome": "cell_fault"},
                {"number": 2, "platform": "linux/amd64", "cell": "cell-2", "buildkit_ref": "y", "outcome": "built"}],
            "tags": [{"tag": "r.example/web:v1", "outcome": "written"}, {"tag": "r.example/web:latest", "outcome": "superseded"}],
            "timings": {"queue": 20, "fetch": 100, "solve": 2600, "publish": 150, "total": 2900},
            "cache": {"total_steps": 9, "cached_steps": 7}
        }))
        .unwrap()
    }

    fn failed(class: FailureClass) -> BuildResult {
        let error = BuildError {
            step: Some("[2/3] RUN false".into()),
            exit_code: Some(7),
            log_tail: vec!["0.1 one".into(), "0.2 two\r".into()],
            source: Some("Dockerfile:2\n--------------------\n   2 | >>> RUN false\n--------------------\n".into()),
            ..BuildError::new(class, "process \"/bin/sh -c false\" did not complete successfully")
        };
        BuildResult { error: Some(error), ..BuildResult::blank(BuildStatus::Failed) }
    }

    #[test]
    fn a_success_starts_with_the_image() {
        assert_eq!(
            success(&built(), OWN),
            "\
r.example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000
  tag    r.example/web:v1
  tag    r.example/web:latest  (kept: a build that started later has it)
  steps  7 of 9 cached
  cell   cell-2 (attempt 2)
  time   3.4s (upload 0.3s, queue 0.0s, source 0.1s, build 2.6s, publish 0.1s)
"
        );
    }

    #[test]
    fn a_failure_shows_the_step_its_last_lines_and_the_place() {
        let error = failed(FailureClass::UserError).error.unwrap();
        assert_eq!(
            failure(&error, "web/a"),
            "\
------
 > [2/3] RUN false:
0.1 one
0.2 two
------
Dockerfile:2
--------------------
   2 | >>> RUN false
--------------------
kiln: process \"/bin/sh -c false\" did not complete successfully (exit code: 7)
  kiln builds show web/a
"
        );
    }

    #[test]
    fn the_object_has_every_key() {
        let started = BuildStarted {
            build_id: "web/a".into(),
            workflow_id: "build/web/a".into(),
            run_id: "r".into(),
            attached: false,
        };
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(
            json(Some(&started), &built(), OWN),
            json!({
                "build_id": "web/a", "workflow_id": "build/web/a", "status": "succeeded", "digest": digest,
                "image": format!("r.example/web@{digest}"),
                "platforms": [{"platform": "linux/amd64", "digest": digest, "cell": "cell-2"}],
                "cell": "cell-2", "attempts": 2, "cached_steps": 7, "total_steps": 9,
                "timings_ms": {"upload": 300, "queue": 20, "fetch": 100, "solve": 2600, "publish": 150, "total": 3400},
                "error": null
            })
        );
        let nothing = json(None, &failed(FailureClass::UserError), OWN);
        assert_eq!((&nothing["build_id"], &nothing["error"]["exit_code"]), (&Value::Null, &json!(7)));
    }

    #[test]
    fn the_class_is_the_exit_code() {
        assert_eq!(exit_code(&built()), 0);
        assert_eq!(exit_code(&failed(FailureClass::UserError)), 1);
        assert_eq!(exit_code(&failed(FailureClass::CellFault)), 75);
        assert_eq!(exit_code(&failed(FailureClass::TimedOut)), 124);
        assert_eq!(exit_code(&BuildResult::blank(BuildStatus::Cancelled)), 130);
    }
}
