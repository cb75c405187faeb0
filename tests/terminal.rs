//! What a command writes where its output goes: to a terminal, a pipe whose reader has gone, a full disk. The api is a stand-in
//! with one build.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A step that tries everything: the clipboard, the title, the line before, the direction of text. And it likes red.
const HOSTILE: &str = "\u{1b}]52;c;Y3VybA==\u{7}one\n\u{1b}]0;title\u{1b}\\\u{1b}[31mtwo\u{1b}[0m\n10%\r20%\n\u{1b}[1A\u{1b}[2K\u{9b}2Jthree\u{202e}\n";

/// Serves `web/a`, whose step printed `output`; with `ended` it has succeeded, else its stream goes on in silence.
async fn serve(output: &str, ended: bool) -> SocketAddr {
    let vertex = |more: Value| {
        let mut event = json!({"type": "vertex", "vertex": "v", "name": "RUN \u{1b}]52;c;x\u{7}make", "started_ms": 0});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    let mut records = vec![
        vertex(json!({})),
        json!({"type": "output", "vertex": "v", "stream": 1, "text": output}),
        vertex(json!({"completed_ms": 1000})),
    ];
    records.truncate(if ended { 3 } else { 2 });
    let mut stream = String::new();
    for (record, seq) in records.into_iter().zip(1..) {
        let mut record = record;
        record.as_object_mut().unwrap().extend([("seq".into(), json!(seq)), ("at_ms".into(), json!(500))]);
        stream.push_str(&format!("event: log\nid: {seq}\ndata: {record}\n\n"));
    }
    if ended {
        stream.push_str(&format!("event: result\ndata: {}\n\n", result()));
    }
    let router = Router::new()
        .route("/v1/builds/{build}/events", get(events))
        .route("/v1/builds/{build}/retry", post(async || Json(build())))
        .route("/v1/builds/{build}", get(async || Json(build())))
        .with_state((stream, ended));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn events(State((text, ended)): State<(String, bool)>) -> Response {
    let rest = match ended {
        true => futures::stream::empty().boxed(),
        false => futures::stream::pending().boxed(),
    };
    let begin = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(text))]);
    ([("content-type", "text/event-stream")], Body::from_stream(begin.chain(rest))).into_response()
}

fn result() -> Value {
    json!({"status": "succeeded", "image": "r.example/web@sha256:00"})
}

fn build() -> Value {
    json!({
        "build_id": "web/a", "project": "web", "key": "a", "workflow_id": "build/web/a", "run_id": "r1",
        "status": "succeeded", "snapshot": "0", "created_ms": 0, "result": result(),
        "input": {"project": "web", "snapshot": "0".repeat(64), "tags": []},
        "steps": [{"attempt": 1, "name": "RUN \u{1b}]52;c;x\u{7}make", "outcome": "ran", "duration_ms": 1000}],
    })
}

