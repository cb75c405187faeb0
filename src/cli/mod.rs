//! The command line: what it looks like, and the commands of people and CI jobs. They talk to `kiln api` only.
//!
//! Standard output carries results, standard error everything else, both by way of [`crate::terminal`]. A command ends with
//! [`Failure`], whose class is the exit code.

mod audit;
mod builds;
mod cells;
pub mod ci;
mod client;
mod completions;
mod config;
mod credentials;
mod docker;
mod doctor;
mod failure;
mod login;
mod pools;
mod progress;
mod projects;
mod simulate;
mod table;
mod tokens;
mod trust;
mod up;
mod watch;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;
use workflows::contract::ProjectName;

pub use audit::{AuditArgs, run as audit};
pub use builds::{BuildsArgs, run as builds};
pub use cells::{CellsArgs, run as cells};
pub use client::{Client, ClientError};
pub use completions::{CompletionsArgs, run as completions};
pub use config::{ConfigArgs, run as config};
pub use doctor::{DoctorArgs, run as doctor};
pub use failure::{Failure, FailureReport, not_a_command};
pub use login::{LoginArgs, LogoutArgs, login, logout};
pub use pools::{PoolsArgs, run as pools};
pub use projects::{ProjectsArgs, run as projects};
pub use simulate::{SimulateArgs, run as simulate};
pub use tokens::{TokensArgs, run as tokens};
pub use up::{UpArgs, run as up};

use crate::dev::{self, DevArgs, RunImageArgs};
use crate::settings::{self, Logins, Overrides, Settings, Wire};
use crate::terminal::{self, OutputError};

/// Durable container builds on a fleet of warm builders.
///
/// `kiln up` turns a directory with a Dockerfile into a pushed image, as docker build and docker push do. `kiln dev` runs all of
/// Kiln on this machine.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 120, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct GlobalArgs {
    /// Settings file [default: ./kiln.toml, ~/.config/kiln/kiln.toml or /etc/kiln/kiln.toml]
    #[arg(long, value_name = "FILE", env = "KILN_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Set one setting, for example --set cell.slots=8 (`kiln config` lists them)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment, global = true)]
    pub set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Box<UpArgs>),
    Builds(BuildsArgs),
    Projects(ProjectsArgs),
    Cells(CellsArgs),
    Pools(PoolsArgs),
    Tokens(TokensArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Audit(AuditArgs),
    Simulate(SimulateArgs),
    Doctor(DoctorArgs),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    /// Run all of Kiln on this machine: Temporal, registry, S3 store, api, control and cells
    #[command(display_order = 100)]
    Dev(DevArgs),
    /// What the demo runs an image with
    #[command(name = "__run-image", hide = true)]
    RunImage(RunImageArgs),
    /// Run the workflows and what they need of store, storage and registries
    #[command(display_order = 101)]
    Control,
    /// Run the builder of one cell, beside its buildkitd
    #[command(display_order = 102)]
    Builder,
    /// Run the agent of one host: it starts, stops, updates and clones the host's cells
    ///
    /// What the cells are says host.driver: process, qemu or firecracker. The driver firecracker was tested against a stand-in of
    /// Firecracker's API only: try it on a host of its own before anything depends on it.
    #[command(display_order = 103)]
    Host(HostArgs),
    /// Run the front door: HTTP, logs, hints
    #[command(display_order = 104)]
    Api,
}

impl Command {
    /// The name for telemetry, and what is logged unless `KILN_LOG` says otherwise: roles tell what they do, commands only what
    /// goes wrong.
    pub fn role(&self) -> (&'static str, &'static str) {
        match self {
            Self::Control => ("control", "info"),
            Self::Builder => ("builder", "info"),
            Self::Host(HostArgs { command: None }) => ("host", "info"),
            Self::Api => ("api", "info"),
            Self::Dev(_) => ("dev", "warn"),
            _ => ("cli", "warn"),
        }
    }

    /// How its failure is reported.
    pub fn failure_report(&self) -> FailureReport {
        let output = match self {
            Self::Up(args) => args.output,
            Self::Builds(args) => args.output,
            Self::Projects(args) => args.output,
            Self::Cells(args) => args.output,
            Self::Pools(args) => args.output,
            Self::Tokens(args) => args.output,
            Self::Login(args) => args.output,
            Self::Logout(args) => args.output,
            Self::Doctor(args) => args.output,
            Self::Audit(args) => args.output,
            Self::Simulate(args) => args.output,
            Self::Config(args) => args.output,
            Self::Host(HostArgs { command: Some(HostCommand::Plan { output } | HostCommand::Images { output }) }) => {
                *output
            }
            _ => Output::Text,
        };
        let of_a_build = match self {
            Self::Up(_) => true,
            Self::Builds(args) => args.starts_a_build(),
            _ => false,
        };
        FailureReport { output, of_a_build }
    }

    /// The connection of a command that talks to an api.
    fn client(&self) -> Option<&ClientArgs> {
        match self {
            Self::Up(args) => Some(&args.client),
            Self::Builds(args) => Some(&args.client),
            Self::Projects(args) => Some(&args.client),
            Self::Cells(args) => Some(&args.client),
            Self::Pools(args) => Some(&args.client),
            Self::Tokens(args) => Some(&args.client),
            Self::Login(args) => Some(&args.client),
            Self::Logout(args) => Some(&args.client),
            Self::Audit(args) => Some(&args.client),
            Self::Config(args) => Some(&args.client),
            Self::Doctor(args) => Some(&args.client),
            _ => None,
        }
    }

