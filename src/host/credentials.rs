//! The credentials of a host's cells: before each start of a cell, the agent gets a new one from the api by its own token and puts it into
//! the cell's directory. The builder reads it there (`api.token_file`); a guest gets it on its config disk.
//!
//! An agent without a token of its own leaves its cells what their settings say. While the api is away, a cell starts with the credential
//! that it has.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use activities::vm::{Cloned, Driver, DriverError};
use tokio::time::Instant;
use workflows::contract::CellId;

use crate::cli::{Client, ClientError};
use crate::settings::Settings;

/// The credential's file in a cell's directory; mode 0600.
pub const FILE: &str = "api.token";
/// How long a start waits for the api.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where the cell has a credential already.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(250);

/// Where cells' credentials come from.
#[derive(Clone)]
pub struct Credentials(Client);

impl Credentials {
    /// `None` for an agent without a token.
    ///
    /// # Errors
    /// When no client of the api can be made.
    pub fn new(settings: &Settings) -> Result<Option<Self>, ClientError> {
        if settings.api.token.is_empty() {
            return Ok(None);
        }
        Client::new(settings).map(|client| Some(Self(client)))
    }

    /// Puts a new credential of the cell into its directory.
    async fn renew(&self, dir: &Path) -> Result<(), DriverError> {
        let cell = super::cell_of(dir).map_err(|error| failed(format!("{error:#}")))?;
        let file = dir.join(FILE);
        let has_one = file.is_file();
        match self.issue(&cell, if has_one { SHORT_PATIENCE } else { PATIENCE }).await {
            Ok(token) => write(dir, &file, &token).map_err(|error| failed(format!("{}: {error}", file.display()))),
            Err(why) if has_one => {
                tracing::warn!(%cell, why, "cannot renew the cell's credential; it starts with the one that it has");
                Ok(())
            }
            Err(why) => Err(failed(why)),
        }
    }

    /// The new credential, or why there is none.
    async fn issue(&self, cell: &CellId, patience: Duration) -> Result<String, String> {
        let deadline = Instant::now() + patience;
        loop {
            let why = match tokio::time::timeout_at(deadline, self.0.cell_credential(cell)).await {
                Ok(Ok(issued)) => return Ok(issued.token),
                Ok(Err(error)) if !error.is_passing() => {
                    return Err(format!("{error}; the agent's own token must be one of `kiln tokens create --host`"));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => return Err(format!("the api did not answer within {} s", patience.as_secs())),
            };
            if Instant::now() + RETRY >= deadline {
                return Err(why);
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn failed(why: String) -> DriverError {
    DriverError::Credential { why }
}

fn write(dir: &Path, file: &Path, token: &str) -> io::Result<()> {
    // Temporary files are made with mode 0600.
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(token.as_bytes())?;
    new.persist(file)?;
    Ok(())
}

/// A driver whose cells start with a credential of their own.
pub struct Credentialed<D> {
    driver: D,
    credentials: Option<Credentials>,
}

impl<D> Credentialed<D> {
    pub fn new(driver: D, credentials: Option<Credentials>) -> Self {
        Self { driver, credentials }
    }
}

impl<D: Driver> Driver for Credentialed<D> {
    type Cell = D::Cell;

    async fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        self.driver.check(dir, image).await
    }

    async fn start(&self, dir: &Path, image: Option<&str>) -> Result<D::Cell, DriverError> {
        if let Some(credentials) = &self.credentials {
            self.driver.check(dir, image).await?;
            credentials.renew(dir).await?;
        }
        self.driver.start(dir, image).await
    }

    fn adopt(&self, dir: &Path) -> Result<Option<D::Cell>, DriverError> {
        self.driver.adopt(dir)
    }

    fn stop(&self, cell: &D::Cell) {
        self.driver.stop(cell);
    }

    fn least_grace(&self) -> Duration {
        self.driver.least_grace()
    }

    fn kill(&self, cell: &D::Cell) {
        self.driver.kill(cell);
    }

    fn inspect(&self, cell: &D::Cell) -> Option<u32> {
        self.driver.inspect(cell)
    }

    async fn ended(&self, cell: &mut D::Cell) -> String {
        self.driver.ended(cell).await
    }

    async fn replug(&self, dir: &Path) -> Result<Vec<String>, DriverError> {
        self.driver.replug(dir).await
    }

    async fn clone_cell(
        &self,
        main: &Path,
        dir: &Path,
        operation: &str,
        image: Option<&str>,
    ) -> Result<Cloned, DriverError> {
        self.driver.clone_cell(main, dir, operation, image).await
    }

    async fn delete_clone(&self, dir: &Path) -> Result<(), DriverError> {
        self.driver.delete_clone(dir).await
    }
}
