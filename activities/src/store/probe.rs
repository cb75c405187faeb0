//! Whether the database can be used, without changing anything in it.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

/// For connecting and for each question.
const PATIENCE: Duration = Duration::from_secs(10);

/// What keeps a database from being used.
#[derive(Debug, thiserror::Error)]
pub enum StoreProblem {
    #[error("the URL cannot be used: {0}")]
    Url(String),
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("there is no TLS with the server: {0}")]
    Tls(String),
    #[error("the server does not accept the credential: {0}")]
    Credential(String),
    #[error("the database is not there: {0}")]
    Absent(String),
    #[error("not permitted: {0}")]
    Permission(String),
    #[error("the database answered with an error: {0}")]
    Other(String),
}

/// Connects to the database of `url` and checks that tables could be made there.
///
/// # Errors
/// The first thing that is wrong.
pub async fn probe(url: &str) -> Result<(), StoreProblem> {
    match url.starts_with("postgres") {
        true => tokio::time::timeout(PATIENCE, postgres(url))
            .await
            .unwrap_or_else(|_| Err(StoreProblem::Unreachable(format!("no answer in {} s", PATIENCE.as_secs())))),
        false => sqlite(url).await,
    }
}

async fn postgres(url: &str) -> Result<(), StoreProblem> {
    let options = PgConnectOptions::from_str(url).map_err(|error| StoreProblem::Url(error.to_string()))?;
    let mut connection = PgConnection::connect_with(&options.disable_statement_logging()).await.map_err(problem)?;
    let may = sqlx::query_scalar("SELECT has_schema_privilege(current_schema(), 'CREATE')");
    let may: Option<bool> = may.fetch_one(&mut connection).await.map_err(problem)?;
    connection.close().await.ok();
    match may {
        Some(true) => Ok(()),
        _ => Err(StoreProblem::Permission("the user may not create tables in its schema".into())),
    }
}

async fn sqlite(url: &str) -> Result<(), StoreProblem> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| StoreProblem::Url(error.to_string()))?;
    let file = options.get_filename().to_owned();
    if file.exists() {
        let opened = tokio::fs::OpenOptions::new().read(true).write(true).open(&file).await;
        return opened.map(drop).map_err(|error| StoreProblem::Permission(format!("{}: {error}", file.display())));
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match dir.metadata() {
        Ok(dir) if dir.is_dir() => Ok(()),
        _ => Err(StoreProblem::Absent(format!("there is no directory {}", dir.display()))),
    }
}

/// By PostgreSQL's error codes (<https://www.postgresql.org/docs/15/errcodes-appendix.html>).
fn problem(error: sqlx::Error) -> StoreProblem {
    let text = crate::failure::with_source(&error);
    match &error {
        sqlx::Error::Tls(_) => StoreProblem::Tls(text),
        // A handshake that failed is an error of reading or writing to sqlx.
        sqlx::Error::Io(io) if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => StoreProblem::Tls(text),
        sqlx::Error::Io(_) => StoreProblem::Unreachable(text),
        sqlx::Error::Configuration(_) => StoreProblem::Url(text),
        sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
            "28000" | "28P01" => StoreProblem::Credential(text),
            "3D000" => StoreProblem::Absent(text),
            "42501" => StoreProblem::Permission(text),
            _ => StoreProblem::Other(text),
        },
        _ => StoreProblem::Other(text),
    }
}
