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

/// The connection broke before the stream's end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("nothing came for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the connection was lost")]
    Lost(#[source] reqwest::Error),
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

    /// The next event; `None` at the end of the stream. Safe to drop while waiting.
    ///
    /// # Errors
    /// When the connection broke; the events up to there have been returned.
    pub async fn next(&mut self) -> Result<Option<BuildEvent>, Broken> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let Some(bytes) = chunk.map_err(|_| Broken::Silent)?.map_err(Broken::Lost)? else { return Ok(None) };
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
