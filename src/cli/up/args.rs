//! What `kiln up` takes: docker build's flags with docker build's meaning.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use workflows::contract::{AttemptTimeout, BuildKey, OutOfBounds, Platform, ProjectName, QueuePatience};

use crate::cli::progress::Progress;
use crate::cli::{ClientArgs, Output};

/// Build a directory with a Dockerfile into a pushed image
///
/// Packs the directory, uploads what is new of it, builds it on a cell, pushes the image and prints its digest. Files that
/// .gitignore, .kilnignore or the Dockerfile's own ignore file name are left out, and .git too; files tracked by git are kept. A
/// build goes on when this command ends: it is found again with `kiln builds`.
///
/// Registry credentials are docker's: config.json and its credential helpers, for the hosts of the tags and of the base images
/// only. They and the secrets of --secret are encrypted on arrival. They are deleted when the build has succeeded; after a failed or
/// cancelled build they are kept for a day, so that `kiln builds retry` can use them.
///
/// SOURCE_DATE_EPOCH, when the environment has it, is passed on as a build argument unless --build-arg sets it.
#[derive(Debug, Args)]
#[command(display_order = 1, after_help = EXAMPLES)]
pub struct UpArgs {
    /// The build's context, a directory
    #[arg(value_name = "PATH", default_value = ".")]
    pub path: PathBuf,
    /// The Dockerfile, also outside of PATH [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[arg(short, long = "tag", value_name = "NAME", help = TAG_HELP)]
    pub tags: Vec<String>,
    /// The stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a build argument; without =VALUE it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// A secret for RUN --mount=type=secret: id=ID,src=FILE or id=ID,env=VARIABLE
    #[arg(long = "secret", value_name = "SPEC")]
    pub secrets: Vec<String>,
    /// Set a label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Use nothing from the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Ask the registry for newer base images
    #[arg(long)]
    pub pull: bool,
    /// Attach provenance: min (or true), max, or none (or false) [default: the project's setting]
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub provenance: Option<String>,
    /// The platform to build for [default: the cells' own]
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub platforms: Vec<Platform>,
    /// Where a Dockerfile's `# syntax=` line leads
    #[arg(long, value_enum, default_value = "builtin")]
    pub frontend: Frontend,
    /// Send .git as well
    #[arg(long)]
    pub include_git: bool,

    /// The project, whose cache is used [default: the directory's name]
    #[arg(long, value_name = "NAME", help_heading = "Build")]
    pub project: Option<ProjectName>,
    /// Name of this build: the same key and input are never built twice [default: a new one each time]
    #[arg(long, value_name = "KEY", help_heading = "Build")]
    pub key: Option<BuildKey>,
    /// Start the build and return
    #[arg(long, help_heading = "Build")]
    pub detach: bool,
    /// The longest an attempt may take, as 90s, 20m or 1h30m [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = bounded_seconds::<AttemptTimeout>, help_heading = "Build")]
    pub timeout: Option<AttemptTimeout>,
    /// How long a cell believed free may leave the build untouched before it goes to the next one [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = bounded_seconds::<QueuePatience>, help_heading = "Build")]
    pub queue_patience: Option<QueuePatience>,
    /// How progress is shown, on standard error
    #[arg(long, value_enum, default_value = "auto", help_heading = "Output")]
    pub progress: Progress,
    /// How the result is printed, on standard output
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Who reads the Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Frontend {
    /// The frontend that is part of buildkitd, for any docker/dockerfile
    Builtin,
    /// The frontend image that the line names, where the installation allows it
    Registry,
}

/// Seconds of a duration that says its units, within the contract's bounds. A fraction of a second is cut off.
fn bounded_seconds<T: TryFrom<u64, Error = OutOfBounds>>(text: &str) -> Result<T, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|_| "a duration such as 90s, 20m or 1h30m".to_owned())?;
    let seconds = u64::try_from(duration.as_secs()).unwrap_or(0);
    T::try_from(seconds).map_err(|error| error.to_string())
}

/// Not a doc comment: rustdoc would take the brackets for links.
const TAG_HELP: &str = "Name to push the image under, host[:port]/repository[:tag]; may be repeated [default: \
                        PROJECT:SNAPSHOT-DIGEST in the installation's own registry; DIGEST tells builds of one tree with other \
                        arguments, stage or Dockerfile apart]";

const EXAMPLES: &str = "\
Examples:
  Build this directory; the image goes to the registry of `kiln dev`:
    kiln up
  Build and push under a name:
    kiln up -t ghcr.io/acme/web:v1 .
  Another Dockerfile, one stage, an argument, a secret from the environment:
    kiln up -f ci/Dockerfile --target test --build-arg V=1 --secret id=npm,env=NPM_TOKEN
  In CI, safe to run again: the same commit is built once:
    kiln up --key web-$GIT_COMMIT -t ghcr.io/acme/web:$GIT_COMMIT --output json | tail -1

Exit codes:
  0 built   1 build failed   2 wrong use   3 refused   75 try again   124 timed out   130 cancelled";
