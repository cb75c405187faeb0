//! The store's promises, each checked on SQLite and on PostgreSQL.
//!
//! PostgreSQL is a server of the test's own; `make test` installs its programs.

mod checks;
#[expect(dead_code, reason = "benchmarks use more of it")]
mod postgres;
mod trust;

use super::{Store, StoreProblem, probe};
use crate::testing::pki::Pki;

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
    trust::check(&one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn promises_hold_on_postgres() {
    let server = postgres::Server::start();
    let (one, two) = tokio::join!(Store::open(server.url()), Store::open(server.url()));
    let (one, two) = (one.expect("opens"), two.expect("opens"));
    checks::all(&one, &two).await;
    trust::check(&one).await;
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_spoken_to_over_verified_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (pki, other) = (Pki::new(), Pki::new());
    let (cert, key) = pki.issue_for("postgres", "DNS:localhost");
    let dir = tempfile::tempdir().unwrap();
    postgres::give(dir.path());
    let place = |file: &std::path::Path| {
        let to = dir.path().join(file.file_name().unwrap());
        std::fs::copy(file, &to).unwrap();
        postgres::give(&to);
        to.display().to_string()
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (cert, key) = (format!("ssl_cert_file={}", place(&cert)), format!("ssl_key_file={}", place(&key)));
    let port_setting = format!("port={port}");
    let settings = ["listen_addresses=127.0.0.1", &port_setting, "fsync=off", "ssl=on", &cert, &key];
    let _server = postgres::Server::start_with(&settings.map(|setting| ["-c", setting]).concat());
    let url = |host: &str, user: &str, ca: &Pki| {
        let ca = ca.ca();
        format!("postgres://{user}@{host}:{port}/postgres?sslmode=verify-full&sslrootcert={}", ca.display())
    };
    let trusted = url("localhost", "kiln", &pki);
    probe(&trusted).await.unwrap();
    let store = Store::open(&trusted).await.unwrap();
    let over_tls: String = sqlx::query_scalar("SELECT CAST(ssl AS TEXT) FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&store.pool)
        .await
        .unwrap();
    assert_eq!(over_tls, "true");
    store.close().await;
    // Another authority, and a name that the certificate is not for.
    for (host, ca) in [("localhost", &other), ("127.0.0.1", &pki)] {
        assert!(Store::open(&url(host, "kiln", ca)).await.is_err(), "{host}");
        let problem = probe(&url(host, "kiln", ca)).await.unwrap_err();
        assert!(matches!(problem, StoreProblem::Tls(_)), "{problem:?}");
    }
    let nobody = probe(&url("localhost", "nobody", &pki)).await.unwrap_err();
    assert!(matches!(nobody, StoreProblem::Credential(_)), "{nobody:?}");
    let absent = probe(&trusted.replace("/postgres?", "/absent?")).await.unwrap_err();
    assert!(matches!(absent, StoreProblem::Absent(_)), "{absent:?}");
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
