//! `kiln projects trust`: whose tokens of CI systems a project trusts.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use workflows::contract::{ProjectName, Scope};

use super::client::Client;
use super::table::{ago, now_ms, table};
use super::{Failure, Output};
use crate::api::{ClaimRule, LONGEST_S, SHORTEST_S, TrustInfo, TrustRule};
use crate::settings::Settings;

/// Trust the tokens that a CI system gives to its jobs, so that they need no stored secret
///
/// A job's token is exchanged for one of the project when it comes from the issuer, was made for the audience, and
/// every claim fits its pattern; * stands for any text, also with slashes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TrustArgs {
    #[command(subcommand)]
    command: Command,
}

impl TrustArgs {
    pub fn project(&self) -> &ProjectName {
        match &self.command {
            Command::Add(args) => &args.project,
            Command::Ls { project } | Command::Rm { project, .. } => project,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a rule; the first one that fits a token counts
    Add(AddArgs),
    /// List a project's rules
    Ls { project: ProjectName },
    /// Remove a rule; tokens that were exchanged by it stay valid for the rest of their time
    Rm { project: ProjectName, rule: String },
}

#[derive(Debug, Args)]
struct AddArgs {
    project: ProjectName,
    /// The issuer's URL, or github, gitlab, buildkite, circleci:ORGANISATION-ID
    #[arg(long, value_name = "ISSUER", value_parser = issuer)]
    issuer: String,
    /// What the tokens must be made for [default: the setting api.audience; circleci: the organisation's id]
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,
    /// A claim and the pattern that it must fit; again for more
    #[arg(long = "claim", value_name = "NAME=PATTERN", value_parser = claim, required = true)]
    claims: Vec<(String, String)>,
    /// What the exchanged token may do
    #[arg(long, value_enum, default_value = "build")]
    scope: ScopeArg,
    /// For how long it is valid, 15m to 1h
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = life)]
    ttl: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// See the project, its builds and their logs
    Read,
    /// Also start, cancel and retry builds
    Build,
    /// Also change the project's settings, tokens and trust rules
    Admin,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Read => Self::Read,
            ScopeArg::Build => Self::Build,
            ScopeArg::Admin => Self::Admin,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  kiln projects trust add shop --issuer github --claim repository=acme/shop --claim 'ref=refs/heads/*'
  kiln projects trust add shop --issuer gitlab --claim project_path=acme/shop --claim ref_protected=true
  kiln projects trust add shop --issuer buildkite --claim organization_slug=acme --claim pipeline_slug=shop
  kiln projects trust ls shop";

/// An issuer's URL from its name.
fn issuer(text: &str) -> Result<String, String> {
    let url = match text.split_once(':') {
        None if text == "github" => "https://token.actions.githubusercontent.com".to_owned(),
        None if text == "gitlab" => "https://gitlab.com".to_owned(),
        None if text == "buildkite" => "https://agent.buildkite.com".to_owned(),
        Some(("circleci", organisation)) => format!("https://oidc.circleci.com/org/{organisation}"),
        _ => text.to_owned(),
    };
    if url.contains("://") { Ok(url) } else { Err("must be a URL, github, gitlab, buildkite or circleci:ID".into()) }
}

fn claim(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, pattern) = split.ok_or("must be NAME=PATTERN")?;
    Ok((name.to_owned(), pattern.to_owned()))
}

/// Seconds of a duration that a token may be valid for.
fn life(text: &str) -> Result<u32, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|_| "must be a duration such as 15m".to_owned())?;
    let seconds = u32::try_from(duration.as_secs()).ok();
    seconds.filter(|seconds| (SHORTEST_S..=LONGEST_S).contains(seconds)).ok_or_else(|| "must be 15m to 1h".into())
}

impl AddArgs {
    fn rule(self, settings: &Settings) -> (ProjectName, TrustRule) {
        let organisation = self.issuer.strip_prefix("https://oidc.circleci.com/org/").map(str::to_owned);
        let audience = self.audience.or(organisation).unwrap_or_else(|| settings.api.audience.clone());
        let claims = self.claims.into_iter().map(|(claim, pattern)| ClaimRule { claim, pattern }).collect();
        let rule = TrustRule { issuer: self.issuer, audience, claims, scope: self.scope.into(), ttl_s: self.ttl };
        (self.project, rule)
    }
}

/// Runs the command.
///
/// # Errors
/// When the api refuses or cannot be reached.
pub async fn run(args: TrustArgs, output: Output, client: &Client, settings: &Settings) -> Result<(), Failure> {
    match args.command {
        Command::Add(args) => {
            let (project, rule) = args.rule(settings);
            let added = client.add_trust(&project, &rule).await?;
            output.print(|| rows(std::slice::from_ref(&added)), || json!(added))?;
        }
        Command::Ls { project } => {
            let rules = client.trust(&project).await?;
            output.print(|| rows(&rules), || json!({"rules": rules}))?;
        }
        Command::Rm { project, rule } => {
            client.remove_trust(&project, &rule).await?;
            output.print(String::new, || json!({"removed": rule}))?;
        }
    }
    Ok(())
}

fn rows(rules: &[TrustInfo]) -> String {
    let heading = ["RULE", "SCOPE", "VALID", "AGE", "ISSUER", "AUDIENCE", "CLAIMS"].map(str::to_owned);
    let row = |info: &TrustInfo| {
        let TrustRule { issuer, audience, claims, scope, ttl_s } = &info.rule;
        let claims: Vec<_> = claims.iter().map(|rule| format!("{}={}", rule.claim, rule.pattern)).collect();
        [
            info.id.clone(),
            scope.to_string(),
            format!("{}m", ttl_s / 60),
            ago(info.created_ms, now_ms()),
            issuer.clone(),
            audience.clone(),
            claims.join(" "),
        ]
    };
    table(&std::iter::once(heading).chain(rules.iter().map(row)).collect::<Vec<_>>())
}
