//! `kiln audit`: who did what.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use workflows::contract::ProjectName;

use super::client::{AuditEntry, AuditPage, Client};
use super::table::{now_ms, table, time};
use super::tokens::lifetime;
use super::{ClientArgs, Failure, Output};
use crate::settings::Settings;
use crate::terminal::{self, OutputError};

/// How often a follower asks for more.
const POLL: Duration = Duration::from_secs(1);
/// How long an entry may take to be there: several processes write them, by clocks of their own, milliseconds.
const LATE_MS: i64 = 15_000;
/// How many entries are asked for at once.
const PAGE: u32 = 1000;
/// What is shown unless --since says otherwise, milliseconds.
const USUAL_MS: i64 = 24 * 3600 * 1000;

/// Show who did what: every write through the api, and every signal that a cell or a pool got
#[derive(Debug, Args)]
#[command(display_order = 9, after_help = EXAMPLES)]
pub struct AuditArgs {
    /// Filter by project
    #[arg(long, value_name = "PROJECT")]
    project: Option<ProjectName>,
    /// From when on: how long ago, like 30m, 12h or 7d, or a time like 2026-01-31T10:00:00Z [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<i64>,
    /// Keep printing entries as they come
    #[arg(long, short)]
    follow: bool,
    /// How the result is printed; json prints one object a line
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

const EXAMPLES: &str = "\
Examples:
  kiln audit --since 7d --project shop
  kiln audit -f --output json | jq -c 'select(.result != \"ok\")'";

/// Milliseconds since 1970 of `7d` ago, or of a timestamp.
fn since(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let ago_s = lifetime(text).map_err(|why| format!("{why}, or a time like 2026-01-31T10:00:00Z"))?;
    Ok(now_ms().saturating_sub(i64::try_from(ago_s).unwrap_or(i64::MAX).saturating_mul(1000)))
}

/// Runs the command.
pub async fn run(args: AuditArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    let mut from_ms = args.since.unwrap_or_else(|| now_ms() - USUAL_MS);
    let mut shown = BTreeSet::new();
    let mut first = true;
    let mut closed = std::pin::pin!(terminal::stdout_closed());
    loop {
        let entries = new_entries(&client, args.project.as_ref(), from_ms, &mut shown).await?;
        print(args.output, &entries, first && !args.follow)?;
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        from_ms = from_ms.max(now_ms() - LATE_MS);
        shown.retain(|(at_ms, _)| *at_ms >= from_ms);
        first = false;
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = &mut closed => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// What is there from a time on and has not been shown.
async fn new_entries(
    client: &Client,
    project: Option<&ProjectName>,
    since_ms: i64,
    shown: &mut BTreeSet<(i64, String)>,
) -> Result<Vec<AuditEntry>, Failure> {
    let mut new = Vec::new();
    let mut after = None;
    loop {
        let page = client.audit(&AuditPage { project, since_ms, after, limit: PAGE }).await?;
        let full = page.len() >= PAGE as usize;
        after = page.last().map(|entry| (entry.at_ms, entry.id.clone()));
        new.extend(page.into_iter().filter(|entry| shown.insert((entry.at_ms, entry.id.clone()))));
        if !full {
            return Ok(new);
        }
    }
}

fn print(output: Output, entries: &[AuditEntry], aligned: bool) -> Result<(), OutputError> {
    match output {
        Output::Json => entries.iter().try_for_each(|entry| terminal::print_json(&json!(entry))),
        Output::Text if aligned => terminal::print(list(entries)),
        Output::Text => entries.iter().try_for_each(|entry| terminal::print_line(row(entry).join("  ").trim_end())),
    }
}

fn list(entries: &[AuditEntry]) -> String {
    let heading = ["TIME", "WHO", "TOKEN", "WHAT", "ON", "RESULT", "NOTE"].map(str::to_owned);
    table(&std::iter::once(heading).chain(entries.iter().map(row)).collect::<Vec<_>>())
}

fn row(entry: &AuditEntry) -> [String; 7] {
    let AuditEntry { at_ms, principal, token, action, subject, result, note, .. } = entry;
    [time(*at_ms), principal.clone(), token.clone(), action.clone(), subject.clone(), result.clone(), note.clone()]
        .map(|text| text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(action: &str, note: &str) -> AuditEntry {
        AuditEntry {
            id: "1".into(),
            at_ms: 1_700_000_000_999,
            principal: "operator".into(),
            token: "settings".into(),
            action: action.into(),
            subject: "c-1".into(),
            project: None,
            result: "ok".into(),
            note: note.into(),
        }
    }

    #[test]
    fn entries_are_listed_without_control_characters() {
        let entries = [entry("POST /v1/cells/{cell}/drain", ""), entry("drain", "accepted\u{1b}]52;c;aGk=\u{7}")];
        insta::assert_snapshot!(list(&entries), @r"
        TIME                  WHO       TOKEN     WHAT                         ON   RESULT  NOTE
        2023-11-14T22:13:20Z  operator  settings  POST /v1/cells/{cell}/drain  c-1  ok
        2023-11-14T22:13:20Z  operator  settings  drain                        c-1  ok      accepted�]52;c;aGk=�
        ");
    }

    #[test]
    fn a_time_is_a_timestamp_or_how_long_ago() {
        assert_eq!(since("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000));
        let hour_ago = now_ms() - since("1h").unwrap();
        assert!((3_600_000..3_660_000).contains(&hour_ago), "{hour_ago}");
        assert!(since("yesterday").is_err() && since("0h").is_err());
    }
}
