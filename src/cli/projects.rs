//! `kiln projects`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use workflows::contract::{COUNT_MAX, InvalidId, PoolName, ProjectName, RepositoryPattern, TAGS_MAX};

use super::client::{Client, ProjectInfo, ProjectSettings};
use super::table::{ago, now_ms, table, time};
use super::trust::{self, TrustArgs};
use super::{ClientArgs, Failure, Output};
use crate::settings::Settings;

/// Create, list and set up projects
///
/// A project is the unit of cache, settings and access. `kiln dev` makes one on its first build.
#[derive(Debug, Args)]
#[command(display_order = 3, after_help = EXAMPLES)]
pub struct ProjectsArgs {
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
    /// Create a project; one that is there already stays as it is
    Create {
        name: ProjectName,
    },
    /// List all projects
    Ls,
    /// Show one project
    Show {
        name: ProjectName,
    },
    /// Change a project's settings; they count for builds that are started from then on
    Set(SetArgs),
    Trust(TrustArgs),
}

impl ProjectsArgs {
    /// The project that it is about, if it is about one that is there.
    pub fn project(&self) -> Option<ProjectName> {
        match &self.command {
            Command::Create { .. } | Command::Ls => None,
            Command::Show { name } | Command::Set(SetArgs { name, .. }) => Some(name.clone()),
            Command::Trust(args) => Some(args.project().clone()),
        }
    }
}

/// What is not given stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// The provenance of builds that do not say
    #[arg(long, value_name = "MODE", value_parser = ["none", "min", "max"])]
    provenance: Option<String>,
    /// The pool that builds it; `default` for the installation's own
    #[arg(long, value_name = "POOL")]
    pool: Option<PoolName>,
    /// How many of its builds may hold or wait for a slot at once, others wait; `none` for no cap
    #[arg(long, value_name = "N", value_parser = cap)]
    max_concurrent_builds: Option<Cap>,
    /// Where its builds may publish, and what they may read of the installation's registry: `own` (its namespace there), `outside`
    /// (other registries, with the build's credentials), or HOST/PATH with * and **; `default` for own,outside
    #[arg(long, value_name = "PATTERN,…", value_parser = repositories)]
    repositories: Option<Repositories>,
    /// How many builds may be started in one minute; `none` for no limit
    #[arg(long, value_name = "N", value_parser = cap)]
    builds_per_minute: Option<Cap>,
    /// How many builds may be open at once, waiting ones included; `none` for no limit
    #[arg(long, value_name = "N", value_parser = cap)]
    open_builds: Option<Cap>,
    /// How many tags a build may have, at most 100; `none` for 100
    #[arg(long, value_name = "N", value_parser = cap)]
    tags_per_build: Option<Cap>,
    /// How large the content of a snapshot may be, as 500MiB or 2GiB; `none` for no limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    snapshot_bytes: Option<Size>,
    /// How many event streams each api may have open for the project; `none` for no limit
    #[arg(long, value_name = "N", value_parser = cap)]
    event_streams: Option<Cap>,
}

#[derive(Debug, Args)]
struct SetArgs {
    name: ProjectName,
    #[command(flatten)]
    changes: Changes,
}

/// A number, or none.
#[derive(Debug, Clone, Copy)]
struct Cap(Option<u32>);

fn cap(text: &str) -> Result<Cap, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Cap(None)),
        (_, Ok(number)) if number >= 1 => Ok(Cap(Some(number))),
        _ => Err("must be 1 or more, or none".to_owned()),
    }
}

/// The default is an empty list.
#[derive(Debug, Clone)]
struct Repositories(Vec<RepositoryPattern>);

fn repositories(text: &str) -> Result<Repositories, String> {
    let patterns = text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty() && *pattern != "default");
    let patterns = patterns.map(str::parse).collect::<Result<_, _>>();
    patterns.map(Repositories).map_err(|error: InvalidId| error.to_string())
}

/// A number of bytes, or none.
#[derive(Debug, Clone, Copy)]
struct Size(Option<u64>);

fn size(text: &str) -> Result<Size, String> {
    if text == "none" {
        return Ok(Size(None));
    }
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[digits..] {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("must be a number of bytes, KiB, MiB or GiB, or none".to_owned()),
    };
    let bytes = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes.filter(|bytes| (1..=COUNT_MAX).contains(bytes)) {
        Some(bytes) => Ok(Size(Some(bytes))),
        None => Err("must be 1 byte or more, and less than 8 EiB".to_owned()),
    }
}

