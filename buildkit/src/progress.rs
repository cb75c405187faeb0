//! What happens in a build, as plain data: the daemon's status messages without their wire types.

use crate::proto::moby::buildkit::v1 as wire;
use prost_types::Timestamp;
use std::collections::HashMap;

/// One message of a build's progress. A vertex is mentioned again at each of its changes; the last mention counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatusUpdate {
    pub vertexes: Vec<Vertex>,
    pub statuses: Vec<Progress>,
    pub logs: Vec<LogChunk>,
    pub warnings: Vec<Warning>,
}

/// A step of the build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vertex {
    /// Identifies the step: `sha256:…`.
    pub digest: String,
    /// As progress shows it, for example `[build 2/4] RUN make`.
    pub name: String,
    /// Digests of the steps this one needs.
    pub inputs: Vec<String>,
    pub cached: bool,
    /// Milliseconds since 1970, the daemon's clock, as all times here.
    pub started_ms: Option<u64>,
    pub completed_ms: Option<u64>,
    /// Why it failed; steps that were stopped because another one failed have one too.
    pub error: Option<String>,
    pub group: Option<ProgressGroup>,
}

/// Steps that progress should show as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    pub id: String,
    pub name: String,
    pub weak: bool,
}

/// Something counted within a step: a layer pulled, files transferred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    pub vertex: String,
    pub id: String,
    pub name: String,
    pub current: i64,
    /// 0 when unknown.
    pub total: i64,
    pub timestamp_ms: Option<u64>,
    pub started_ms: Option<u64>,
    pub completed_ms: Option<u64>,
}

/// Output of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogChunk {
    pub vertex: String,
    pub timestamp_ms: Option<u64>,
    /// 1 standard output, 2 standard error.
    pub stream: u32,
    /// May end within a line, even within a character.
    pub data: Vec<u8>,
}

/// A finding of the frontend about the build's definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warning {
    pub vertex: String,
    pub level: i64,
    pub short: String,
    pub detail: Vec<String>,
    pub url: String,
    /// The file it is about; empty when it is about none.
    pub file: String,
    /// The lines it is about, counted from 1, first and last.
    pub lines: Option<(u32, u32)>,
}

/// What errors need to know of a build's steps.
#[derive(Debug, Default)]
pub(crate) struct Vertexes {
    pub(crate) names: HashMap<String, String>,
    /// Digest and error of the steps that failed.
    pub(crate) failed: Vec<(String, String)>,
}

impl Vertexes {
    pub(crate) fn note(&mut self, update: &StatusUpdate) {
        for vertex in &update.vertexes {
            self.names.insert(vertex.digest.clone(), vertex.name.clone());
            if let Some(error) = &vertex.error {
                self.failed.push((vertex.digest.clone(), error.clone()));
            }
        }
    }
}

/// Milliseconds since 1970; a time before that is 0.
pub(crate) fn millis(time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(time.nanos / 1_000_000).unwrap_or(0))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl From<wire::StatusResponse> for StatusUpdate {
    fn from(message: wire::StatusResponse) -> Self {
        Self {
            vertexes: message.vertexes.into_iter().map(Vertex::from).collect(),
            statuses: message.statuses.into_iter().map(Progress::from).collect(),
            logs: message.logs.into_iter().map(LogChunk::from).collect(),
            warnings: message.warnings.into_iter().map(Warning::from).collect(),
        }
    }
}

impl From<wire::Vertex> for Vertex {
    fn from(vertex: wire::Vertex) -> Self {
        Self {
            digest: vertex.digest,
            name: vertex.name,
            inputs: vertex.inputs,
            cached: vertex.cached,
            started_ms: vertex.started.map(millis),
            completed_ms: vertex.completed.map(millis),
            error: Some(vertex.error).filter(|error| !error.is_empty()),
            group: vertex.progress_group.map(|group| ProgressGroup {
                id: group.id,
                name: group.name,
                weak: group.weak,
            }),
        }
    }
}

impl From<wire::VertexStatus> for Progress {
    fn from(status: wire::VertexStatus) -> Self {
        Self {
            vertex: status.vertex,
            id: status.id,
            name: status.name,
            current: status.current,
            total: status.total,
            timestamp_ms: status.timestamp.map(millis),
            started_ms: status.started.map(millis),
            completed_ms: status.completed.map(millis),
        }
    }
}

impl From<wire::VertexLog> for LogChunk {
    fn from(log: wire::VertexLog) -> Self {
        Self {
            vertex: log.vertex,
            timestamp_ms: log.timestamp.map(millis),
            stream: u32::try_from(log.stream).unwrap_or(0),
            data: log.msg,
        }
    }
}

impl From<wire::VertexWarning> for Warning {
    fn from(warning: wire::VertexWarning) -> Self {
        let line = |position: Option<crate::proto::pb::Position>| u32::try_from(position?.line).ok();
        let lines = warning.ranges.first().and_then(|range| Some((line(range.start)?, line(range.end)?)));
        Self {
            vertex: warning.vertex,
            level: warning.level,
            short: text(&warning.short),
            detail: warning.detail.iter().map(|line| text(line)).collect(),
            url: warning.url,
            file: warning.info.map(|info| info.filename).unwrap_or_default(),
            lines,
        }
    }
}
