//! One connection to a build's events.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;
use workflows::contract::{AttemptId, BuildResult, BuildStatus, LogRecord};

use super::sse::{Event, Parser};

/// The api keeps a quiet connection alive every 15 s: one that is silent for longer is broken.
const SILENCE: Duration = Duration::from_secs(45);

#[derive(Debug, Clone, PartialEq)]
pub enum BuildEvent {
    /// A record of the log and its position, after which a new connection resumes.
    Log(Option<u64>, LogRecord),
    /// The records that follow are of this attempt.
    Attempt(AttemptId),
    Status(BuildStatus),
    /// The last one.
    Result(Box<BuildResult>),
}

/// The events of one connection, which may break at any time.
pub struct Events {
    response: Response,
    parser: Parser,
    ready: VecDeque<BuildEvent>,
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next event; `None` when the connection has ended, for whatever reason. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<BuildEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let bytes = tokio::time::timeout(SILENCE, self.response.chunk()).await.ok()?.ok()??;
            self.ready.extend(self.parser.push(&bytes).into_iter().filter_map(known));
        }
    }
}

/// An event of a kind this version knows.
fn known(event: Event) -> Option<BuildEvent> {
    #[derive(Deserialize)]
    struct Status {
        status: BuildStatus,
    }
    match event.name.as_str() {
        "log" => {
            let position = event.id.and_then(|id| id.parse().ok());
            serde_json::from_str(&event.data).ok().map(|record| BuildEvent::Log(position, record))
        }
        "attempt" => serde_json::from_str(&event.data).ok().map(BuildEvent::Attempt),
        "status" => serde_json::from_str(&event.data).ok().map(|Status { status }| BuildEvent::Status(status)),
        "result" => serde_json::from_str(&event.data).ok().map(BuildEvent::Result),
        _ => None,
    }
}
