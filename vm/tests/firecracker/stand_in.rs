//! The stand-in: Firecracker's API and command line without a machine behind them, and a guest that does what it is asked.
//!
//! What it was asked stands in `requests.log` beside the API socket, a line each. A script that runs this test binary again is the
//! "program"; what the script exports makes the stand-in behave otherwise.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::schema;

/// The arguments it is run with.
const ARGUMENTS: &str = "KILN_STAND_IN";

/// How a stand-in differs from one that just works.
pub enum But {
    Works,
    /// It is of this version.
    Version(&'static str),
    /// It refuses this path.
    Refuses(&'static str),
    /// Nobody in its guest ever listens.
    Hangs,
    /// The guest says this on its console and ends.
    Dies(&'static str),
    /// It ends itself when the guest is switched on, and says this in its log.
    Breaks(&'static str),
}

/// Makes the program.
pub fn program(dir: &Path, but: &But) -> PathBuf {
    let (name, value) = match but {
        But::Works => ("WORKS", ""),
        But::Version(version) => ("VERSION", *version),
        But::Refuses(path) => ("REFUSES", *path),
        But::Hangs => ("HANGS", "yes"),
        But::Dies(word) => ("DIES", *word),
        But::Breaks(word) => ("BREAKS", *word),
    };
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nexport {ARGUMENTS}=\"$*\" {ARGUMENTS}_{name}='{value}'\nexec '{}' --exact stand_in::serve --ignored --nocapture\n",
        this.display()
    );
    let path = dir.join("firecracker");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What the stand-in of a guest's directory was asked: method, path and body.
pub fn asked(dir: &Path) -> Vec<(String, Value)> {
    let log = std::fs::read_to_string(dir.join("requests.log")).unwrap_or_default();
    let entry = |line: &str| {
        let (what, body) = line.split_once('\t').unwrap();
        (what.to_owned(), serde_json::from_str(body).unwrap())
    };
    log.lines().map(entry).collect()
}

fn behaves(name: &str) -> Option<String> {
    std::env::var(format!("{ARGUMENTS}_{name}")).ok()
}

struct Program {
    dir: PathBuf,
    log: PathBuf,
    state: Mutex<State>,
    /// Whether the processors stand still.
    paused: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    started: bool,
    put: BTreeMap<String, Value>,
}

#[test]
#[ignore = "no test: what the others start as Firecracker"]
fn serve() {
    let Ok(line) = std::env::var(ARGUMENTS) else { return };
    let words: Vec<_> = line.split(' ').collect();
    let value =
        |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).map(PathBuf::from);
    let (socket, log) = (value("--api-sock").unwrap(), value("--log-path").unwrap());
    assert!(log.is_file(), "older releases need the log to be there");
    assert!(value("--id").is_some() && value("--level").is_some());
    let dir = socket.parent().unwrap().to_owned();
    let program = Program { dir, log, state: Mutex::default(), paused: watch::Sender::new(false) };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(listen(&socket, Arc::new(program)));
}

async fn listen(socket: &Path, program: Arc<Program>) {
    let listener = UnixListener::bind(socket).unwrap();
    loop {
        let stream = listener.accept().await.unwrap().0;
        let program = program.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(program.clone(), request));
            // Whoever only looks who listens closes at once.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(program: Arc<Program>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
    let body = request.into_body().collect().await?.to_bytes();
    let (status, body) = if (method.as_str(), path.as_str()) == ("GET", "/version") {
        let version = behaves("VERSION").unwrap_or_else(|| "1.17.0".into());
        (StatusCode::OK, json!({ "firecracker_version": version }).to_string())
    } else {
        match program.take(&method, &path, &body) {
            Ok(()) => (StatusCode::NO_CONTENT, String::new()),
            Err(why) => (StatusCode::BAD_REQUEST, json!({ "fault_message": why }).to_string()),
        }
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    Ok(response)
}

impl Program {
    fn take(self: &Arc<Self>, method: &str, path: &str, body: &[u8]) -> Result<(), String> {
        let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        schema::check(method, path, &body)?;
        if behaves("REFUSES").as_deref() == Some(path) {
            return Err("it does not want to".into());
        }
        self.in_order(method, path, &body)?;
        let mut log = std::fs::File::options().create(true).append(true).open(self.dir.join("requests.log")).unwrap();
        writeln!(log, "{method} {path}\t{body}").unwrap();
        match (method, path) {
            ("PUT", "/actions") => self.start(),
            ("PATCH", "/vm") => drop(self.paused.send_replace(body["state"] == "Paused")),
            ("PUT", _) => drop(self.state().put.insert(path.to_owned(), body)),
            _ => {}
        }
        Ok(())
    }

    /// Nothing is put after the start, nothing is changed before it, and it starts with what it needs only.
    fn in_order(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let state = self.state();
        match (method, state.started) {
            ("PUT", true) => Err("The requested operation is not supported after starting the microVM.".into()),
            ("PATCH", false) => Err("The requested operation is not supported before starting the microVM.".into()),
            _ if path != "/actions" => Ok(()),
            _ if body["action_type"] != "InstanceStart" => Err("the stand-in only starts".into()),
            _ if !state.put.contains_key("/boot-source") => {
                Err("Cannot start microvm without kernel configuration.".into())
            }
            _ => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn start(self: &Arc<Self>) {
        self.state().started = true;
        if let Some(word) = behaves("BREAKS") {
            std::fs::write(&self.log, format!("2026-01-01T00:00:00 [c1:main] [ERROR] {word}\n")).unwrap();
            std::process::exit(1);
        }
        println!("kiln-init 0.500 the cache is cold");
        if let Some(word) = behaves("DIES") {
            println!("kiln-init 0.600 fatal: {word}");
            std::process::exit(0);
        }
        let socket = self.state().put["/vsock"]["uds_path"].as_str().unwrap().to_owned();
        tokio::spawn(vsock(UnixListener::bind(socket).unwrap(), self.paused.subscribe()));
    }
}

/// Nobody in the guest listens at first: the first connection is closed.
async fn vsock(listener: UnixListener, paused: watch::Receiver<bool>) {
    drop(listener.accept().await.unwrap());
    loop {
        let stream = listener.accept().await.unwrap().0;
        if behaves("HANGS").is_none() {
            tokio::spawn(guest(stream, paused.clone()));
        }
    }
}

/// PID 1, as far as a host can see. The host's own clock is a second ahead whenever it asks.
async fn guest(stream: UnixStream, mut paused: watch::Receiver<bool>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    assert_eq!(line, "CONNECT 5000\n");
    stream.get_mut().write_all(b"OK 1073741824\n").await?;
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        paused.wait_for(|paused| !paused).await.unwrap();
        let Some((id, request)) = line.trim().split_once(' ') else { continue };
        let words = match request.split(' ').next().unwrap_or_default() {
            "hello" => {
                "phase=running id=c1 version=0.1.0 cache=cold checked=false buildkitd=41 builder=- uptime_ms=900 clock_ns=17 \
                 timeline=init=100,buildkitd_answers=900"
            }
            "time" => "behind_ms=1000",
            _ => "",
        };
        stream.get_mut().write_all(format!("{id} ok {words}\n").as_bytes()).await?;
        if request == "stop" {
            println!("kiln-init 9.000 the cell has stopped");
            std::process::exit(0);
        }
    }
}