/// `kiln` with nothing of this machine's settings.
fn kiln(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir("/").env_clear().env("HOME", "/nonexistent").env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_api(api: SocketAddr, args: &[&str]) -> Command {
    let mut command = kiln(args);
    command.env("KILN_API_URL", format!("http://{api}"));
    command
}

struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Waits for the end, off the runtime that serves.
async fn told(mut command: Command) -> Told {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Told { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A pipe without a reader.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn control_sequences_of_steps_reach_no_stream() {
    let api = serve(HOSTILE, true).await;
    let logs = told(with_api(api, &["builds", "logs", "web/a"])).await;
    insta::assert_snapshot!(logs.stdout, @r"
    #1 RUN make
    #1 0.500 one
    #1 0.500 two
    #1 0.500 10%
    #1 0.500 20%
    #1 0.500 2Jthree
    #1 DONE 1.0s
    ");
    let show = told(with_api(api, &["builds", "show", "web/a"])).await;
    assert!(show.stdout.contains("RUN make") && !show.stdout.contains('\u{1b}'), "{:?}", show.stdout);
    let object = told(with_api(api, &["builds", "show", "web/a", "--output", "json"])).await.stdout;
    assert!(!object.contains(['\u{1b}', '\u{7}']), "{object:?}");
    assert_eq!(serde_json::from_str::<Value>(&object).unwrap()["steps"], build()["steps"]);
    let moves = regex::Regex::new("\r\u{1b}\\[[0-9]+A").unwrap();
    for progress in ["plain", "tty", "quiet"] {
        let retry = told(with_api(api, &["builds", "retry", "web/a", "--progress", progress])).await;
        assert_eq!(retry.code, Some(0), "{}", retry.stderr);
        let shown = retry.stderr.replace("\u{1b}[0J", "");
        let shown = moves.replace_all(&shown, "");
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{progress}: {shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_the_colours_and_nothing_else() {
    let api = serve(HOSTILE, true).await;
    let terminal = openpty(None, None).unwrap();
    let mut command = with_api(api, &["builds", "logs", "web/a"]);
    command.env("TERM", "xterm").stdout(terminal.slave);
    let mut child = command.spawn().unwrap();
    // The slave's last copies: the master reads an error once they are closed.
    drop(command);
    let mut master = File::from(terminal.master);
    let read = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        let _ = master.read_to_end(&mut shown);
        String::from_utf8(shown).unwrap()
    });
    let shown = tokio::time::timeout(PATIENCE, read).await.expect("it ends").unwrap();
    assert!(tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
    let shown = shown.replace("\r\n", "\n");
    assert!(shown.contains("\u{1b}[31mtwo\u{1b}[0m\n"), "{shown:?}");
    let rest = shown.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
    assert!(!rest.contains(|c: char| c.is_control() && c != '\n'), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_is_closed_ends_a_command_quietly() {
    let api = serve("one\n", true).await;
    for args in [
        &["--help"][..],
        &["config"],
        &["config", "--output", "json"],
        &["completions", "bash"],
        &["simulate", "--builds", "50", "--projects", "5", "--seeds", "1", "--cells", "2"],
        &["builds", "show", "web/a"],
        &["builds", "logs", "web/a"],
        &["builds", "retry", "web/a", "--progress", "quiet"],
        &["builds", "retry", "web/a", "--progress", "quiet", "--output", "json"],
    ] {
        let mut command = with_api(api, args);
        command.stdout(closed());
        let told = told(command).await;
        assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_an_error() {
    let api = serve("one\n", true).await;
    for args in [
        &["--version"][..],
        &["config"],
        &["completions", "zsh"],
        &["builds", "show", "web/a", "--output", "json"],
        &["builds", "logs", "web/a"],
        &["builds", "retry", "web/a", "--progress", "quiet"],
    ] {
        let mut command = with_api(api, args);
        command.stdout(full());
        let told = told(command).await;
        assert_eq!(told.code, Some(75), "{args:?}: {}", told.stderr);
        assert!(told.stderr.contains("cannot write to standard output: No space left on device"), "{}", told.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_error_that_is_closed_changes_no_exit_code() {
    let api = serve("one\n", true).await;
    for (args, code) in [
        (&["up", "/nonexistent"][..], 2),
        (&["up", "--no-such-flag"], 2),
        (&["builds", "retry", "web/a", "--progress", "plain"], 0),
    ] {
        let mut command = with_api(api, args);
        command.env("KILN_LOG", "trace").stderr(closed());
        assert_eq!(told(command).await.code, Some(code), "{args:?}");
    }
}

/// `kiln builds logs -f B | head -1` of a build that goes on without a word.
#[tokio::test(flavor = "multi_thread")]
async fn following_a_log_ends_when_its_reader_is_gone() {
    let api = serve("one\n", false).await;
    for args in [&["builds", "logs", "-f", "web/a"][..], &["builds", "logs", "web/a"]] {
        let mut child = with_api(api, args).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = [0; 1];
            stdout.read_exact(&mut line).map(|()| line)
        });
        assert_eq!(line.await.unwrap().unwrap(), *b"#");
        assert_eq!(end_of(child).await.0, Some(0), "{args:?}");
    }
}

async fn end_of(child: Child) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    assert_eq!(output.status.signal(), None);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// An api that takes the connection of an upload and never answers.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_prints_its_object() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = with_api(api, &["up", "--project", "web", "--output", "json", "."]);
        let child = command.current_dir(directory.path()).spawn().unwrap();
        let connection = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("it connects").unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let (code, stdout) = end_of(child).await;
        drop(connection);
        let object: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        assert_eq!(
            (code, &object["error"]["class"], &object["build_id"]),
            (Some(130), &json!("cancelled"), &json!(null))
        );
    }
}

/// Any web server at the api's address.
#[tokio::test(flavor = "multi_thread")]
async fn another_server_at_the_apis_address_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new()).await });
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let path = directory.path().to_str().unwrap();
    for args in [&["builds", "ls"][..], &["up", "--project", "web", path], &["builds", "logs", "web/a"]] {
        let told = told(with_api(api, args)).await;
        assert_eq!(told.code, Some(75), "{}", told.stderr);
        let address = format!("http://{api}/ does not answer as kiln api does: it answered 404");
        assert!(told.stderr.contains(&address), "{args:?}: {}", told.stderr);
    }
}

/// No picture of nothing is left where a build starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_keeps_no_picture_of_no_steps() {
    let api = serve("one\n", true).await;
    let retry = told(with_api(api, &["builds", "retry", "web/a", "--progress", "tty"])).await;
    assert!(!retry.stderr.contains("(0/0)"), "{:?}", retry.stderr);
}
