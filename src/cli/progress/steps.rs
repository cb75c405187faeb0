//! What is known of a build's steps.

use std::collections::{HashMap, VecDeque};

use workflows::contract::{AttemptId, LogEvent, LogRecord};

/// How many lines of a step's output a picture may show.
const TAIL: usize = 6;
/// A line that goes on for longer is shown in parts, bytes.
const LONGEST_LINE: usize = 64 << 10;

/// The steps, in the order in which they became known.
#[derive(Debug, Default)]
pub struct Steps {
    steps: Vec<Step>,
    /// Where the steps of the attempt that is shown begin; those of former ones stay before them.
    first: usize,
    /// Where a vertex is in `steps`.
    places: HashMap<String, usize>,
    /// Numbers go on over attempts, so that each names one step of the whole log.
    numbered: usize,
    attempt: Option<AttemptId>,
    /// Whether what comes is of an attempt that a newer one has taken the place of.
    late: bool,
    /// The newest record's time, milliseconds since 1970.
    pub clock_ms: u64,
    pub first_ms: Option<u64>,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Counts from 1; 0 for one that has not started.
    pub number: usize,
    pub name: String,
    pub started_ms: Option<u64>,
    pub completed_ms: Option<u64>,
    pub cached: bool,
    pub error: Option<String>,
    pub parts: Vec<Part>,
    /// The newest lines of its output, for a picture; at most [`TAIL`].
    pub tail: VecDeque<String>,
    /// Whether the last of these is a progress bar's, over which the next line is written.
    overwritten: bool,
    /// Output after the last line end, by stream.
    partial: [String; 2],
}

/// Progress within a step: a layer, a file set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub id: String,
    pub current: u64,
    /// 0 when unknown.
    pub total: u64,
    pub since_ms: u64,
    pub until_ms: u64,
    pub done: bool,
}

/// What a record says that was not known before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The step at this place has started.
    Started(usize),
    /// It has ended, one way or another.
    Ended(usize),
    /// A line of its output, without the line end.
    Line(usize, String),
    /// One of its parts has moved.
    Part(usize, usize),
    Warning(Option<usize>, String),
    /// Kiln itself has something to say.
    Note(String),
    /// Records follow of another attempt; nothing more comes of the steps known so far.
    Attempt,
}

impl Step {
    pub fn is_running(&self) -> bool {
        self.started_ms.is_some() && self.completed_ms.is_none()
    }

    /// How long it took, or has taken so far.
    pub fn elapsed_ms(&self, now_ms: u64) -> u64 {
        self.completed_ms.unwrap_or(now_ms).saturating_sub(self.started_ms.unwrap_or(now_ms))
    }
}

impl Steps {
    pub fn step(&self, place: usize) -> &Step {
        &self.steps[place]
    }

