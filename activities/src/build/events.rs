//! BuildKit's progress as records of the build's log, and what it adds up to.

use std::collections::{BTreeMap, VecDeque};

use buildkit::{StatusUpdate, Vertex};
use workflows::contract::{CacheStats, LogEvent};

use super::progress::Meter;
use crate::logs::AttemptLog;

/// How many of a step's last lines an error shows.
const TAIL_LINES: usize = 20;
/// The longest line that an error shows, bytes.
const TAIL_LINE: usize = 500;

/// Follows one solve.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    steps: BTreeMap<String, Step>,
}

#[derive(Debug, Default)]
struct Step {
    name: String,
    cached: bool,
    begun: bool,
    done: bool,
    tail: VecDeque<String>,
    /// Output after the last newline.
    open_line: String,
}

impl Recorder {
    /// Writes an update to the log and keeps what the end needs.
    pub(super) fn record(&mut self, update: StatusUpdate, log: &AttemptLog, meter: &Meter) {
        // What a step said stands before its end: readers take a completed step for closed.
        let (ended, begun): (Vec<_>, Vec<_>) =
            update.vertexes.into_iter().partition(|vertex| vertex.completed_ms.is_some());
        begun.into_iter().for_each(|vertex| self.vertex(vertex, log));
        for status in update.statuses {
            log.append(LogEvent::Progress {
                vertex: status.vertex,
                id: status.id,
                name: status.name,
                current: status.current,
                total: status.total,
                done: status.completed_ms.is_some(),
            });
        }
        for chunk in update.logs {
            let text = String::from_utf8_lossy(&chunk.data).into_owned();
            self.steps.entry(chunk.vertex.clone()).or_default().keep_tail(&text);
            log.append(LogEvent::Output { vertex: chunk.vertex, stream: chunk.stream, text });
        }
        for warning in update.warnings {
            log.append(LogEvent::Warning { vertex: warning.vertex, text: warning.short });
        }
        ended.into_iter().for_each(|vertex| self.vertex(vertex, log));
        meter.touch();
        let (done, total) = self.counts();
        meter.steps(done, total);
        let running = self.steps.values().filter(|step| step.begun && !step.done).count();
        meter.active(u32::try_from(running).unwrap_or(u32::MAX));
    }

    fn vertex(&mut self, vertex: Vertex, log: &AttemptLog) {
        let step = self.steps.entry(vertex.digest.clone()).or_default();
        step.name.clone_from(&vertex.name);
        step.cached |= vertex.cached;
        step.begun |= vertex.started_ms.is_some();
        step.done |= vertex.completed_ms.is_some();
        log.append(LogEvent::Vertex {
            vertex: vertex.digest,
            name: vertex.name,
            started_ms: vertex.started_ms,
            completed_ms: vertex.completed_ms,
            cached: vertex.cached,
            error: vertex.error,
        });
    }

    fn counts(&self) -> (u32, u32) {
        let done = self.steps.values().filter(|step| step.done).count();
        (u32::try_from(done).unwrap_or(u32::MAX), u32::try_from(self.steps.len()).unwrap_or(u32::MAX))
    }

    /// The steps of the Dockerfile that do something: those whose name has a stage's number, `[2/5] RUN …` or `[build 2/5] COPY …`.
    /// `FROM` only names where the others start; BuildKit never calls it cached.
    pub(super) fn cache_stats(&self) -> CacheStats {
        let of_the_file = self.steps.values().filter(|step| is_dockerfile_step(&step.name));
        let (mut total, mut cached) = (0, 0);
        for step in of_the_file {
            total += 1;
            cached += u32::from(step.cached);
        }
        CacheStats { total_steps: total, cached_steps: cached, fetched_bytes: 0 }
    }

    pub(super) fn name(&self, vertex: &str) -> Option<String> {
        self.steps.get(vertex).map(|step| step.name.clone())
    }

    /// The last lines of a step's output.
    pub(super) fn tail(&self, vertex: &str) -> Vec<String> {
        let Some(step) = self.steps.get(vertex) else { return Vec::new() };
        let open = Some(&step.open_line).filter(|line| !line.is_empty());
        let mut lines: Vec<String> = step.tail.iter().chain(open).cloned().collect();
        lines.drain(..lines.len().saturating_sub(TAIL_LINES));
        lines
    }
}

impl Step {
    fn keep_tail(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            let room = TAIL_LINE.saturating_sub(self.open_line.len());
            self.open_line.extend(part.trim_end_matches(['\r', '\n']).chars().take(room));
            if part.ends_with('\n') {
                if self.tail.len() == TAIL_LINES {
                    self.tail.pop_front();
                }
                self.tail.push_back(std::mem::take(&mut self.open_line));
            }
        }
    }
}

/// `[stage 2/5] …` or `[2/5] …`; `[internal] …` and exports are not steps of the file.
fn is_dockerfile_step(name: &str) -> bool {
    let Some((inside, instruction)) = name.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    if instruction.trim_start().starts_with("FROM ") {
        return false;
    }
    let position = inside.rsplit(' ').next().unwrap_or(inside);
    let Some((n, of)) = position.split_once('/') else { return false };
    [n, of].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_file_are_told_from_the_rest() {
        for name in ["[2/5] RUN make", "[build 12/13] COPY . .", "[linux/amd64 build 2/2] RUN x"] {
            assert!(is_dockerfile_step(name), "{name}");
        }
        for name in [
            "[internal] load build context",
            "exporting to image",
            "[auth] x",
            "RUN [1/2]",
            "[a/b] x",
            "[build 1/2] FROM x",
        ] {
            assert!(!is_dockerfile_step(name), "{name}");
        }
    }

    #[test]
    fn the_tail_keeps_whole_last_lines() {
        let mut step = Step::default();
        for n in 0..30 {
            step.keep_tail(&format!("line {n}\nhalf"));
        }
        let mut recorder = Recorder::default();
        recorder.steps.insert("v".into(), step);
        let tail = recorder.tail("v");
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.last().unwrap(), "half");
        assert_eq!(tail[TAIL_LINES - 2], "halfline 29");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut step = Step::default();
        for _ in 0..100 {
            step.keep_tail(&"x".repeat(1000));
        }
        assert_eq!(step.open_line.len(), TAIL_LINE);
    }
}
