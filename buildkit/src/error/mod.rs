//! Why a build failed: BuildKit's own words and details, sorted into classes that a caller can act on.
//!
//! The daemon answers nearly every failure with the same gRPC code. What it was is told by typed details (JSON in
//! `grpc-status-details-bin`): the exit code, the step, the lines of the Dockerfile; and, for registries, by the text.

mod classify;
mod details;
mod registry;
#[cfg(test)]
mod tests;

pub use details::SourceExcerpt;
pub use registry::{RegistryFailure, RegistryStatus};

pub(crate) use classify::is_duplicate;

use crate::{
    progress::Vertexes,
    proto::google::rpc,
    source::{SourceFailure, SourceFault},
};
use details::Details;
use prost::Message as _;
use tonic::{Code, Status};

/// A build that failed. Displays BuildKit's own message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SolveError {
    pub kind: FailureKind,
    /// As BuildKit says it, in one line or more.
    pub message: String,
    /// The step that failed, where it was one.
    pub vertex: Option<FailedVertex>,
    /// The places in the build's definition that the failure is about, innermost last.
    pub sources: Vec<SourceExcerpt>,
}

/// The step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedVertex {
    /// `sha256:…`.
    pub digest: String,
    /// As progress shows it; `None` when the progress did not mention the step.
    pub name: Option<String>,
}

/// The classes of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// The process of a step ended with this code. Killed for memory is told where the daemon can see it (cgroup v2).
    Exit { code: u32, out_of_memory: bool },
    /// The build's definition cannot be carried out: a malformed Dockerfile, a file to copy that is not there, no such stage.
    Definition,
    /// A step needs a secret that the session does not have.
    MissingSecret { id: String },
    /// An image that the request's [`crate::Solve::images_from`] does not allow, by its whole reference.
    ImageDenied { image: String },
    /// A registry, or another server that files are fetched from.
    Registry(RegistryFailure),
    /// A source of the session could not be read on this side.
    Source { dir: String },
    /// A build by this reference is running.
    DuplicateRef,
    /// The daemon's disk is full.
    DiskFull,
    /// The daemon has run out of memory or another resource.
    Exhausted,
    /// Stopped: by the caller, or by the daemon when its side of the session ended.
    Cancelled,
    /// The daemon went away or ended the session. What became of the build is told by [`crate::history`].
    ConnectionLost,
    /// Anything else.
    Daemon,
}

impl FailureKind {
    /// Whether the cause is in what was asked for, so that trying again does not help.
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::Exit { .. } | Self::Definition | Self::MissingSecret { .. } | Self::ImageDenied { .. } => true,
            Self::Registry(failure) => !failure.status.is_transient(),
            _ => false,
        }
    }
}

impl SolveError {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), vertex: None, sources: Vec::new() }
    }

    /// From the answer to a solve that was not cancelled here. `source` is what went wrong on this side meanwhile.
    pub(crate) fn from_status(status: &Status, vertexes: &Vertexes, source: Option<SourceFailure>) -> Self {
        if is_transport(status) {
            return Self::new(FailureKind::ConnectionLost, transport_message(status));
        }
        let details = rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
        let mut error = Self::from_parts(status.code(), status.message(), &details, vertexes);
        if let Some(source) = source {
            error.take_in(source);
        }
        error
    }

    /// Puts the failure of a source in the place of what the daemon makes of it.
    fn take_in(&mut self, source: SourceFailure) {
        let kind = match source.fault {
            _ if self.kind == FailureKind::ConnectionLost => return,
            SourceFault::Unreadable => FailureKind::Source { dir: source.dir },
            SourceFault::Pattern => FailureKind::Definition,
            SourceFault::NotOffered if self.kind == FailureKind::Cancelled => FailureKind::Daemon,
            // The daemon has said so itself.
            SourceFault::NotOffered => return,
        };
        (self.kind, self.message) = (kind, source.message);
    }

    /// From a code, a message and typed details, as an answer or a history record holds them.
    pub(crate) fn from_parts(code: Code, message: &str, details: &[prost_types::Any], vertexes: &Vertexes) -> Self {
        let details = Details::decode(details);
        let kind = classify::kind(code, message, &details);
        let vertex = details.vertex(vertexes).or_else(|| named_by(message, vertexes));
        Self { kind, message: message.to_owned(), vertex, sources: details.sources }
    }
}

/// The step whose own error is part of the message.
fn named_by(message: &str, vertexes: &Vertexes) -> Option<FailedVertex> {
    let (digest, _) = vertexes.failed.iter().find(|(_, error)| message.contains(error.as_str()))?;
    Some(FailedVertex { digest: digest.clone(), name: vertexes.names.get(digest).cloned() })
}

/// Whether a status was made on this side because the connection broke: what the daemon sends has no source. Of a
/// connection that was broken before the call there is only the text.
pub(crate) fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || status.message().starts_with("Service was not ready")
        || (status.code() == tonic::Code::Unavailable && status.details().is_empty())
}

/// A broken connection with its causes, which the status itself leaves to its source.
fn transport_message(status: &Status) -> String {
    let mut message = format!("the connection to buildkitd was lost: {}", status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}
