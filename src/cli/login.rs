//! `kiln login` and `kiln logout`: a token for one api, kept in the user's directory of settings.

use std::io::{self, IsTerminal as _, Read as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use workflows::contract::FailureClass;

use super::client::Client;
use super::failure::chain;
use super::{ClientArgs, Failure, Output};
use crate::settings::{LoginError, Logins, Secret, Settings};
use crate::terminal;

/// The longest token that is read, bytes.
const TOKEN_MOST: u64 = 512;

/// Store a token for an api, readable by this user alone
///
/// The token is read from standard input, or from --token-file, and checked with the api. From then on every command that talks to
/// this api sends it, unless KILN_API_TOKEN or --token-file says otherwise.
#[derive(Debug, Args)]
#[command(display_order = 7, after_help = EXAMPLES)]
pub struct LoginArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Forget the token that was stored for an api; it stays valid until it is revoked
#[derive(Debug, Args)]
#[command(display_order = 8)]
pub struct LogoutArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

const EXAMPLES: &str = "\
Examples:
  kiln login --api https://kiln.example.com        # then paste the token
  kiln login --api https://kiln.example.com <token.txt";

/// Runs `kiln login`.
pub async fn login(args: LoginArgs, mut settings: Settings) -> Result<ExitCode, Failure> {
    let token = match args.client.token_file {
        // The settings have read it.
        Some(_) => settings.api.token.clone(),
        None => read_token(&settings.api.url)?,
    };
    settings.api.token = token.clone();
    let who = Client::new(&settings)?.whoami().await?;
    let path = file()?;
    let mut logins = Logins::read(&path)?;
    logins.set(&settings.api.url, token);
    logins.write(&path)?;
    args.output.print(
        || format!("logged in to {} as {}\n", settings.api.url, who.principal),
        || json!({"api": settings.api.url, "principal": who.principal, "token": who.token}),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `kiln logout`.
pub fn logout(args: &LogoutArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let path = file()?;
    let mut logins = Logins::read(&path)?;
    let known = logins.remove(&settings.api.url);
    if known {
        logins.write(&path)?;
    }
    let done = if known { "logged out of" } else { "no token was stored for" };
    args.output
        .print(|| format!("{done} {}\n", settings.api.url), || json!({"api": settings.api.url, "known": known}))?;
    Ok(ExitCode::SUCCESS)
}

fn file() -> Result<std::path::PathBuf, Failure> {
    Logins::usual_file().ok_or_else(|| Failure::usage("cannot store a token: neither XDG_CONFIG_HOME nor HOME is set"))
}

/// One line of standard input; on a terminal it is asked for and not shown.
fn read_token(api: &str) -> Result<Secret, Failure> {
    let text = match io::stdin().is_terminal() {
        true => {
            terminal::ask(format_args!("Token for {api}: "));
            console::Term::stderr().read_secure_line()
        }
        false => {
            let mut text = String::new();
            io::stdin().take(TOKEN_MOST).read_to_string(&mut text).map(|_| text)
        }
    };
    let text = text.map_err(|error| Failure::usage(format!("cannot read the token from standard input: {error}")))?;
    match text.trim() {
        "" => Err(Failure::usage("no token was given on standard input")),
        token => Ok(Secret::new(token)),
    }
}

impl From<LoginError> for Failure {
    fn from(error: LoginError) -> Self {
        Self::new(FailureClass::Usage, chain(&error))
    }
}
