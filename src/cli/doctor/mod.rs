//! `kiln doctor`: tries every wire of a role, with the settings that the role would have.
//!
//! Each wire is tried on its own, all at the same time, and what is found is a kind and a sentence. Nothing is changed
//! but one object, `doctor/…`, that is written and deleted again where the role writes to storage.

mod checks;
mod net;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures::future::join_all;
use serde::Serialize;
use serde_json::json;

use super::{ClientArgs, Command, Failure, HostArgs, Output};
use crate::settings::{Resolved, Wire};

/// For everything that one wire is tried with.
const PATIENCE: Duration = Duration::from_secs(30);

/// Try every connection of a role and say what is wrong with it
///
/// Checks names, ports, TLS, credentials, clocks, Temporal's namespace, the bucket and permissions, with the settings
/// of this machine. Exits with 0 when everything works, with 1 otherwise.
#[derive(Debug, Args)]
#[command(display_order = 20, after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Whose connections to try
    #[arg(value_enum, value_name = "ROLE", default_value = "cli")]
    role: Role,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

const EXAMPLES: &str = "\
Examples:
  kiln doctor                                           # can this machine use the api?
  kiln doctor builder --config /etc/kiln/kiln.toml
  kiln doctor api --output json | jq '.wires[] | select(.problem)'";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The commands of people and CI jobs
    Cli,
    Api,
    Control,
    Builder,
    Host,
}

impl Role {
    /// What is tried, by name.
    fn tried(self) -> &'static [Tried] {
        use Tried::{Api, Buildkitd, Listeners, Logs, Registry, Store, Temporal};
        match self {
            Self::Cli => &[Api],
            Self::Api => &[Listeners, Temporal, Store, Tried::Storage { writes: true }],
            Self::Control => &[Temporal, Store, Tried::Storage { writes: true }, Registry],
            Self::Builder => &[Buildkitd, Temporal, Api, Logs, Tried::Storage { writes: false }, Registry],
            Self::Host => &[Temporal, Api],
        }
    }

    /// The settings it cannot start without.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Cli => &["api.url"],
            Self::Api => Command::Api.needs(),
            Self::Control => Command::Control.needs(),
            Self::Builder => Command::Builder.needs(),
            Self::Host => Command::Host(HostArgs { command: None }).needs(),
        }
    }
}

/// A thing to try.
#[derive(Debug, Clone, Copy)]
enum Tried {
    Temporal,
    Store,
    Storage { writes: bool },
    Api,
    Logs,
    Registry,
    Buildkitd,
    Listeners,
}

impl Tried {
    fn name(self) -> &'static str {
        match self {
            Self::Temporal => "temporal",
            Self::Store => "store",
            Self::Storage { .. } => "storage",
            Self::Api => "api",
            Self::Logs => "logs",
            Self::Registry => "registry",
            Self::Buildkitd => "buildkitd",
            Self::Listeners => "listeners",
        }
    }

    /// What must not be plaintext.
    fn wires(self) -> &'static [Wire] {
        match self {
            Self::Temporal => &[Wire::Temporal],
            Self::Store => &[Wire::Store],
            Self::Storage { .. } => &[Wire::Storage],
            Self::Api => &[Wire::Api],
            Self::Logs => &[Wire::Logs],
            Self::Listeners => &[Wire::ApiListener, Wire::LogListener],
            Self::Registry | Self::Buildkitd => &[],
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A setting is missing or cannot be used.
    Setting,
    /// The wire would carry plaintext beyond the loopback.
    Plaintext,
    /// A name does not resolve.
    Name,
    /// Nothing listens, or nothing answers.
    Port,
    Tls,
    Credential,
    Clock,
    Namespace,
    /// The bucket or database is not there.
    Bucket,
    Permission,
    /// The other end answers, but not as it should.
    Answer,
}

#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    pub kind: Kind,
    pub message: String,
}

impl Problem {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What one wire's checks came to.
#[derive(Debug, Serialize)]
struct Finding {
    wire: &'static str,
    /// The other end, without credentials.
    target: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    elapsed_ms: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    role: Role,
    ok: bool,
    wires: Vec<Finding>,
}

/// Runs the command.
///
/// # Errors
/// Never for what is found: that is the report's.
pub async fn run(args: DoctorArgs, resolved: &Resolved) -> Result<ExitCode, Failure> {
    let mut wires: Vec<Finding> = missing(args.role, resolved).into_iter().collect();
    // An agent without a token of its own has nothing to ask of the api.
    let unused =
        |tried: &Tried| args.role == Role::Host && resolved.settings.api.token.is_empty() && tried.name() == "api";
    let tried = args.role.tried().iter().filter(|tried| !unused(tried));
    wires.extend(join_all(tried.map(|tried| find(*tried, resolved))).await);
    let report = Report { role: args.role, ok: wires.iter().all(|found| found.ok), wires };
    args.output.print(|| text(&report), || json!(report))?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A finding about settings that the role cannot start without.
fn missing(role: Role, resolved: &Resolved) -> Option<Finding> {
    let unset: Vec<_> = role.needs().iter().filter(|key| !resolved.layers.is_set(key)).copied().collect();
    (!unset.is_empty()).then(|| Finding {
        wire: "settings",
        target: resolved.file.as_ref().map_or_else(|| "no file".into(), |file| file.display().to_string()),
        ok: false,
        problem: Some(Problem::new(Kind::Setting, format!("not set: {}", unset.join(", ")))),
        elapsed_ms: 0,
    })
}

async fn find(tried: Tried, resolved: &Resolved) -> Finding {
    let (begun, settings) = (Instant::now(), &resolved.settings);
    let plaintext = settings.open_wires(tried.wires()).into_iter().next();
    let checked = match plaintext {
        Some((key, rule)) => {
            let kind = if key == "temporal.client_config" { Kind::Setting } else { Kind::Plaintext };
            Err(Problem::new(kind, format!("{key} {rule}")))
        }
        None => tokio::time::timeout(PATIENCE, checks::check(tried, settings))
            .await
            .unwrap_or_else(|_| Err(Problem::new(Kind::Answer, format!("not done within {} s", PATIENCE.as_secs())))),
    };
    Finding {
        wire: tried.name(),
        target: checks::target(tried, settings),
        ok: checked.is_ok(),
        problem: checked.err(),
        elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

fn text(report: &Report) -> String {
    let width = report.wires.iter().map(|found| found.wire.len()).max().unwrap_or_default();
    report.wires.iter().fold(String::new(), |mut text, found| {
        let verdict = if found.ok { "ok    " } else { "failed" };
        let _ = write!(text, "{verdict}  {:width$}  {}", found.wire, found.target);
        if let Some(problem) = &found.problem {
            let kind = serde_json::to_value(problem.kind).unwrap_or_default();
            let _ = write!(text, "\n        {}: {}", kind.as_str().unwrap_or_default(), problem.message);
        }
        text + "\n"
    })
}
