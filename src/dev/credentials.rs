//! The credential of the host's agent: issued by the api to the operator's token, kept in the data directory, used for as long as it
//! is valid.

use std::time::Duration;

use anyhow::Context as _;
use workflows::contract::Principal;

use super::files;
use super::parts::{HOST, Installation};
use crate::api::TokenRequest;
use crate::cli::{Client, ClientError};
use crate::settings::Secret;

const POLL: Duration = Duration::from_millis(25);

/// Waits until the api answers, and puts a valid credential into the host's token file. The caller limits the time.
///
/// # Errors
/// When the api refuses the operator's token, or the file cannot be written.
pub async fn prepare(installation: &Installation) -> anyhow::Result<()> {
    let file = installation.host_token();
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    if !kept.trim().is_empty() && is_valid(installation, kept.trim()).await? {
        return Ok(());
    }
    let principal = Principal::Host { host: HOST.parse()? };
    let request = TokenRequest { principal, name: "kiln dev".into(), expires_in_s: None };
    let client = Client::new(&installation.settings)?;
    let issued = patiently(async || client.issue_token(&request).await).await?;
    files::write(&file, issued.token.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

/// Whether the host's agent would get in with this token.
async fn is_valid(installation: &Installation, token: &str) -> anyhow::Result<bool> {
    let mut settings = installation.settings.clone();
    settings.api.token = Secret::new(token);
    let client = Client::new(&settings)?;
    match patiently(async || client.whoami().await).await {
        Ok(who) => Ok(matches!(who.principal, Principal::Host { .. })),
        Err(ClientError::Token { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Asks until the api answers.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    loop {
        match ask().await {
            Err(error) if error.is_passing() => tokio::time::sleep(POLL).await,
            answered => return answered,
        }
    }
}
