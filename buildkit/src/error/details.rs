//! The typed details of BuildKit's errors. Their type URLs name Go types, their values are JSON.

use super::FailedVertex;
use crate::progress::Vertexes;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost_types::Any;
use serde::{Deserialize, de::DeserializeOwned};

#[derive(Debug, Default)]
pub(super) struct Details {
    /// The exit code of a step's process.
    pub(super) exit: Option<u32>,
    /// Raised while a frontend turned the definition into steps.
    pub(super) frontend: bool,
    pub(super) sources: Vec<SourceExcerpt>,
    vertexes: Vec<String>,
}

/// Lines of a build's definition that a failure is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceExcerpt {
    /// As named in the build, for example `Dockerfile`.
    pub file: String,
    /// The first and last line it is about, counted from 1.
    pub lines: (u32, u32),
    /// The lines and some around them as BuildKit prints them, those it is about marked with `>>>`.
    pub text: String,
}

#[derive(Deserialize)]
struct ExitMessage {
    #[serde(rename = "Code", default)]
    code: u32,
}

#[derive(Deserialize)]
struct Vertex {
    #[serde(default)]
    digest: String,
}

#[derive(Deserialize)]
struct Source {
    info: Option<SourceInfo>,
    #[serde(default)]
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct SourceInfo {
    #[serde(default)]
    filename: String,
    /// Base64 of the whole file.
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    start: Position,
    #[serde(default)]
    end: Position,
}

#[derive(Deserialize, Default)]
struct Position {
    #[serde(default)]
    line: u32,
}

impl Details {
    /// Details of unknown types, and malformed ones, are left out: the message says the rest.
    pub(super) fn decode(details: &[Any]) -> Self {
        let mut decoded = Self::default();
        for detail in details {
            match detail.type_url.rsplit('/').next() {
                Some("gatewayapi.ExitMessage+json") => {
                    decoded.exit = parse(detail).map(|exit: ExitMessage| exit.code).or(decoded.exit)
                }
                Some("errdefs.Vertex+json") => {
                    decoded.vertexes.extend(parse(detail).map(|vertex: Vertex| vertex.digest))
                }
                Some("errdefs.Source+json") => decoded.sources.extend(parse(detail).and_then(excerpt)),
                Some("errdefs.Frontend+json") => decoded.frontend = true,
                _ => {}
            }
        }
        // The outermost is first.
        decoded.sources.reverse();
        decoded.sources.dedup();
        decoded
    }

    /// The step the error was raised in: the innermost one that the progress has mentioned, or else the innermost.
    pub(super) fn vertex(&self, known: &Vertexes) -> Option<FailedVertex> {
        let named = |digest: &&String| known.names.contains_key(*digest);
        let digest = self.vertexes.iter().rev().find(named).or(self.vertexes.last())?;
        Some(FailedVertex { digest: digest.clone(), name: known.names.get(digest).cloned() })
    }
}

fn parse<T: DeserializeOwned>(detail: &Any) -> Option<T> {
    serde_json::from_slice(&detail.value).ok()
}

/// The excerpt as BuildKit's command line prints it: two lines around several, four around one.
fn excerpt(source: Source) -> Option<SourceExcerpt> {
    let info = source.info?;
    let data = String::from_utf8_lossy(&STANDARD.decode(&info.data).ok()?).into_owned();
    let lines: Vec<&str> = data.split('\n').collect();
    let count = u32::try_from(lines.len()).ok()?;
    let ranges: Vec<(u32, u32)> =
        source.ranges.iter().map(|range| (range.start.line, range.end.line.max(range.start.line))).collect();
    let first = ranges.iter().map(|range| range.0).min()?;
    let last = ranges.iter().map(|range| range.1).max()?.min(count);
    if first < 1 || first > count {
        return None;
    }
    let (from, to) = widen(first, last, count);
    let rule = "--------------------\n";
    let mut text = format!("{}:{first}\n{rule}", info.filename);
    for number in from..=to {
        let mark = if ranges.iter().any(|range| range.0 <= number && number <= range.1) { ">>>" } else { "   " };
        text.push_str(&format!(" {number:3} | {mark} {}\n", lines[number as usize - 1]));
    }
    text.push_str(rule);
    Some(SourceExcerpt { file: info.filename, lines: (first, last), text })
}

fn widen(first: u32, last: u32, count: u32) -> (u32, u32) {
    let padding = if first == last { 4 } else { 2 };
    let (mut from, mut to, mut added) = (first, last, 0);
    while added < padding {
        if from > 1 {
            from -= 1;
            added += 1;
        }
        if to != count {
            to += 1;
            added += 1;
        }
        added += 1;
    }
    (from, to)
}
