//! The store is away while builds run: they end well, and nothing is missing from what they leave there.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection as _, Executor as _};

use super::TWO_CELLS;
use crate::harness::clocks::either;
use crate::harness::dev::Dev;
use crate::harness::invariants;
use crate::harness::running::{Running, outcomes};

#[path = "../../activities/src/store/tests/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use more of it")]
mod postgres;

/// How long it is away: in any case longer than what one request to it may take.
fn outage() -> Duration {
    Duration::from_secs(either(12, 30))
}

/// Somebody holds SQLite's one lock for writing.
#[test]
fn faults_half_a_minute_without_the_sqlite_store_costs_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::under_faults(&dir.path().join("data"), TWO_CELLS);
    let build = Running::begin(&dev, "locked", 4.0);
    let url = format!("sqlite://{}", dev.data.join("kiln.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut holder = sqlx::SqliteConnection::connect(&url).await.unwrap();
        holder.execute("PRAGMA busy_timeout = 10000").await.unwrap();
        holder.execute("BEGIN EXCLUSIVE").await.unwrap();
        // The outage itself, not a wait for something.
        tokio::time::sleep(outage()).await;
        holder.execute("ROLLBACK").await.unwrap();
    });
    let result = build.succeeds(90);
    assert_eq!(outcomes(&result), ["built"], "{result}");
    invariants::hold(&dev, [&build]);
}

/// PostgreSQL stands still: connections stay open and nothing is answered.
#[test]
fn faults_half_a_minute_without_the_postgresql_store_costs_no_build() {
    let server = postgres::Server::start();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("--set=store.url={}", server.url());
    let dev = Dev::under_faults(&dir.path().join("data"), &[TWO_CELLS, &[&url]].concat());
    let build = Running::begin(&dev, "stopped", 4.0);
    let processes = family(server.id());
    processes.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).unwrap());
    // The outage itself, not a wait for something.
    sleep(outage());
    for pid in processes {
        // A session may have ended meanwhile.
        let _ = kill(pid, Signal::SIGCONT);
    }
    let result = build.succeeds(90);
    assert_eq!(outcomes(&result), ["built"], "{result}");
    invariants::hold(&dev, [&build]);
}

/// A process and its children.
fn family(pid: u32) -> Vec<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children.split_whitespace().map(|child| child.parse().unwrap());
    std::iter::once(pid.cast_signed()).chain(children).map(Pid::from_raw).collect()
}