impl Changes {
    fn apply(self, settings: &mut ProjectSettings) {
        if let Some(provenance) = self.provenance {
            settings.provenance = Some(provenance).filter(|mode| mode != "none");
        }
        if let Some(pool) = self.pool {
            settings.pool = Some(pool).filter(|pool| pool.as_str() != "default");
        }
        if let Some(Cap(cap)) = self.max_concurrent_builds {
            settings.max_concurrent_builds = cap;
        }
        if let Some(Repositories(patterns)) = self.repositories {
            settings.repositories = patterns;
        }
        let quotas = &mut settings.quotas;
        for (change, quota) in [
            (self.builds_per_minute, &mut quotas.builds_per_minute),
            (self.open_builds, &mut quotas.open_builds),
            (self.tags_per_build, &mut quotas.tags_per_build),
            (self.event_streams, &mut quotas.event_streams),
        ] {
            if let Some(Cap(cap)) = change {
                *quota = cap;
            }
        }
        if let Some(Size(bytes)) = self.snapshot_bytes {
            quotas.snapshot_bytes = bytes;
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  kiln projects create web
  kiln projects set web --provenance max --max-concurrent-builds 8
  kiln projects set web --repositories 'own,ghcr.io/acme/*'
  kiln projects set web --builds-per-minute 60 --open-builds 200 --snapshot-bytes 2GiB
  kiln projects ls --output json | jq -r '.projects[].name'";

/// Runs the command.
pub async fn run(args: ProjectsArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    let project = match args.command {
        Command::Ls => {
            let projects = client.projects().await?;
            args.output.print(|| list(&projects), || json!({"projects": projects}))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Create { name } => client.create_project(&name).await?,
        Command::Show { name } => client.project(&name).await?,
        Command::Trust(trust) => {
            trust::run(trust, args.output, &client, settings).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Set(SetArgs { name, changes }) => {
            let mut settings = client.project(&name).await?.settings;
            changes.apply(&mut settings);
            client.set_project(&name, &settings).await?
        }
    };
    args.output.print(|| details(&project), || json!(project))?;
    Ok(ExitCode::SUCCESS)
}

fn list(projects: &[ProjectInfo]) -> String {
    let heading = ["PROJECT", "AGE", "PROVENANCE"].map(str::to_owned);
    let row = |project: &ProjectInfo| [project.name.clone(), ago(project.created_ms, now_ms()), provenance(project)];
    table(&std::iter::once(heading).chain(projects.iter().map(row)).collect::<Vec<_>>())
}

fn details(project: &ProjectInfo) -> String {
    let quotas = &project.settings.quotas;
    let shown = |quota: Option<u32>| quota.map_or("any".into(), |quota| quota.to_string());
    let rows = [
        ["project".to_owned(), project.name.clone()],
        ["id".to_owned(), project.id.clone()],
        ["created".to_owned(), time(project.created_ms)],
        ["provenance".to_owned(), provenance(project)],
        ["pool".to_owned(), project.settings.pool.as_ref().map_or("default".into(), PoolName::to_string)],
        ["builds at once".to_owned(), shown(project.settings.max_concurrent_builds)],
        ["repositories".to_owned(), patterns(&project.settings.repositories)],
        ["builds a minute".to_owned(), shown(quotas.builds_per_minute)],
        ["open builds".to_owned(), shown(quotas.open_builds)],
        ["tags of a build".to_owned(), shown(quotas.tags_per_build.or(Some(TAGS_MAX)))],
        ["snapshot".to_owned(), quotas.snapshot_bytes.map_or("any".into(), |bytes| format!("{bytes} bytes"))],
        ["event streams".to_owned(), shown(quotas.event_streams)],
    ];
    table(&rows)
}

fn patterns(repositories: &[RepositoryPattern]) -> String {
    match repositories {
        [] => "own, outside".to_owned(),
        some => some.iter().map(RepositoryPattern::as_str).collect::<Vec<_>>().join(", "),
    }
}

fn provenance(project: &ProjectInfo) -> String {
    project.settings.provenance.clone().unwrap_or_else(|| "none".into())
}
