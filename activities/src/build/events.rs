//! BuildKit's progress as records of the build's log, and what it adds up to.

use std::collections::{BTreeMap, VecDeque};

use buildkit::{LogChunk, Progress, StatusUpdate, Vertex};
use workflows::contract::{CacheStats, LogEvent};

use super::progress::Meter;
use super::text::Decoder;
use crate::logs::AttemptLog;

/// How many of a step's last lines an error shows.
const TAIL_LINES: usize = 20;
/// The longest line that an error shows, bytes.
const TAIL_LINE: usize = 500;

/// Follows one solve.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    steps: BTreeMap<String, Step>,
    /// The last state of what steps count, by step and id. BuildKit repeats the state of a pull every 150 ms.
    counted: BTreeMap<(String, String), Progress>,
}

#[derive(Debug, Default)]
struct Step {
    name: String,
    cached: bool,
    begun: bool,
    done: bool,
    /// The last mention of the step.
    mention: Option<Vertex>,
    tail: VecDeque<String>,
    /// Output after the last newline.
    open_line: String,
    /// By number of the stream.
    streams: BTreeMap<u32, Decoder>,
}

impl Recorder {
    /// Writes to the log what an update changes and keeps what the end needs. Repeated states are no progress.
    pub(super) fn record(&mut self, update: StatusUpdate, log: &AttemptLog, meter: &Meter) {
        // What a step said stands before its end: readers take a completed step for closed.
        let (ended, begun): (Vec<_>, Vec<_>) =
            update.vertexes.into_iter().partition(|vertex| vertex.completed_ms.is_some());
        let mut changed = !update.logs.is_empty() || !update.warnings.is_empty();
        for vertex in begun {
            changed |= self.vertex(vertex, log);
        }
        for status in update.statuses {
            changed |= self.status(status, log);
        }
        for chunk in update.logs {
            self.output(chunk, log);
        }
        for warning in update.warnings {
            log.append(LogEvent::Warning { vertex: warning.vertex, text: warning.short });
        }
        for vertex in ended {
            changed |= self.vertex(vertex, log);
        }
        if changed {
            meter.touch();
        }
        let (done, total) = self.counts();
        meter.steps(done, total);
        let running = self.steps.values().filter(|step| step.begun && !step.done).count();
        meter.active(u32::try_from(running).unwrap_or(u32::MAX));
    }

    /// Whether the mention says anything new.
    fn vertex(&mut self, vertex: Vertex, log: &AttemptLog) -> bool {
        let step = self.steps.entry(vertex.digest.clone()).or_default();
        if step.mention.as_ref() == Some(&vertex) {
            return false;
        }
        step.mention = Some(vertex.clone());
        step.name.clone_from(&vertex.name);
        step.cached |= vertex.cached;
        step.begun |= vertex.started_ms.is_some();
        step.done |= vertex.completed_ms.is_some();
        if step.done {
            step.close(&vertex.digest, log);
        }
        log.append(LogEvent::Vertex {
            vertex: vertex.digest,
            name: vertex.name,
            started_ms: vertex.started_ms,
            completed_ms: vertex.completed_ms,
            cached: vertex.cached,
            error: vertex.error,
        });
        true
    }

    /// Whether the state is another one than before; its time is not part of it.
    fn status(&mut self, status: Progress, log: &AttemptLog) -> bool {
        let state = Progress { timestamp_ms: None, ..status.clone() };
        let key = (status.vertex.clone(), status.id.clone());
        if self.counted.get(&key) == Some(&state) {
            return false;
        }
        self.counted.insert(key, state);
        log.append(LogEvent::Progress {
            vertex: status.vertex,
            id: status.id,
            name: status.name,
            current: status.current,
            total: status.total,
            done: status.completed_ms.is_some(),
        });
        true
    }

    fn output(&mut self, chunk: LogChunk, log: &AttemptLog) {
        let step = self.steps.entry(chunk.vertex.clone()).or_default();
        let text = step.streams.entry(chunk.stream).or_default().decode(&chunk.data);
        if !text.is_empty() {
            step.keep_tail(&text);
            log.append(LogEvent::Output { vertex: chunk.vertex, stream: chunk.stream, text });
        }
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
    /// Ends the step's output.
    fn close(&mut self, vertex: &str, log: &AttemptLog) {
        for (stream, mut decoder) in std::mem::take(&mut self.streams) {
            if let Some(text) = decoder.finish() {
                self.keep_tail(&text);
                log.append(LogEvent::Output { vertex: vertex.to_owned(), stream, text });
            }
        }
    }

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

    fn log(directory: &std::path::Path) -> AttemptLog {
        // Nothing listens there: records stay in the spool.
        let shipper = crate::logs::LogShipper::start("127.0.0.1:1", "token", directory, 1 << 30).unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let attempt =
            workflows::contract::AttemptId { workflow_id: "build/p/k".into(), run_id: "r".into(), platform, number: 1 };
        shipper.open(&attempt, 1 << 30)
    }

    fn pull(current: i64, timestamp_ms: u64) -> StatusUpdate {
        let status = Progress {
            vertex: "v".into(),
            id: "sha256:aa".into(),
            current,
            total: 100,
            timestamp_ms: Some(timestamp_ms),
            ..Progress::default()
        };
        StatusUpdate { statuses: vec![status], ..StatusUpdate::default() }
    }

    #[tokio::test]
    async fn a_repeated_state_is_neither_progress_nor_logged() {
        let (directory, meter, mut recorder) = (tempfile::tempdir().unwrap(), Meter::new(), Recorder::default());
        let log = log(directory.path());
        let sight = meter.sight();
        let mut moves = |update: StatusUpdate| {
            let before = sight.moved();
            recorder.record(update, &log, &meter);
            sight.moved() != before
        };
        assert!(moves(pull(10, 1)));
        assert!(!moves(pull(10, 151)), "only the time is another one");
        assert!(moves(pull(11, 301)));
        let vertex = |completed_ms| {
            let vertex = Vertex { digest: "v".into(), started_ms: Some(1), completed_ms, ..Vertex::default() };
            StatusUpdate { vertexes: vec![vertex], ..StatusUpdate::default() }
        };
        assert!(moves(vertex(None)));
        assert!(!moves(vertex(None)));
        assert!(moves(vertex(Some(9))));
        assert!(!moves(StatusUpdate::default()));
        let state = pull(11, 301).statuses.remove(0);
        assert!(!recorder.status(state.clone(), &log), "it would be logged again");
        assert!(recorder.status(Progress { completed_ms: Some(9), ..state }, &log));
    }

    #[tokio::test]
    async fn a_character_cut_by_the_daemon_is_whole_in_the_tail() {
        let (directory, meter, mut recorder) = (tempfile::tempdir().unwrap(), Meter::new(), Recorder::default());
        let log = log(directory.path());
        let output = |stream, data: &[u8]| {
            let chunk = LogChunk { vertex: "v".into(), stream, data: data.to_vec(), ..LogChunk::default() };
            StatusUpdate { logs: vec![chunk], ..StatusUpdate::default() }
        };
        recorder.record(output(1, b"h\xc3"), &log, &meter);
        recorder.record(output(2, b"other\n"), &log, &meter);
        recorder.record(output(1, b"\xa9\nend \xe2"), &log, &meter);
        let done = Vertex { digest: "v".into(), completed_ms: Some(1), ..Vertex::default() };
        recorder.record(StatusUpdate { vertexes: vec![done], ..StatusUpdate::default() }, &log, &meter);
        assert_eq!(recorder.tail("v"), ["hother", "é", "end \u{fffd}"]);
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
