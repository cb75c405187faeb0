//! `kiln`: durable container builds. One binary; its roles are subcommands.
//!
//! The way of every start: helpers that must not share a process with threads, command line, settings, telemetry, the role or
//! command, its exit code.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "the answers are those of the tests' own servers"))]

mod api;
mod builder;
mod cell;
mod cli;
mod control;
mod dev;
mod host;
mod listen;
mod metrics;
mod relay;
mod settings;
mod signals;
mod telemetry;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use cli::{Cli, Command, Failure, HostCommand, Output};
use settings::{Resolved, Settings};
use tokio_util::sync::CancellationToken;
use workflows::contract::FailureClass;

/// How long tasks that ignore their end may keep the process.
const LAST_TASKS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    if let Some(code) = cell::early(cli::settings_of) {
        return code;
    }
    let line: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&line) {
        Ok(cli) => cli,
        Err(error) => return cli::not_a_command(&error, &line),
    };
    let report = cli.command.failure_report();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report.fail(&Failure::new(FailureClass::Transient, format!("cannot start threads: {error}")));
        }
    };
    let code = runtime.block_on(start(cli)).unwrap_or_else(|failure| report.fail(&failure));
    runtime.shutdown_timeout(LAST_TASKS);
    code
}

/// Settings, telemetry, role or command.
async fn start(cli: Cli) -> Result<ExitCode, Failure> {
    // Fails only when it was done already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut resolved = settings::resolve(&cli.overrides())?;
    let (role, default_filter) = cli.command.role();
    resolved.require(role, cli.command.needs())?;
    resolved.check_wires(cli.command.wires())?;
    let telemetry = telemetry::start(&resolved.settings.telemetry, role, default_filter)
        .map_err(|error| Failure::usage(format!("{error:#}")))?;
    let ended = match cli::authenticate(&cli.command, &mut resolved.settings).await {
        Ok(()) => run(cli.command, resolved).await,
        Err(failure) => Err(failure),
    };
    // Waits for the exporter's thread, so not on one of the runtime's own.
    let _ = tokio::task::spawn_blocking(|| telemetry.flush()).await;
    ended
}

async fn run(command: Command, resolved: Resolved) -> Result<ExitCode, Failure> {
    match command {
        Command::Up(args) => cli::up(*args, &resolved.settings).await,
        Command::Builds(args) => cli::builds(args, &resolved.settings).await,
        Command::Projects(args) => cli::projects(args, &resolved.settings).await,
        Command::Cells(args) => cli::cells(args, &resolved.settings).await,
        Command::Pools(args) => cli::pools(args, &resolved.settings).await,
        Command::Tokens(args) => cli::tokens(args, &resolved.settings).await,
        Command::Login(args) => cli::login(args, resolved.settings).await,
        Command::Logout(args) => cli::logout(&args, &resolved.settings),
        Command::Audit(args) => cli::audit(args, &resolved.settings).await,
        Command::Simulate(args) => cli::simulate(&args),
        Command::Doctor(args) => cli::doctor(args, &resolved).await,
        Command::Config(args) => cli::config(&args, &resolved),
        Command::Completions(args) => cli::completions(&args),
        Command::Dev(args) => {
            dev::run(args, &resolved).await.map_err(|error| Failure::new(error.class(), error.to_string()))
        }
        Command::RunImage(args) => {
            dev::run_image(args).await.map_err(|error| Failure::new(FailureClass::UserError, format!("{error:#}")))
        }
        Command::Control => role("control", resolved.settings, control::run).await,
        Command::Builder => role("builder", resolved.settings, builder::run).await,
        Command::Host(args) => {
            let looked = match args.command {
                None => return role("host", resolved.settings, host::run).await,
                Some(HostCommand::Images { output }) => host::list_images(&resolved.settings, output == Output::Json),
                Some(HostCommand::Plan { output }) => host::plan(&resolved.settings, output == Output::Json),
            };
            looked.map_err(|error| Failure::new(FailureClass::Transient, format!("{error:#}")))
        }
        Command::Api => role("api", resolved.settings, api::run).await,
    }
}

/// A role runs until a signal asks it to stop.
async fn role<R>(
    name: &str,
    settings: Settings,
    run: impl FnOnce(Settings, CancellationToken) -> R,
) -> Result<ExitCode, Failure>
where
    R: Future<Output = anyhow::Result<()>>,
{
    let failed = |why: String| Failure::new(FailureClass::Transient, format!("{name} ended: {why}"));
    let stop = signals::stop_on_signal().map_err(|error| failed(error.to_string()))?;
    let listen = settings.telemetry.metrics_listen.clone();
    let more = match name {
        "host" => host::metrics_routes(&settings).map_err(|error| failed(error.to_string()))?,
        _ => axum::Router::new(),
    };
    let served = metrics::serve(name, &listen, more, stop.clone()).await;
    served.map_err(|error| failed(format!("cannot serve metrics on {listen}: {error}")))?;
    match run(settings, stop).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(failed(format!("{error:#}"))),
    }
}
