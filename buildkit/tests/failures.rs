//! Builds that fail: what is told of it, and what is left behind.

use crate::harness::{Context, Daemon, next, output, run, solve};
use buildkit::{Entry, FailureKind, Frontend, RegistryStatus, Session, Solve, SolveError, Source};
use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

async fn open(daemon: &Daemon, context: &Context) -> Session {
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    session.open().await.unwrap()
}

async fn failure(dockerfile: &str) -> SolveError {
    let (daemon, context) = (Daemon::start(), Context::new(dockerfile));
    let session = open(&daemon, &context).await;
    run(&session, solve()).await.0.unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_step_is_named_with_its_exit_code() {
    let error = failure("RUN true\nRUN echo before; exit 42\n").await;
    assert_eq!(error.kind, FailureKind::Exit { code: 42, out_of_memory: false });
    assert!(error.vertex.unwrap().name.unwrap().ends_with("RUN echo before; exit 42"));
    assert!(error.message.ends_with("did not complete successfully: exit code: 42"), "{}", error.message);
    let excerpt = error.sources.last().unwrap();
    assert_eq!(excerpt.lines, (5, 5));
    assert!(excerpt.text.contains("   5 | >>> RUN echo before; exit 42\n"), "{}", excerpt.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_syntax_error_has_its_lines() {
    let error = failure("RUN true\nRUNN true\n").await;
    assert_eq!(error.kind, FailureKind::Definition);
    assert!(error.message.contains("unknown instruction: RUNN"), "{error}");
    assert!(error.sources[0].text.contains(">>> RUNN true"), "{:?}", error.sources);
    assert_eq!((error.sources[0].file.as_str(), error.sources[0].lines), ("Dockerfile", (5, 5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_the_definitions_fault() {
    let error = failure("COPY nope /\n").await;
    assert_eq!(error.kind, FailureKind::Definition);
    assert!(error.message.contains("\"/nope\": not found"), "{error}");
    let error = failure("FROM scratch AS other\nCOPY --from=third x /\n").await;
    assert!(!matches!(error.kind, FailureKind::Daemon | FailureKind::ConnectionLost), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_dockerfile_is_named() {
    let (daemon, context) = (Daemon::start(), Context::new(""));
    let session = open(&daemon, &context).await;
    let error = run(&session, solve().attr("filename", "Missingfile")).await.0.unwrap_err();
    assert_eq!(error.kind, FailureKind::Definition);
    assert!(error.message.contains("Missingfile"), "{error}");
    let error = run(&session, solve().attr("target", "nowhere")).await.0.unwrap_err();
    assert_eq!(error.kind, FailureKind::Definition);
    assert!(error.message.contains("nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_secret_is_named() {
    let error = failure("RUN --mount=type=secret,id=tok,required=true true\n").await;
    assert_eq!(error.kind, FailureKind::MissingSecret { id: "tok".into() });
    assert!(error.vertex.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_base_is_the_registrys_fault() {
    let error = failure("FROM 127.0.0.1:1/base:1\n").await;
    let FailureKind::Registry(failure) = &error.kind else { panic!("{error:?}") };
    assert_eq!((failure.status, failure.host.as_deref()), (RegistryStatus::Refused, Some("127.0.0.1:1")));
}

/// Lists a file that cannot be read.
struct Broken(Arc<dyn Source>);

impl Source for Broken {
    fn entries(&self) -> io::Result<Vec<Entry>> {
        self.0.entries()
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        if path == b"bad" { Err(io::Error::other("the disk is on fire")) } else { self.0.open(path) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_be_read_is_this_sides_fault() {
    let (daemon, context) = (Daemon::start(), Context::bare("FROM scratch\nCOPY . /\n"));
    context.write("bad", "x").write("good", "x");
    let session = daemon.client().await.session().dir("dockerfile", context.source());
    let session = session.dir("context", Arc::new(Broken(context.source()))).open().await.unwrap();
    let error = run(&session, solve()).await.0.unwrap_err();
    assert_eq!(error.kind, FailureKind::Source { dir: "context".into() });
    assert!(error.message.contains("\"bad\"") && error.message.contains("on fire"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_offered_is_named() {
    let (daemon, context) = (Daemon::start(), Context::bare("FROM scratch\nCOPY . /\n"));
    let session = daemon.client().await.session().dir("dockerfile", context.source()).open().await.unwrap();
    let error = run(&session, solve()).await.0.unwrap_err();
    assert!(error.message.contains("no access allowed to dir \"context\""), "{error}");
    assert_eq!(error.kind, FailureKind::Daemon);
}

/// Starts a build whose step says so on standard output and then waits for long; returns once it has said so.
async fn start_long_build(
    session: Arc<Session>,
    request: Solve,
    cancel: CancellationToken,
) -> tokio::task::JoinHandle<Result<buildkit::Solved, SolveError>> {
    let (updates, mut events) = mpsc::channel(16);
    let build = tokio::spawn(async move { session.solve(request, updates, &cancel).await });
    while !output(&[next(&mut events).await]).contains("started") {}
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    build
}

/// Whether a process of the step is there, told by what only its command line has. The shell that said "started" has it too, in its
/// script; in the moment in which it becomes the other program there is no command line.
fn runs(marker: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let command = |process: &Path| std::fs::read(process.join("cmdline")).unwrap_or_default();
    processes
        .map(|entry| command(&entry.path()))
        .any(|line| line.windows(marker.len()).any(|part| part == marker.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_kills_the_step() {
    // The number of seconds tells the process apart.
    let (daemon, context) = (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 86473\n"));
    let session = Arc::new(open(&daemon, &context).await);
    let cancel = CancellationToken::new();
    let build = start_long_build(session, solve(), cancel.clone()).await;
    let begun = Instant::now();
    while !runs("86473") {
        assert!(begun.elapsed() < Duration::from_secs(10), "the step has said that it is there");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cancel.cancel();
    let error = tokio::time::timeout(Duration::from_secs(20), build).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind, FailureKind::Cancelled);
    assert!(!runs("86473"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_is_a_fence() {
    let (daemon, context) = (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 86472\n"));
    let session = Arc::new(open(&daemon, &context).await);
    let request = || Solve::new("fence", Frontend::BuiltIn);
    let cancel = CancellationToken::new();
    let build = start_long_build(session.clone(), request(), cancel.clone()).await;
    let refused = run(&session, request()).await.0.unwrap_err();
    assert_eq!(refused.kind, FailureKind::DuplicateRef);
    cancel.cancel();
    assert_eq!(build.await.unwrap().unwrap_err().kind, FailureKind::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_is_a_lost_connection() {
    let (mut daemon, context) = (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 86471\n"));
    let session = Arc::new(open(&daemon, &context).await);
    let build = start_long_build(session.clone(), solve(), CancellationToken::new()).await;
    daemon.kill();
    let error = tokio::time::timeout(Duration::from_secs(20), build).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind, FailureKind::ConnectionLost, "{error}");
    // The session does not come back: so does every later build.
    let error = run(&session, solve()).await.0.unwrap_err();
    assert_eq!(error.kind, FailureKind::ConnectionLost, "{error}");
}
