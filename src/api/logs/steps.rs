//! What a build's log says of its steps: which ran, which were cached, how long each took.
//!
//! A [`Summary`] grows with the log's records and is stored with the archived log, so that showing a build never reads its log.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use workflows::contract::{AttemptId, LogEvent, LogRecord};

use super::{Item, LogError, LogHub, LogReader, RunLog};

/// The most steps that a summary holds; what is beyond is in the log only.
const STEPS: usize = 2000;
/// The longest name or error of a step here, bytes.
const TEXT: usize = 1 << 10;

/// One step of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Step {
    /// The attempt's number.
    pub attempt: u32,
    /// The step's name as BuildKit gives it, for example `[build 3/5] RUN make`; at most 1 KiB of it.
    pub name: String,
    pub outcome: StepOutcome,
    /// How long it took, milliseconds; absent while it runs and when it never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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

/// The steps of a run so far, in the order in which they became known, each as its last record says. The log itself is read only when it
/// was archived before summaries were stored, once.
pub async fn steps(hub: &Arc<LogHub>, log: Arc<RunLog>) -> Result<Vec<Step>, LogError> {
    if let Some(steps) = log.steps() {
        return Ok(steps);
    }
    let mut summary = Summary::default();
    let mut reader = LogReader::new(hub.clone(), log.clone(), 0);
    loop {
        let items = reader.next().await?;
        if items.is_empty() {
            break;
        }
        items.iter().for_each(|item| match item {
            Item::Attempt { json, .. } => summary.attempt(json.as_bytes()),
            Item::Record { json, .. } => summary.record(json.as_bytes()),
        });
    }
    let steps = summary.steps();
    if let Some(archive) = log.summarize(summary) {
        hub.store.record_archived_log(log.run(), &archive).await?;
    }
    Ok(steps)
}

/// A step, and the vertex that further records of it name.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    vertex: String,
    step: Step,
}

/// The steps that a log names.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Whose records come.
    attempt: u32,
    steps: Vec<Known>,
    /// Where a vertex of an attempt is in `steps`.
    places: HashMap<(u32, String), usize>,
}

impl Summary {
    /// What [`Self::to_json`] made; `None` when it is something else.
    pub fn from_json(json: &str) -> Option<Self> {
        let steps: Vec<Known> = serde_json::from_str(json).ok()?;
        let place = |(at, known): (usize, &Known)| ((known.step.attempt, known.vertex.clone()), at);
        let places = steps.iter().enumerate().map(place).collect();
        Some(Self { attempt: 0, steps, places })
    }

    pub fn to_json(&self) -> Option<String> {
        serde_json::to_string(&self.steps).ok()
    }

    pub fn steps(&self) -> Vec<Step> {
        self.steps.iter().map(|known| known.step.clone()).collect()
    }

    /// The records that follow are of this attempt (JSON).
    pub fn attempt(&mut self, json: &[u8]) {
        if let Ok(attempt) = serde_json::from_slice::<AttemptId>(json) {
            self.attempt = attempt.number;
        }
    }

    /// Takes a record (JSON) of the attempt named last.
    pub fn record(&mut self, json: &[u8]) {
        if is_vertex(json)
            && let Ok(LogRecord { event, .. }) = serde_json::from_slice(json)
        {
            self.vertex(event);
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
        let (name, error) = (shortened(name), error.map(shortened));
        let step = Step { attempt: self.attempt, name, outcome, duration_ms, error };
        match self.places.get(&(self.attempt, vertex.clone())) {
            Some(&place) => self.steps[place].step = step,
            None if self.steps.len() < STEPS => {
                self.places.insert((self.attempt, vertex.clone()), self.steps.len());
                self.steps.push(Known { vertex, step });
            }
            None => {}
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT {
        text.truncate(text.floor_char_boundary(TEXT));
        text.push('…');
    }
    text
}

/// A log is mostly output: records of other kinds are told apart without parsing them. The kind follows two numbers.
fn is_vertex(json: &[u8]) -> bool {
    json[..json.len().min(80)].windows(15).any(|window| window == b"\"type\":\"vertex\"")
}
