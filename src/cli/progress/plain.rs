//! Progress as lines, in the form of `docker build --progress=plain`: `#5 [build 2/4] RUN make`, `#5 0.123 text`, `#5 DONE 0.4s`.
//!
//! Steps run side by side. The lines of one stay together while it has something to say: what others say waits until it has ended
//! or was silent for [`SILENT_MS`]. A step that ends is shown to its end at once.

use std::collections::{HashMap, VecDeque};

use super::steps::{Change, Part, Steps};
use super::units::{bytes, seconds};

/// How long the step that is shown may be silent before another one that has something to say is shown.
const SILENT_MS: u64 = 2_000;
/// A part that moves is shown at its end, and so often before.
const PART_EVERY_MS: u64 = 1_000;
/// How long a step must have ended to be shown as ended: what is said of a step comes after the news of its end when both come at
/// once, and a step may end several times in quick succession.
const SETTLE_MS: u64 = 100;

/// What is shown, and what waits.
#[derive(Debug, Default)]
pub struct Plain {
    out: String,
    last: Last,
    /// The step whose lines are shown.
    current: Option<usize>,
    spoke_ms: u64,
    waiting: VecDeque<(usize, Vec<String>)>,
    /// Steps that have ended, since when, and are not shown so yet.
    ending: Vec<(usize, u64)>,
    /// When a part was shown last, or was first heard of, by step and part.
    shown: HashMap<(usize, usize), u64>,
}

/// What the last line belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Nothing,
    Note,
    Step,
}

impl Plain {
    /// Adds what a record changed.
    pub fn add(&mut self, steps: &Steps, change: Change) {
        self.settle(steps, steps.clock_ms);
        match change {
            Change::Started(place) => {
                self.ending.retain(|(ending, _)| *ending != place);
                self.say(steps, place, None);
            }
            Change::Line(place, line) => {
                let step = steps.step(place);
                let at = steps.clock_ms.saturating_sub(step.started_ms.unwrap_or(steps.clock_ms)) as f64 / 1000.0;
                self.say(steps, place, Some(format!("#{} {at:.3} {line}", step.number)));
            }
            Change::Part(place, part) => self.part(steps, place, part),
            Change::Ended(place) => self.ending.push((place, steps.clock_ms)),
            Change::Warning(place, text) => match place {
                Some(place) => self.say(steps, place, Some(format!("#{} WARN: {text}", steps.step(place).number))),
                None => self.note(steps, &format!("WARN: {text}")),
            },
            Change::Note(text) => self.note(steps, &text),
            Change::Attempt => {
                self.finish(steps);
                self.current = None;
            }
        }
    }

    /// Looks whether the step that is shown has been silent for too long, or has ended.
    pub fn tick(&mut self, steps: &Steps, now_ms: u64) {
        self.settle(steps, now_ms);
        if now_ms.saturating_sub(self.spoke_ms) >= SILENT_MS
            && let Some((place, lines)) = self.waiting.pop_front()
        {
            self.show(steps, place, &lines);
        }
    }

    /// What there is to print since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// Everything that still waits.
    pub fn finish(&mut self, steps: &Steps) {
        self.settle(steps, u64::MAX);
        while let Some((place, lines)) = self.waiting.pop_front() {
            self.show(steps, place, &lines);
        }
    }

    fn part(&mut self, steps: &Steps, place: usize, part: usize) {
        let step = steps.step(place);
        let part_of = &step.parts[part];
        let shown = *self.shown.entry((place, part)).or_insert(steps.clock_ms);
        if part_of.done || steps.clock_ms.saturating_sub(shown) >= PART_EVERY_MS {
            self.shown.insert((place, part), steps.clock_ms);
            self.say(steps, place, Some(format!("#{} {}", step.number, part_text(part_of))));
        }
    }

    /// Shows or keeps a line of a step; `None` is its heading alone.
    fn say(&mut self, steps: &Steps, place: usize, line: Option<String>) {
        let silent = steps.clock_ms.saturating_sub(self.spoke_ms) >= SILENT_MS;
        let free = self.current.is_none() && self.ending.is_empty();
        if free || self.current == Some(place) || silent {
            let mut lines = self.kept(place);
            lines.extend(line);
            return self.show(steps, place, &lines);
        }
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == place) {
            Some((_, lines)) => lines.extend(line),
            None => self.waiting.push_back((place, line.into_iter().collect())),
        }
    }

    /// Ends the steps that ended long enough ago; the one that is shown goes first, before its lines are left for others.
    fn settle(&mut self, steps: &Steps, now_ms: u64) {
        while let Some(due) = self.ending.iter().position(|(_, since)| now_ms.saturating_sub(*since) >= SETTLE_MS) {
            let shown = self.ending.iter().position(|(place, _)| self.current == Some(*place));
            let (place, _) = self.ending.remove(shown.unwrap_or(due));
            self.end(steps, place);
        }
    }

    fn end(&mut self, steps: &Steps, place: usize) {
        let step = steps.step(place);
        let number = step.number;
        let mut lines = self.kept(place);
        lines.push(match &step.error {
            Some(error) if error.ends_with("context canceled") => format!("#{number} CANCELED"),
            Some(error) => format!("#{number} ERROR: {error}"),
            None if step.cached => format!("#{number} CACHED"),
            None => format!("#{number} DONE {}", seconds(step.elapsed_ms(steps.clock_ms))),
        });
        self.show(steps, place, &lines);
        self.current = None;
        if self.ending.is_empty()
            && let Some((next, lines)) = self.waiting.pop_front()
        {
            self.show(steps, next, &lines);
        }
    }

    fn show(&mut self, steps: &Steps, place: usize, lines: &[String]) {
        if self.current != Some(place) {
            if let Some(current) = self.current {
                self.line(&format!("#{} ...", steps.step(current).number));
            }
            let step = steps.step(place);
            self.heading(&format!("#{} {}", step.number, step.name));
            self.current = Some(place);
        }
        lines.iter().for_each(|line| self.line(line));
        self.spoke_ms = steps.clock_ms;
    }

    /// A line that belongs to no step.
    fn note(&mut self, steps: &Steps, text: &str) {
        self.settle(steps, u64::MAX);
        if let Some(current) = self.current.take() {
            self.line(&format!("#{} ...", steps.step(current).number));
        }
        if self.last == Last::Step {
            self.out.push('\n');
        }
        self.line(&format!("kiln: {text}"));
        self.last = Last::Note;
    }

    fn kept(&mut self, place: usize) -> Vec<String> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == place);
        at.and_then(|at| self.waiting.remove(at)).map(|(_, lines)| lines).unwrap_or_default()
    }

    fn heading(&mut self, text: &str) {
        if std::mem::replace(&mut self.last, Last::Step) != Last::Nothing {
            self.out.push('\n');
        }
        self.line(text);
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }
}

/// `sha256:… 1.05MB / 3.20MB 0.2s done`
pub fn part_text(part: &Part) -> String {
    let mut text = part.id.clone();
    match (part.current, part.total) {
        (0, 0) => {}
        (current, 0) => text.push_str(&format!(" {}", bytes(current))),
        (current, total) => text.push_str(&format!(" {} / {}", bytes(current), bytes(total))),
    }
    let took = part.until_ms.saturating_sub(part.since_ms);
    if took > 10 {
        text.push_str(&format!(" {}", seconds(took)));
    }
    if part.done {
        text.push_str(" done");
    }
    text
}
