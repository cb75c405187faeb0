//! The store's promises, each checked on SQLite and on PostgreSQL.
//!
//! PostgreSQL is a server of the test's own; `make test` installs its programs.

mod checks;
#[expect(dead_code, reason = "benchmarks use more of it")]
mod postgres;

use super::Store;

async fn sqlite(directory: &tempfile::TempDir) -> Store {
    let url = format!("sqlite://{}", directory.path().join("kiln.db").display());
    Store::open(&url).await.expect("a new SQLite store opens")
}

/// Two handles stand for two processes: each has connections of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn promises_hold_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = tokio::join!(sqlite(&directory), sqlite(&directory));
    checks::all(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn promises_hold_on_postgres() {
    let server = postgres::Server::start();
    let (one, two) = tokio::join!(Store::open(server.url()), Store::open(server.url()));
    let (one, two) = (one.expect("opens"), two.expect("opens"));
    checks::all(&one, &two).await;
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_store_opened_again_has_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let name = "hello".parse().unwrap();
    let first = sqlite(&directory).await;
    let project = first.create_project(&name).await.unwrap();
    first.close().await;
    assert_eq!(sqlite(&directory).await.project(&name).await.unwrap(), Some(project));
}

#[tokio::test]
async fn an_address_of_something_else_is_refused() {
    let error = Store::open("mysql://localhost/kiln").await.expect_err("refused");
    assert_eq!(error.to_string(), "the store's address is neither sqlite:… nor postgres://…");
}
