//! `kiln builds`: look at builds, follow, cancel, retry them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use activities::oci::ImageTag;
use activities::sealed::SecretBytes;
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::sync::mpsc;
use workflows::contract::{BuildResult, Placement, ProjectName, SecretsRef};

use super::client::{BuildInfo, BuildSummary, Client, Step, StepOutcome};
use super::credentials::secret;
use super::progress::{Display, Progress, duration};
use super::table::{ago, now_ms, table, time};
use super::watch::{Ending, Interrupts, News, Watched, exit_code, follow, log_so_far, show, watch};
use super::{ClientArgs, Failure, Output, credentials};
use crate::settings::Settings;
use crate::terminal::{self, Writer};

/// List, show, follow, cancel and retry builds
///
/// A build is named `project/key`, as `kiln up` prints it.
#[derive(Debug, Args)]
#[command(display_order = 2, after_help = EXAMPLES)]
pub struct BuildsArgs {
    #[command(subcommand)]
    command: Command,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", global = true, help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl BuildsArgs {
    /// Whether its result is a build's.
    pub fn starts_a_build(&self) -> bool {
        matches!(self.command, Command::Retry(_))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List builds, the newest first
    Ls {
        /// Filter by project
        #[arg(long, value_name = "NAME")]
        project: Option<ProjectName>,
        /// Filter by status
        #[arg(long, value_parser = ["queued", "running", "publishing", "succeeded", "failed", "cancelled"])]
        status: Option<String>,
        /// Maximum number to list, 1 to 1000
        #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a build: its status, its image, and for each step whether it ran and how long it took
    Show { build: BuildId },
    /// Print a build's log
    Logs {
        build: BuildId,
        /// Follow it to the build's end, and exit as `kiln up` would
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel a build
    Cancel { build: BuildId },
    /// Start a build that did not succeed again, with the same key and input, and follow it
    ///
    /// The credentials and secrets of the failed run are kept for a day and used again; after that, send
    /// them with --secret and --registry.
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
struct RetryArgs {
    build: BuildId,
    /// Send a secret again, as with `kiln up`
    #[arg(long = "secret", value_name = "SPEC")]
    secrets: Vec<String>,
    /// Send docker's credentials again for this registry, and those of the build's tags
    #[arg(long = "registry", value_name = "HOST")]
    registries: Vec<String>,
    /// Start it and return
    #[arg(long)]
    detach: bool,
    /// How progress is shown, on standard error
    #[arg(long, value_enum, default_value = "auto")]
    progress: Progress,
}

const EXAMPLES: &str = "\
Examples:
  kiln builds ls --project web --status failed
  kiln builds logs -f web/0198c2a4-7d1e-7c62-b0a4-3a9d5c1f2e77
  kiln builds show web/main-4f2a9c1 --output json | jq .digest";

/// `<project>/<key>`; the workflow id `build/<project>/<key>` is taken as well.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BuildId(String);

impl BuildsArgs {
    /// The project that it is about, if it is about one.
    pub fn project(&self) -> Option<ProjectName> {
        let build = match &self.command {
            Command::Ls { project, .. } => return project.clone(),
            Command::Show { build } | Command::Logs { build, .. } | Command::Cancel { build } => build,
            Command::Retry(args) => &args.build,
        };
        build.0.split_once('/')?.0.parse().ok()
    }
}

impl std::str::FromStr for BuildId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = || text.split_once('/').and_then(|(project, key)| Some((project.parse().ok()?, key.parse().ok()?)));
        workflows::contract::parse_build_workflow_id(text)
            .or_else(plain)
            .map(|(project, key)| Self(format!("{project}/{key}")))
            .ok_or_else(|| "must be <project>/<key>".to_owned())
    }
}

/// Runs the command.
pub async fn run(args: BuildsArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    let output = args.output;
    match args.command {
        Command::Ls { project, status, limit } => {
            let builds = client.builds(project.as_ref(), status.as_deref(), limit).await?;
            output.print(|| list(&builds, now_ms()), || json!({"builds": builds}))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { build } => {
            let info = client.build(&build.0).await?;
            output.print(|| details(&info), || json!(info))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Logs { build, follow } => logs(&client, &build.0, follow).await,
        Command::Cancel { build } => cancel(&client, &build.0, output).await,
        Command::Retry(args) => retry(&client, args, output).await,
    }
}

/// Prints a log on standard output: what there is of it now, or all of it to the build's end. Ends early when its reader has
/// gone.
async fn logs(client: &Client, build_id: &str, to_the_end: bool) -> Result<ExitCode, Failure> {
    let info = client.build(build_id).await?;
    let (client, run) = (client.clone(), info.built_by().to_owned());
    let news = match to_the_end {
        true => follow(client, info.summary.build_id, run),
        false => log_so_far(client, info.summary.build_id, run),
    };
    let result = tokio::select! {
        result = print_log(news) => result?,
        () = terminal::stdout_closed() => None,
    };
    let Some(result) = result else { return Ok(ExitCode::SUCCESS) };
    terminal::note(format_args!("kiln: {}", outcome(&result)));
    Ok(ExitCode::from(exit_code(&result)))
}

/// Prints what comes; returns the result if one does.
async fn print_log(mut news: mpsc::Receiver<News>) -> Result<Option<Box<BuildResult>>, Failure> {
    let mut display = Display::log(Writer::stdout());
    let ended = loop {
        match news.recv().await {
            Some(News::Ended(result)) => break Ok(Some(result)),
            Some(News::Lost(failure)) => break Err(failure),
            Some(other) => show(other, &mut display),
            None => break Ok(None),
        }
        display.written()?;
        if display.is_closed() {
            return Ok(None);
        }
    };
    display.finish();
    display.written()?;
    ended
}

/// `succeeded: host/repository@sha256:…`, `failed: …`
fn outcome(result: &BuildResult) -> String {
    let more = result.error.as_ref().map(|error| error.message.as_str()).or(result.image.as_deref());
    match more {
        Some(more) => format!("{}: {more}", result.status.as_str()),
        None => result.status.as_str().to_owned(),
    }
}

async fn cancel(client: &Client, build_id: &str, output: Output) -> Result<ExitCode, Failure> {
    let status = client.cancel(build_id).await?.status;
    let text = match status.is_final() {
        true => format!("{build_id} had ended already: {}\n", status.as_str()),
        false => format!("{build_id} is being cancelled\n"),
    };
    output.print(|| text, || json!({"build_id": build_id, "status": status}))?;
    Ok(ExitCode::SUCCESS)
}

async fn retry(client: &Client, args: RetryArgs, output: Output) -> Result<ExitCode, Failure> {
    let mut display = Display::new(args.progress);
    let mut watched = Watched::new(output, args.progress);
    let ended = start_again(client, &args, &mut display, &mut watched).await;
    display.finish();
    watched.report(ended)
}

async fn start_again(
    client: &Client,
    args: &RetryArgs,
    display: &mut Display,
    watched: &mut Watched,
) -> Result<Ending, Failure> {
    let secrets = args.secrets.iter().map(|spec| secret(spec)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let secrets_ref = match secrets.is_empty() && args.registries.is_empty() {
        true => None,
        false => seal_again(client, args, secrets, display).await?,
    };
    let mut interrupts = Interrupts::new()?;
    let started = client.retry(&args.build.0, secrets_ref.as_ref()).await?;
    watched.started(&started);
    if args.detach {
        return Ok(Ending::Detached);
    }
    watch(client, &started, &mut interrupts, display).await
}

/// Credentials for the hosts that are named and those of the build's tags, and the secrets.
async fn seal_again(
    client: &Client,
    args: &RetryArgs,
    secrets: BTreeMap<String, SecretBytes>,
    display: &mut Display,
) -> Result<Option<SecretsRef>, Failure> {
    let input = client.build(&args.build.0).await?.input;
    let missing: Vec<&str> =
        input.secret_ids.iter().map(String::as_str).filter(|id| !secrets.contains_key(*id)).collect();
    if !missing.is_empty() {
        return Err(Failure::usage(format!("the build needs these secrets as well: {}", missing.join(", "))));
    }
    let tags = input.tags.iter().filter_map(|tag| tag.parse().ok()).map(|tag: ImageTag| tag.host().to_owned());
    let hosts: BTreeSet<String> = args.registries.iter().cloned().chain(tags).collect();
    credentials::seal(client, &input.project, &hosts, secrets, display).await
}

fn list(builds: &[BuildSummary], now_ms: i64) -> String {
    let heading = ["BUILD", "STATUS", "CELL", "AGE", "TOOK", "TAG"].map(str::to_owned);
    let row = |build: &BuildSummary| {
        [
            build.build_id.clone(),
            build.status.as_str().to_owned(),
            build.cell.clone().unwrap_or_default(),
            ago(build.created_ms, now_ms),
            took(build.created_ms, build.ended_ms),
            build.tags.first().cloned().unwrap_or_default(),
        ]
    };
    table(&std::iter::once(heading).chain(builds.iter().map(row)).collect::<Vec<_>>())
}

fn took(created_ms: i64, ended_ms: Option<i64>) -> String {
    ended_ms.map_or_else(String::new, |ended| duration(u64::try_from(ended - created_ms).unwrap_or(0)))
}

fn details(info: &BuildInfo) -> String {
    let build = &info.summary;
    let mut rows = vec![
        ["build".to_owned(), build.build_id.clone()],
        ["status".to_owned(), build.status.as_str().to_owned()],
        ["workflow".to_owned(), format!("{} (run {})", build.workflow_id, build.run_id)],
        ["snapshot".to_owned(), build.snapshot.clone()],
        ["started".to_owned(), format!("{} ({} ago)", time(build.created_ms), ago(build.created_ms, now_ms()))],
    ];
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push([name.to_owned(), value]);
        }
    };
    add("took", took(build.created_ms, build.ended_ms));
    add("cell", build.cell.clone().unwrap_or_default());
    build.tags.iter().for_each(|tag| add("tag", tag.clone()));
    if let Some(result) = &info.result {
        add("image", result.image.clone().unwrap_or_default());
        result.placement.iter().for_each(|placement| add("placed", placed(placement)));
    }
    if let Some(view) = &info.view {
        add("waits", view.waiting.clone().unwrap_or_default());
        view.placement.iter().for_each(|placement| add("placed", placed(placement)));
    }
    if info.runs.len() > 1 {
        add("runs", info.runs.iter().map(|run| run.status.as_str()).collect::<Vec<_>>().join(", "));
    }
    let error = info.result.as_ref().and_then(|result| result.error.as_ref());
    if let Some(error) = error {
        add("error", format!("{} ({})", error.message, error.class));
    }
    let mut text = table(&rows);
    if !info.steps.is_empty() {
        text.push('\n');
        text.push_str(&steps(&info.steps));
    }
    text
}

/// `cell-1 (home cell 1 of 3, warm and free): built`
fn placed(placement: &Placement) -> String {
    let pool = placement.pool.as_ref().map_or_else(String::new, |pool| format!(" of pool {pool}"));
    let outcome = if placement.outcome.is_empty() { "" } else { ": " };
    format!("{}{pool} ({}){outcome}{}", placement.cell, placement.reason, placement.outcome)
}

fn steps(steps: &[Step]) -> String {
    let several = steps.iter().any(|step| step.attempt > 1);
    let heading = ["STEP", "OUTCOME", "TOOK", "NAME"].map(str::to_owned);
    let row = |(at, step): (usize, &Step)| {
        let number = if several { format!("{}.{}", step.attempt, at + 1) } else { (at + 1).to_string() };
        let took = step.duration_ms.map_or_else(String::new, duration);
        [number, outcome_of(step.outcome).to_owned(), took, step.name.replace('\n', " ")]
    };
    table(&std::iter::once(heading).chain(steps.iter().enumerate().map(row)).collect::<Vec<_>>())
}

fn outcome_of(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Waiting => "waiting",
        StepOutcome::Running => "running",
        StepOutcome::Ran => "ran",
        StepOutcome::Cached => "cached",
        StepOutcome::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use workflows::contract::BuildStatus;

    use super::*;

    fn summary() -> BuildSummary {
        serde_json::from_str(
            r#"{"build_id":"web/a-1","project":"web","key":"a-1","workflow_id":"build/web/a-1","run_id":"r1",
                "status":"succeeded","snapshot":"0000","tags":["r.example/web:v1"],"cell":"cell-1","created_ms":1000,
                "started_ms":2000,"ended_ms":4400,"a field of tomorrow":1}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_list_is_a_table() {
        let running = BuildSummary {
            build_id: "web/b".into(),
            status: BuildStatus::Running,
            cell: None,
            ended_ms: None,
            ..summary()
        };
        assert_eq!(
            list(&[running, summary()], 61_000),
            "\
BUILD    STATUS     CELL    AGE  TOOK  TAG
web/b    running            60s        r.example/web:v1
web/a-1  succeeded  cell-1  60s  3.4s  r.example/web:v1
"
        );
    }

    #[test]
    fn steps_show_what_ran_and_what_was_cached() {
        let step = |attempt, name: &str, outcome, duration_ms| Step {
            attempt,
            name: name.into(),
            outcome,
            duration_ms,
            error: None,
        };
        let ran = [
            step(1, "[1/2] FROM busybox", StepOutcome::Cached, Some(0)),
            step(1, "[2/2] RUN make", StepOutcome::Running, None),
        ];
        assert_eq!(
            steps(&ran),
            "\
STEP  OUTCOME  TOOK  NAME
1     cached   0.0s  [1/2] FROM busybox
2     running        [2/2] RUN make
"
        );
    }

    #[test]
    fn each_choice_of_a_cell_is_explained() {
        let placement = |pool: Option<&str>, outcome: &str| Placement {
            platform: "linux/amd64".parse().unwrap(),
            cell: "cell-1".parse().unwrap(),
            pool: pool.map(|name| name.parse().unwrap()),
            warm: true,
            free: true,
            reason: "home cell 1 of 3, warm and free".into(),
            outcome: outcome.into(),
        };
        assert_eq!(placed(&placement(None, "built")), "cell-1 (home cell 1 of 3, warm and free): built");
        assert_eq!(placed(&placement(Some("far"), "")), "cell-1 of pool far (home cell 1 of 3, warm and free)");
    }

    #[test]
    fn a_build_is_named_by_project_and_key_or_workflow_id() {
        for text in ["web/a/b", "build/web/a/b"] {
            assert_eq!(text.parse::<BuildId>(), Ok(BuildId("web/a/b".into())));
        }
        assert_eq!("web".parse::<BuildId>(), Err("must be <project>/<key>".into()));
    }
}
