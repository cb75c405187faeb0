//! `kiln tokens`: issue, list and revoke tokens.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use workflows::contract::{BuildKey, CellId, HostId, Principal, ProjectName, Scope};

use super::client::{Client, TokenInfo, TokenIssued, TokenRequest};
use super::table::{ago, now_ms, table, time};
use super::{ClientArgs, Failure, Output};
use crate::settings::Settings;
use crate::terminal::{self, OutputError};

/// Issue, list and revoke tokens
#[derive(Debug, Args)]
#[command(display_order = 6, after_help = EXAMPLES)]
pub struct TokensArgs {
    #[command(subcommand)]
    command: Command,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", global = true, help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Issue a token and print it: it is shown this once
    ///
    /// Whom it stands for: a project (--project, with --scope), one build of it (--project with --build), a backend that acts for all
    /// projects (--platform), a cell that no host keeps (--cell), a host (--host) or an operator (--operator).
    Create(NewToken),
    /// List the valid tokens that you may manage
    Ls {
        /// Filter by project
        #[arg(long, value_name = "PROJECT")]
        project: Option<ProjectName>,
    },
    /// Revoke tokens; they are void within two seconds
    Revoke {
        /// As `kiln tokens ls` lists it
        #[arg(required = true, value_name = "TOKEN_ID")]
        ids: Vec<String>,
    },
}

/// Tokens that neither a scope nor a build goes with.
const NOT_OF_A_PROJECT: [&str; 4] = ["platform", "cell", "host", "operator"];

#[derive(Debug, Args)]
struct NewToken {
    #[command(flatten)]
    whom: Whom,
    /// What a project's token may do
    #[arg(long, value_enum, default_value = "build", value_name = "SCOPE", conflicts_with_all = NOT_OF_A_PROJECT, conflicts_with = "build")]
    scope: ScopeArg,
    /// The key of the one build that the token may start and follow
    #[arg(long, value_name = "KEY", conflicts_with_all = NOT_OF_A_PROJECT)]
    build: Option<BuildKey>,
    /// When it expires, like 90d, 12h or 30m [default: never; with --build, after a day]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires: Option<u64>,
    /// What it is for, to find it again
    #[arg(long, value_name = "NAME", default_value = "kiln tokens create")]
    name: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// For a person or a CI job of this project
    #[arg(long, value_name = "PROJECT")]
    project: Option<ProjectName>,
    /// For a backend that acts for all projects
    #[arg(long)]
    platform: bool,
    /// For the builder of this cell, on a machine that no `kiln host` keeps
    #[arg(long, value_name = "CELL")]
    cell: Option<CellId>,
    /// For the `kiln host` of this host
    #[arg(long, value_name = "HOST")]
    host: Option<HostId>,
    /// For a person who runs the installation
    #[arg(long)]
    operator: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// See the project, its builds and their logs
    Read,
    /// Also upload code and secrets, start, cancel and retry builds
    Build,
    /// Also change the project's settings, and manage its tokens
    Admin,
}

const EXAMPLES: &str = "\
Examples:
  kiln tokens create --project shop --scope build --name ci --expires 90d
  kiln tokens create --project shop --build release-42      # one build, for a day
  kiln tokens create --host metal-1 --name 'kiln host' >/etc/kiln/host.token
  kiln tokens revoke t-3f0c9a5e7b1d2468";

impl NewToken {
    fn request(self) -> TokenRequest {
        let Self { whom, scope, build, expires, name } = self;
        let scope = match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Build => Scope::Build,
            ScopeArg::Admin => Scope::Admin,
        };
        let principal = match (whom, build) {
            (Whom { project: Some(project), .. }, Some(key)) => Principal::Build { project, key },
            (Whom { project: Some(project), .. }, None) => Principal::Project { project, scope },
            (Whom { cell: Some(cell), .. }, _) => Principal::Cell { cell },
            (Whom { host: Some(host), .. }, _) => Principal::Host { host },
            (Whom { platform: true, .. }, _) => Principal::Platform,
            _ => Principal::Operator,
        };
        TokenRequest { principal, name, expires_in_s: expires }
    }
}

/// `30m`, `12h` or `90d`, as seconds.
pub fn lifetime(text: &str) -> Result<u64, String> {
    let wrong = || "must be a whole number of minutes, hours or days, like 30m, 12h or 90d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|life| *life > 0).ok_or_else(wrong)
}