    /// The steps of the attempt that is shown.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.steps[self.first..].iter()
    }

    /// Steps that ended, and all that are known.
    pub fn counts(&self) -> (usize, usize) {
        (self.iter().filter(|step| step.completed_ms.is_some()).count(), self.iter().count())
    }

    /// What follows belongs to this attempt. A builder that was cut off, or is killed, tells the rest of an attempt when the build has long
    /// gone on elsewhere: among the lines of the attempt that counts it would only mislead, and is left out.
    pub fn attempt(&mut self, attempt: AttemptId) -> Vec<Change> {
        self.late = self.attempt.as_ref().is_some_and(|shown| is_older(&attempt, shown));
        if self.late || self.attempt.as_ref() == Some(&attempt) {
            return Vec::new();
        }
        self.first = self.steps.len();
        self.places.clear();
        self.attempt = Some(attempt);
        vec![Change::Attempt]
    }

    /// Takes one record in and says what it changed.
    pub fn take(&mut self, record: LogRecord) -> Vec<Change> {
        if self.late {
            return Vec::new();
        }
        self.clock_ms = self.clock_ms.max(record.at_ms);
        self.first_ms.get_or_insert(record.at_ms);
        match record.event {
            LogEvent::Vertex { .. } => self.vertex(record.event),
            LogEvent::Progress { vertex, id, current, total, done, .. } => {
                let place = self.place(&vertex);
                let (current, total) = (current.max(0) as u64, total.max(0) as u64);
                self.part(place, Part { id, current, total, since_ms: record.at_ms, until_ms: record.at_ms, done })
            }
            LogEvent::Output { vertex, stream, text } => {
                let place = self.place(&vertex);
                self.output(place, stream, &text)
            }
            LogEvent::Warning { vertex, text } => vec![Change::Warning(self.places.get(&vertex).copied(), text)],
            LogEvent::Note { text } => vec![Change::Note(text)],
            // Here the cut begins; how much it is comes at its end.
            LogEvent::Cut { records: 0, reason, .. } => vec![Change::Note(reason)],
            LogEvent::Cut { records, bytes, reason } => {
                vec![Change::Note(format!("{records} records ({}) are missing here: {reason}", super::bytes(bytes)))]
            }
            LogEvent::End => Vec::new(),
        }
    }

    fn place(&mut self, vertex: &str) -> usize {
        if let Some(place) = self.places.get(vertex) {
            return *place;
        }
        self.places.insert(vertex.to_owned(), self.steps.len());
        self.steps.push(Step::default());
        self.steps.len() - 1
    }

    fn vertex(&mut self, event: LogEvent) -> Vec<Change> {
        let LogEvent::Vertex { vertex, name, started_ms, completed_ms, cached, error } = event else {
            return Vec::new();
        };
        let place = self.place(&vertex);
        let step = &mut self.steps[place];
        // A step may run again, for example when what it made has to be fetched after all.
        let again = started_ms > step.completed_ms && step.completed_ms.is_some();
        let begins = (started_ms.is_some() && step.started_ms.is_none()) || again;
        let ends = completed_ms.is_some() && (step.completed_ms.is_none() || again);
        let same = completed_ms.is_none() && step.completed_ms.is_some() && !again;
        if same {
            return Vec::new();
        }
        step.name = name.replace('\n', " ");
        (step.started_ms, step.completed_ms, step.cached) = (started_ms, completed_ms, cached);
        step.error = error;
        let mut changes = Vec::new();
        if begins {
            changes.push(Change::Started(place));
        }
        if ends {
            changes.extend(step.last_lines().map(|line| Change::Line(place, line)));
            changes.push(Change::Ended(place));
        }
        if !changes.is_empty() {
            self.number(place);
        }
        changes
    }

    /// Gives a step its number when it is shown first.
    fn number(&mut self, place: usize) {
        if self.steps[place].number == 0 {
            self.numbered += 1;
            self.steps[place].number = self.numbered;
        }
    }

    fn part(&mut self, place: usize, part: Part) -> Vec<Change> {
        self.number(place);
        let parts = &mut self.steps[place].parts;
        match parts.iter().position(|known| known.id == part.id) {
            Some(at) => {
                let since_ms = parts[at].since_ms;
                parts[at] = Part { since_ms, ..part };
                vec![Change::Part(place, at)]
            }
            None => {
                parts.push(part);
                vec![Change::Part(place, parts.len() - 1)]
            }
        }
    }

    fn output(&mut self, place: usize, stream: u32, text: &str) -> Vec<Change> {
        let partial = &mut self.steps[place].partial[usize::from(stream == 2)];
        partial.push_str(text);
        let lines = ended_lines(partial);
        if lines.is_empty() {
            return Vec::new();
        }
        self.number(place);
        lines.iter().for_each(|line| self.steps[place].keep(line));
        lines.into_iter().map(|line| Change::Line(place, line.text)).collect()
    }
}

fn is_older(attempt: &AttemptId, than: &AttemptId) -> bool {
    let same_work = attempt.run_id == than.run_id && attempt.platform == than.platform;
    same_work && attempt.number < than.number
}

/// A line of output.
struct Line {
    text: String,
    /// Whether a lone return ends it: a progress bar's, over which the next line is written.
    is_overwritten: bool,
}

/// Takes the lines that have an end from the front of `partial`. Ends are `\n`, `\r\n` and a lone `\r`; between returns nothing is
/// no line. A return at the very end may be the first half of an end.
fn ended_lines(partial: &mut String) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut from = 0;
    while let Some(length) = partial[from..].find(['\n', '\r']) {
        let end = from + length;
        let (next, is_overwritten) = match &partial.as_bytes()[end..] {
            [b'\r'] => break,
            [b'\r', b'\n', ..] => (end + 2, false),
            [b'\r', ..] => (end + 1, true),
            _ => (end + 1, false),
        };
        if !(is_overwritten && end == from) {
            lines.push(Line { text: partial[from..end].to_owned(), is_overwritten });
        }
        from = next;
    }
    partial.drain(..from);
    if partial.len() > LONGEST_LINE {
        lines.push(Line { text: std::mem::take(partial), is_overwritten: false });
    }
    lines
}

impl Step {
    fn keep(&mut self, line: &Line) {
        if std::mem::replace(&mut self.overwritten, line.is_overwritten) {
            self.tail.pop_back();
        }
        self.tail.push_back(line.text.clone());
        if self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    /// What the output ends with when its last line has no end.
    fn last_lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let lines = std::mem::take(&mut self.partial).map(|line| line.trim_end_matches('\r').to_owned());
        lines.into_iter().filter(|line| !line.is_empty())
    }
}
