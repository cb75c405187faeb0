//! Settling a lost attempt by the daemon's history.

use crate::harness::{Context, Daemon, Registry, next, output, push, run};
use buildkit::{Export, FailureKind, Frontend, Image, Settled, Solve};
use futures::StreamExt as _;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_ended_is_settled_also_after_a_restart() {
    let (mut daemon, registry) = (Daemon::start(), Registry::start());
    let good = Context::bare("FROM scratch\nCOPY . /\n");
    let client = daemon.client().await;
    let image = Export::Image(Image::named(format!("{}/app:1", registry.address())).push());
    let session = client.session().dir("context", good.source()).dir("dockerfile", good.source()).open().await.unwrap();
    let digest = run(&session, Solve::new("good", Frontend::BuiltIn).export(image)).await.0.unwrap().digest;
    let bad = Context::new("RUN exit 3\n");
    let session = client.session().dir("context", bad.source()).dir("dockerfile", bad.source()).open().await.unwrap();
    run(&session, Solve::new("bad", Frontend::BuiltIn)).await.0.unwrap_err();
    for restarted in [false, true] {
        if restarted {
            daemon.restart();
        }
        let client = daemon.client().await;
        match client.settle("good").await.unwrap() {
            Settled::Completed { digest: settled } => assert_eq!(settled, digest),
            other => panic!("restarted: {restarted}: {other:?}"),
        }
        match client.settle("bad").await.unwrap() {
            Settled::Failed(error) => assert!(error.message.ends_with("exit code: 3"), "{error}"),
            other => panic!("restarted: {restarted}: {other:?}"),
        }
        assert!(matches!(client.settle("never").await.unwrap(), Settled::Unknown));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_runs_is_running_until_the_daemon_dies() {
    let (mut daemon, context) = (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 86470\n"));
    let client = daemon.client().await;
    let session = client.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = Arc::new(session.open().await.unwrap());
    let (updates, mut events) = tokio::sync::mpsc::channel(16);
    let building = session.clone();
    let build = tokio::spawn(async move {
        building.solve(Solve::new("lost", Frontend::BuiltIn), updates, &CancellationToken::new()).await
    });
    while !output(&[next(&mut events).await]).contains("started") {}
    drop(events);
    assert!(matches!(client.settle("lost").await.unwrap(), Settled::Running));
    daemon.restart();
    assert_eq!(build.await.unwrap().unwrap_err().kind, FailureKind::ConnectionLost);
    // The daemon forgets what it was doing: the attempt is free to be tried again.
    assert!(matches!(daemon.client().await.settle("lost").await.unwrap(), Settled::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_progress_of_an_ended_build_can_be_read_again() {
    let (daemon, context) = (Daemon::start(), Context::new("RUN echo once\n"));
    let client = daemon.client().await;
    let session =
        client.session().dir("context", context.source()).dir("dockerfile", context.source()).open().await.unwrap();
    run(&session, Solve::new("told", Frontend::BuiltIn)).await.0.unwrap();
    let again: Vec<_> = client.status("told").await.unwrap().map(Result::unwrap).collect().await;
    assert!(output(&again).contains("once"));
    let record = client.build_record("told").await.unwrap().unwrap();
    assert!(record.completed_ms >= record.created_ms && record.total_steps > 0, "{record:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_build_is_settled_as_such() {
    let (daemon, context) = (Daemon::start(), Context::new("RUN echo started; exec /bin/busybox sleep 86469\n"));
    let client = daemon.client().await;
    let session =
        client.session().dir("context", context.source()).dir("dockerfile", context.source()).open().await.unwrap();
    let cancel = CancellationToken::new();
    let (updates, mut events) = tokio::sync::mpsc::channel(16);
    let request = push("127.0.0.1:1/x:1");
    let reference = request.reference().to_owned();
    let watch = async {
        while let Some(update) = events.recv().await {
            if output(&[update]).contains("started") {
                cancel.cancel();
            }
        }
    };
    let (ended, ()) = tokio::join!(session.solve(request, updates, &cancel), watch);
    assert_eq!(ended.unwrap_err().kind, FailureKind::Cancelled);
    match client.settle_at_end(&reference).await.unwrap() {
        Settled::Failed(error) => assert_eq!(error.kind, FailureKind::Cancelled),
        other => panic!("{other:?}"),
    }
}