    /// The connections it makes and takes.
    pub fn wires(&self) -> &'static [Wire] {
        match self {
            Self::Control => &[Wire::Temporal, Wire::Store, Wire::Storage],
            Self::Builder => &[Wire::Temporal, Wire::Storage, Wire::Api, Wire::Logs, Wire::Services],
            Self::Host(HostArgs { command: None }) => &[Wire::Temporal, Wire::Api],
            Self::Api => &[Wire::ApiListener, Wire::LogListener, Wire::Temporal, Wire::Store, Wire::Storage],
            // They say themselves what is wrong.
            Self::Config(_) | Self::Doctor(_) => &[],
            _ if self.client().is_some() => &[Wire::Api],
            _ => &[],
        }
    }

    /// The project that a command is about.
    fn project(&self) -> Option<ProjectName> {
        match self {
            Self::Up(args) => up::project_of(args),
            Self::Builds(args) => args.project(),
            Self::Projects(args) => args.project(),
            _ => None,
        }
    }

    /// The settings it cannot start without.
    pub fn needs(&self) -> &'static [&'static str] {
        match self {
            Self::Control => &["store.url", "s3.bucket", "seal.identity_file"],
            Self::Builder => &["cell.id", "cell.dir", "cell.buildkit_socket", "s3.bucket", "seal.identity_file"],
            Self::Host(HostArgs { command: None }) => &["host.id", "host.cells"],
            Self::Api => &["store.url", "s3.bucket", "seal.recipient", "logs.dir"],
            _ => &[],
        }
    }
}

#[derive(Debug, Args)]
pub struct HostArgs {
    #[command(subcommand)]
    pub command: Option<HostCommand>,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List the images that this host can be ordered to run, as `kiln cells update --image` takes them
    Images {
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },
    /// Print how this machine would be split into the guests of the settings, and start nothing
    Plan {
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
        output: Output,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON object on the last line of standard output
    Json,
}

impl Output {
    /// Prints a result: the text for people, or the object.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Result<(), OutputError> {
        match self {
            Self::Text => terminal::print(text()),
            Self::Json => terminal::print_json(&json()),
        }
    }
}

/// Which api a command talks to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct ClientArgs {
    /// The api to talk to [setting: api.url; default: a `kiln dev` on this machine]
    #[arg(long, value_name = "URL", global = true)]
    pub api: Option<String>,
    /// File with the token to send [setting: api.token_file; default: KILN_API_TOKEN, or what `kiln login` stored]
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
}

impl Cli {
    /// What the flags say about settings.
    pub fn overrides(&self) -> Overrides {
        let set = self.global.set.iter().map(|(key, value)| ("--set", key.as_str(), value));
        let client = self.command.client();
        let api = client.and_then(|client| client.api.as_ref()).map(|api| ("--api", "api.url", api));
        let file = client.and_then(|client| client.token_file.as_ref()).map(|file| file.to_string_lossy().into_owned());
        let token = file.as_ref().map(|file| ("--token-file", "api.token_file", file));
        let flags = set.chain(api).chain(token);
        Overrides {
            file: self.global.config.clone(),
            flags: flags.map(|(flag, key, value)| (flag.to_owned(), key.to_owned(), value.clone())).collect(),
            dev_ready: client.and_then(|_| dev::ready_file()),
            logins: client.and_then(|_| Logins::usual_file()),
        }
    }
}

/// The settings that this command line has, with today's files and variables; `None` where something is wrong with them.
pub fn settings_of(line: &[String]) -> Option<Settings> {
    let cli = Cli::try_parse_from(line).ok()?;
    settings::resolve(&cli.overrides()).ok().map(|resolved| resolved.settings)
}

/// Gives the command a token, where it has none and a CI system gives its job one.
///
/// # Errors
/// When the CI system or the api gives none after all.
pub async fn authenticate(command: &Command, settings: &mut Settings) -> Result<(), Failure> {
    match command.project() {
        Some(project) => ci::authenticate(settings, &project, |name| std::env::var(name).ok()).await,
        None => Ok(()),
    }
}

/// `KEY=VALUE` with a key that is not empty.
fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_command_lines_settings_are_read_as_it_reads_them() {
        let upstreams = |line: &[String]| settings_of(line).map(|settings| settings.upstreams());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[dns]\nupstreams = [\"10.0.0.2\", \"10.0.0.3:5353\"]\n").unwrap();
        let line = ["/image/kiln", "builder", "--config", file.path().to_str().unwrap()].map(String::from);
        assert_eq!(upstreams(&line).unwrap(), ["10.0.0.2:53".parse().unwrap(), "10.0.0.3:5353".parse().unwrap()]);
        let over = [&line[..], &["--set", "dns.upstreams=10.0.0.9"].map(String::from)].concat();
        assert_eq!(upstreams(&over).unwrap(), ["10.0.0.9:53".parse().unwrap()]);
        assert_eq!(upstreams(&["/image/kiln", "builder", "--config", "/no/such/file"].map(String::from)), None);
    }
}
