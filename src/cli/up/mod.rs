//! `kiln up`: pack, upload, build, follow.
//!
//! 1. check everything that can be checked here (wrong use ends with 2, and nothing was sent)
//! 2. pack the directory and upload what the installation does not have yet
//! 3. seal docker's credentials for the hosts of the tags and bases, and the build's secrets
//! 4. start the build, follow it to its result
//!
//! From step 4 on the build no longer needs this process, and a signal is for the build. Before, a signal ends the command.

mod args;
mod check;
mod dockerfile;
mod upload;

use std::process::ExitCode;
use std::time::Instant;

use workflows::contract::{BuildInput, FailureClass, ProjectName, SecretsRef};

use args::Frontend;
pub use args::UpArgs;
pub use check::project_of;
use check::{Plan, check};
use upload::Snapshot;

use super::client::Client;
use super::progress::Display;
use super::watch::{Ending, Interrupts, Watched, watch};
use super::{Failure, credentials};
use crate::settings::Settings;

/// Runs the command.
pub async fn run(args: UpArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let mut display = Display::new(args.progress);
    let mut watched = Watched::new(args.output, args.progress);
    let ended = build(&args, settings, &mut display, &mut watched).await;
    display.finish();
    watched.report(ended)
}

async fn build(
    args: &UpArgs,
    settings: &Settings,
    display: &mut Display,
    watched: &mut Watched,
) -> Result<Ending, Failure> {
    let plan = check(args)?;
    let client = Client::new(settings)?;
    let mut interrupts = Interrupts::new()?;
    let input = tokio::select! {
        input = prepare(args, &plan, settings, &client, display, watched) => input?,
        () = interrupts.signal() => return Err(interrupted()),
    };
    let started = tokio::select! {
        started = client.start_build(args.key.as_ref(), &input) => started?,
        () = interrupts.second_signal() => return Err(left_while_starting(&plan.project)),
    };
    display.note(&format!("build {}{}", started.build_id, if started.attached { " (joined)" } else { "" }));
    watched.started(&started);
    if args.detach {
        return Ok(Ending::Detached);
    }
    watch(&client, &started, &mut interrupts, display).await
}

/// Uploads the snapshot and seals what the build needs to know and nobody else.
async fn prepare(
    args: &UpArgs,
    plan: &Plan,
    settings: &Settings,
    client: &Client,
    display: &mut Display,
    watched: &mut Watched,
) -> Result<BuildInput, Failure> {
    let begun = Instant::now();
    let snapshot = upload::upload(args, plan, settings, client, display).await?;
    watched.uploaded(begun.elapsed());
    let mut hosts = dockerfile::base_hosts(&plan.dockerfile_text, &plan.args);
    hosts.extend(plan.tags.iter().map(|tag| tag.host().to_owned()));
    let secrets_ref = credentials::seal(client, &plan.project, &hosts, plan.secrets.clone(), display).await?;
    Ok(input(args, plan, snapshot, secrets_ref))
}

fn interrupted() -> Failure {
    Failure::new(FailureClass::Cancelled, "interrupted before the build was started")
}

fn left_while_starting(project: &ProjectName) -> Failure {
    Failure::new(FailureClass::Cancelled, "interrupted while the build was being started; it may run")
        .hint(format!("see `kiln builds ls --project {project}`"))
}

fn input(args: &UpArgs, plan: &Plan, snapshot: Snapshot, secrets_ref: Option<SecretsRef>) -> BuildInput {
    BuildInput {
        project: plan.project.clone(),
        snapshot: snapshot.id,
        dockerfile: Some(snapshot.dockerfile).filter(|path| path != "Dockerfile"),
        target: args.target.clone(),
        args: plan.args.clone(),
        labels: plan.labels.clone(),
        platforms: args.platforms.clone(),
        tags: plan.tags.iter().map(ToString::to_string).collect(),
        secrets_ref,
        secret_ids: plan.secrets.keys().cloned().collect(),
        no_cache: args.no_cache,
        pull: args.pull,
        provenance: plan.provenance.clone(),
        registry_frontend: args.frontend == Frontend::Registry,
        timeout_s: args.timeout,
        queue_patience_s: args.queue_patience,
    }
}
