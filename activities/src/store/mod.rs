//! The store: projects, tokens, builds, outcomes, the order of tags and the hints of cells, in SQLite or PostgreSQL.
//!
//! Temporal is the truth of a running build; the store is what lists read, what outlives Temporal's retention (outcomes), and
//! where control and api, which are different processes, meet. So every write is one idempotent statement that decides by itself
//! who wins, and nothing here reads first and writes after. The SQL is what both databases understand: `$1` placeholders, TEXT
//! and BIGINT columns, `ON CONFLICT`.
//!
//! It holds no secrets: tokens are hashed, credentials are only named by reference.

mod admission;
mod audit;
mod builds;
mod cells;
mod logs;
mod outcomes;
mod pools;
mod probe;
mod projects;
mod quotas;
mod reach;
mod sealed;
mod tags;
#[cfg(test)]
mod tests;
mod tokens;
mod trust;
mod warmth;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::AnyPool;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{Executor as _, Row as _};

pub use admission::{Begun, Facts, News, ProjectRuns, Question, Seen};
pub use audit::{AuditFilter, AuditRow};
pub use builds::{BuildFilter, BuildRow, RunKey};
pub use cells::CellRow;
pub use logs::{ArchivedLog, PartStart};
pub use outcomes::Outcome;
pub use probe::{StoreProblem, probe};
pub use projects::{ProjectRow, ProjectSettings};
pub use reach::{Reach, reach};
pub use sealed::SealedRow;
pub use tags::TagClaim;
pub use tokens::{IssuedToken, NewToken, TokenHash, TokenRow};
pub use trust::TrustRow;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/store/migrations");

/// How often a start tries to bring the tables up to date: control and api start together, and SQLite knows no lock around
/// migrations, so one of them can find the other at work.
const MIGRATE_TRIES: u32 = 20;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store's address is neither sqlite:… nor postgres://…")]
    Address,
    #[error("the store cannot be opened")]
    Open(#[source] sqlx::Error),
    #[error("the store's tables cannot be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    #[error("the store failed to {doing}")]
    Query { doing: &'static str, source: sqlx::Error },
    /// A row that was written by something else, or by a later version.
    #[error("the store's column {column:?} cannot be read")]
    Corrupt { column: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("a value for the store cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// A handle to the store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
}

impl Store {
    /// Opens `sqlite:///path/kiln.db` (made when it is not there) or `postgres://user:password@host/database`, and brings its
    /// tables up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let pool = if url.starts_with("sqlite:") {
            open_sqlite(url).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            AnyPoolOptions::new().max_connections(16).connect(url).await.map_err(StoreError::Open)?
        } else {
            return Err(StoreError::Address);
        };
        migrate(&pool).await?;
        Ok(Self { pool })
    }

    /// Closes the connections; a SQLite file is complete in itself afterwards.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// WAL lets readers of other processes go on while one writes; writers wait for each other up to the busy timeout. Few
/// connections, because waiting writers only poll. `synchronous = NORMAL`: a killed process loses nothing, a machine that loses
/// power may lose its last moments, and so would the dev server beside it; an installation that must not uses PostgreSQL.
async fn open_sqlite(url: &str) -> Result<AnyPool, StoreError> {
    let url = match url.contains("mode=") {
        true => url.to_owned(),
        false => format!("{url}{}mode=rwc", if url.contains('?') { '&' } else { '?' }),
    };
    AnyPoolOptions::new()
        .max_connections(4)
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute("PRAGMA busy_timeout = 10000").await?;
                connection.execute("PRAGMA journal_mode = WAL").await?;
                connection.execute("PRAGMA synchronous = NORMAL").await?;
                Ok(())
            })
        })
        .connect(&url)
        .await
        .map_err(StoreError::Open)
}

async fn migrate(pool: &AnyPool) -> Result<(), StoreError> {
    let mut tries = 1;
    loop {
        match MIGRATIONS.run(pool).await {
            Ok(()) => return Ok(()),
            Err(error) if tries == MIGRATE_TRIES => return Err(StoreError::Migrate(error)),
            Err(error) => tracing::debug!(%error, tries, "tables are being brought up to date by another process"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Milliseconds since 1970 of this machine's clock.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Names what was being done when the database failed.
fn failed_to(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { doing, source }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::Encode)
}

fn text(row: &AnyRow, column: &'static str) -> Result<String, StoreError> {
    row.try_get(column).map_err(|source| corrupt(column, source))
}

fn optional_text(row: &AnyRow, column: &'static str) -> Result<Option<String>, StoreError> {
    row.try_get(column).map_err(|source| corrupt(column, source))
}

fn number(row: &AnyRow, column: &'static str) -> Result<i64, StoreError> {
    row.try_get(column).map_err(|source| corrupt(column, source))
}

fn optional_number(row: &AnyRow, column: &'static str) -> Result<Option<i64>, StoreError> {
    row.try_get(column).map_err(|source| corrupt(column, source))
}

/// A checked id of the contract.
fn id<T>(row: &AnyRow, column: &'static str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text(row, column)?.parse().map_err(|source| corrupt(column, source))
}

fn json<T: serde::de::DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(&text(row, column)?).map_err(|source| corrupt(column, source))
}

fn corrupt(column: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Corrupt { column, source: Box::new(source) }
}
