//! What a build's log says of its steps: which ran, which were cached, how long each took.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use workflows::contract::{AttemptId, LogEvent, LogRecord};

use super::{Item, LogError, LogHub, LogReader, RunLog};

/// One step of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Step {
    /// The attempt's number.
    pub attempt: u32,
    /// The step's name as BuildKit gives it, for example `[build 3/5] RUN make`.
    pub name: String,
    pub outcome: StepOutcome,
    /// How long it took, milliseconds; absent while it runs and when it never started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// Known, not started.
    Waiting,
    Running,
    /// It ran to its end.
    Ran,
    /// Its result was there already.
    Cached,
    Failed,
}

/// The steps of a run so far, in the order in which they became known, each as its last record says.
pub async fn steps(hub: &Arc<LogHub>, log: Arc<RunLog>) -> Result<Vec<Step>, LogError> {
    let mut reader = LogReader::new(hub.clone(), log, 0);
    let mut collected = Collected::default();
    loop {
        let items = reader.next().await?;
        if items.is_empty() {
            return Ok(collected.steps);
        }
        items.iter().for_each(|item| collected.take(item));
    }
}

#[derive(Default)]
struct Collected {
    attempt: u32,
    steps: Vec<Step>,
    /// Where a vertex of an attempt is in `steps`.
    places: HashMap<(u32, String), usize>,
}

impl Collected {
    fn take(&mut self, item: &Item) {
        match item {
            Item::Attempt { json, .. } => {
                self.attempt = serde_json::from_str(json).map_or(self.attempt, |attempt: AttemptId| attempt.number);
            }
            Item::Record { json, .. } if is_vertex(json) => {
                if let Ok(LogRecord { event, .. }) = serde_json::from_str(json) {
                    self.vertex(event);
                }
            }
            Item::Record { .. } => {}
        }
    }

    fn vertex(&mut self, event: LogEvent) {
        let LogEvent::Vertex { vertex, name, started_ms, completed_ms, cached, error } = event else { return };
        let outcome = match (&error, cached, started_ms, completed_ms) {
            (Some(_), ..) => StepOutcome::Failed,
            (None, true, ..) => StepOutcome::Cached,
            (None, false, _, Some(_)) => StepOutcome::Ran,
            (None, false, Some(_), None) => StepOutcome::Running,
            (None, false, None, None) => StepOutcome::Waiting,
        };
        let duration_ms = started_ms.zip(completed_ms).map(|(started, completed)| completed.saturating_sub(started));
        let step = Step { attempt: self.attempt, name, outcome, duration_ms, error };
        match self.places.get(&(self.attempt, vertex.clone())) {
            Some(&place) => self.steps[place] = step,
            None => {
                self.places.insert((self.attempt, vertex), self.steps.len());
                self.steps.push(step);
            }
        }
    }
}

/// A log is mostly output: records of other kinds are told apart without parsing them. The kind follows two numbers.
fn is_vertex(json: &str) -> bool {
    let head = json.as_bytes();
    head[..head.len().min(80)].windows(15).any(|window| window == b"\"type\":\"vertex\"")
}
