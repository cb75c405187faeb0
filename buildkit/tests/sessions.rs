//! Sessions: what they hand out, and that they outlive a process that is busy.

use crate::harness::{Context, Daemon, output, run, solve};
use buildkit::{Secrets, StatusUpdate};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_reach_the_steps_that_ask_for_them() {
    let (daemon, context) =
        (Daemon::start(), Context::new("RUN --mount=type=secret,id=tok /bin/busybox rev /run/secrets/tok\n"));
    let secrets = BTreeMap::from([("tok".to_owned(), b"live on\n".to_vec())]);
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let (solved, updates) = run(&session.secrets(Arc::new(secrets)).open().await.unwrap(), solve()).await;
    solved.unwrap();
    assert!(output(&updates).contains("no evil"));
}

struct Forgetful;

impl Secrets for Forgetful {
    fn secret(&self, _id: &str) -> io::Result<Option<Vec<u8>>> {
        Err(io::Error::other("the vault is closed"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_cannot_be_told_fails_the_build_with_the_reason() {
    let (daemon, context) = (Daemon::start(), Context::new("RUN --mount=type=secret,id=tok true\n"));
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let error = run(&session.secrets(Arc::new(Forgetful)).open().await.unwrap(), solve()).await.0.unwrap_err();
    assert!(error.message.contains("the vault is closed"), "{error}");
}

/// The daemon checks every second whether the session lives, and this test's only thread does nothing for three.
#[tokio::test(flavor = "current_thread")]
async fn health_checks_are_answered_while_the_process_is_busy() {
    let (daemon, context) =
        (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 3\nCOPY Dockerfile /late\n"));
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.health_timeout(Duration::from_secs(1)).open().await.unwrap();
    let (updates, mut events) = tokio::sync::mpsc::channel::<StatusUpdate>(16);
    let busy = async {
        while let Some(update) = events.recv().await {
            if output(&[update]).contains("started") {
                let until = Instant::now() + Duration::from_secs(3);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
        }
    };
    let cancel = CancellationToken::new();
    let (solved, ()) = tokio::join!(session.solve(solve(), updates, &cancel), busy);
    solved.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_to_listen_to_the_progress() {
    let (daemon, context) = (Daemon::start(), Context::new("RUN /bin/busybox seq 20000\n"));
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.open().await.unwrap();
    let (updates, events) = tokio::sync::mpsc::channel(1);
    drop(events);
    session.solve(solve(), updates, &CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_serves_builds_one_after_the_other_and_side_by_side() {
    let (daemon, context) = (Daemon::start(), Context::new("ARG N\nRUN echo built $N\n"));
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.open().await.unwrap();
    let build = async |number: &str| {
        let (solved, updates) = run(&session, solve().attr("build-arg:N", number)).await;
        solved.unwrap();
        assert!(output(&updates).contains(&format!("built {number}")));
    };
    build("1").await;
    tokio::join!(build("2"), build("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_without_a_daemon_is_an_error_that_names_the_socket() {
    let mut daemon = Daemon::start();
    let client = daemon.client().await;
    daemon.kill();
    let error = client.session().open().await.unwrap_err();
    assert!(error.to_string().contains(daemon.socket().to_str().unwrap()), "{error}");
}