/// Runs the command.
pub async fn run(args: TokensArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    match args.command {
        Command::Create(new) => issued(args.output, &client.issue_token(&new.request()).await?)?,
        Command::Ls { project } => {
            let tokens = client.tokens(project.as_ref()).await?;
            args.output.print(|| list(&tokens, now_ms()), || json!({"tokens": tokens}))?;
        }
        Command::Revoke { ids } => {
            for id in &ids {
                client.revoke_token(id).await?;
                if args.output == Output::Text {
                    terminal::print_line(format_args!("{id} is revoked"))?;
                }
            }
            if args.output == Output::Json {
                terminal::print_json(&json!({"revoked": ids}))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The secret alone on standard output, so that it can be written to a file.
fn issued(output: Output, issued: &TokenIssued) -> Result<(), OutputError> {
    let TokenIssued { token, info } = issued;
    match output {
        Output::Text => {
            let expires =
                info.expires_ms.map_or_else(|| "does not expire".into(), |ms| format!("expires {}", time(ms)));
            let (id, principal) = (&info.id, &info.principal);
            terminal::note(format_args!("{id}, {principal}, {expires}; the token is shown this once:"));
            terminal::print_line(token)
        }
        Output::Json => terminal::print_json(&json!(issued)),
    }
}

fn list(tokens: &[TokenInfo], now_ms: i64) -> String {
    let heading = ["TOKEN", "FOR", "NAME", "CREATED", "USED", "EXPIRES", "ISSUED BY"].map(str::to_owned);
    let since = |ms| format!("{} ago", ago(ms, now_ms));
    let row = |token: &TokenInfo| {
        [
            token.id.clone(),
            token.principal.to_string(),
            token.name.clone(),
            since(token.created_ms),
            token.used_ms.map_or_else(|| "never".to_owned(), since),
            token.expires_ms.map_or_else(|| "never".to_owned(), time),
            token.issued_by.clone(),
        ]
    };
    table(&std::iter::once(heading).chain(tokens.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn request(arguments: &[&str]) -> Option<TokenRequest> {
        let line = ["kiln", "tokens", "create"].iter().chain(arguments);
        match Cli::try_parse_from(line).ok()?.command {
            crate::cli::Command::Tokens(TokensArgs { command: Command::Create(new), .. }) => Some(new.request()),
            _ => None,
        }
    }

    #[test]
    fn a_token_is_for_one_principal() {
        for (arguments, principal) in [
            (&["--project", "shop"][..], "project/shop:build"),
            (&["--project", "shop", "--scope", "read"], "project/shop:read"),
            (&["--project", "shop", "--build", "k/1"], "build/shop/k/1"),
            (&["--platform"], "platform"),
            (&["--cell", "c-1"], "cell/c-1"),
            (&["--host", "h-1"], "host/h-1"),
            (&["--operator"], "operator"),
        ] {
            assert_eq!(request(arguments).unwrap().principal.to_string(), principal, "{arguments:?}");
        }
        for wrong in [
            &[][..],
            &["--project", "shop", "--operator"],
            &["--scope", "read"],
            &["--platform", "--scope", "read"],
            &["--host", "h-1", "--build", "k"],
            &["--project", "shop", "--build", "k", "--scope", "admin"],
            &["--project", "shop", "--expires", "0d"],
        ] {
            assert!(request(wrong).is_none(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_lifetime_is_a_number_with_a_unit() {
        assert_eq!(["30m", "12h", "90d"].map(lifetime), [Ok(1800), Ok(43_200), Ok(7_776_000)]);
        for wrong in ["", "d", "30", "0h", "-1d", "1w", "99999999999999999999d", "18446744073709551615d", "3é"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_are_listed() {
        let tokens = [
            TokenInfo {
                id: "t-3f0c9a5e7b1d2468".into(),
                principal: "project/shop:build".parse().unwrap(),
                name: "ci".into(),
                issued_by: "operator (settings)".into(),
                created_ms: 0,
                expires_ms: Some(1_700_000_000_000),
                used_ms: Some(3_000_000),
            },
            TokenInfo {
                id: "t-0000000000000000".into(),
                principal: "host/metal-1".parse().unwrap(),
                name: "kiln host".into(),
                issued_by: "operator (settings)".into(),
                created_ms: 0,
                expires_ms: None,
                used_ms: None,
            },
        ];
        insta::assert_snapshot!(list(&tokens, 3_600_000), @r"
        TOKEN               FOR                 NAME       CREATED  USED     EXPIRES               ISSUED BY
        t-3f0c9a5e7b1d2468  project/shop:build  ci         60m ago  10m ago  2023-11-14T22:13:20Z  operator (settings)
        t-0000000000000000  host/metal-1        kiln host  60m ago  never    never                 operator (settings)
        ");
    }
}
