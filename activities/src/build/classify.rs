//! What BuildKit or object storage said, as the error a build tells.

use buildkit::{FailureKind, RegistryFailure, RegistryStatus, SolveError};
use workflows::contract::{BuildError, FailureClass};

use super::causes;
use super::events::Recorder;
use crate::failure::with_source;
use crate::snapshots::SnapshotError;

/// The longest message that is kept, characters: a result has to stay small.
const MESSAGE: usize = 4 << 10;
/// The longest name of a step, characters: BuildKit's has the whole of a RUN instruction.
const STEP: usize = 1 << 10;

pub(super) fn snapshot_error(error: &SnapshotError) -> BuildError {
    let class = if error.is_transient() { FailureClass::Transient } else { FailureClass::Refused };
    BuildError::new(class, causes::named(with_source(error)))
}

/// The solve's error with the step, its last lines and its place in the Dockerfile. `disk_full` is the cell's disk, seen while it
/// solved: a step that is told so by the system ends with a code of its own choice.
pub(super) fn solve_error(error: &SolveError, recorder: &Recorder, disk_full: bool) -> BuildError {
    let mut told = BuildError::new(class(&error.kind), shortened(&error.message, MESSAGE));
    if let Some(vertex) = &error.vertex {
        let name = vertex.name.clone().or_else(|| recorder.name(&vertex.digest));
        told.step = name.map(|name| shortened(&name, STEP));
        told.log_tail = recorder.tail(&vertex.digest);
    }
    if let FailureKind::Exit { code, out_of_memory } = error.kind {
        told.exit_code = i32::try_from(code).ok();
        told.out_of_memory = out_of_memory;
    }
    told.is_answer = matches!(error.kind, FailureKind::Daemon | FailureKind::Exhausted);
    told.source = error.sources.last().map(|source| shortened(&source.text, MESSAGE));
    if error.kind == FailureKind::DiskFull || (disk_full && said_no_space(&told)) {
        (told.class, told.is_answer) = (FailureClass::CellFault, false);
        told.message = format!("the cell's disk is full: {}", told.message);
    }
    told
}

/// The words of the C library for ENOSPC, as a step's last lines or BuildKit's own message have them.
fn said_no_space(told: &BuildError) -> bool {
    let lines = told.log_tail.iter().chain(std::iter::once(&told.message));
    lines.into_iter().any(|line| line.to_ascii_lowercase().contains("no space left on device"))
}

/// What the author of a build can do about an error whose own words do not say it.
pub(super) fn advice(error: &SolveError) -> Option<String> {
    match &error.kind {
        FailureKind::Registry(failure) => registry_advice(failure, &error.message),
        FailureKind::Definition if error.message.contains("non-printable ASCII characters") => Some(
            "a path in the Dockerfile or a pattern of its ignore file has a control character, such as a tab or a line \
             feed, which BuildKit cannot ask for: remove it or write `?` in its place"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What the author of a build can do about a registry that refuses.
fn registry_advice(failure: &RegistryFailure, message: &str) -> Option<String> {
    let host = failure.host.as_deref().or_else(|| host_named(message)).unwrap_or("of this image");
    match failure.status {
        RegistryStatus::Unauthorized => Some(format!(
            "registry {host} wants other credentials: log in with `docker login {host}` and start the build again"
        )),
        RegistryStatus::Denied => Some(format!(
            "registry {host} refused access: log in with `docker login {host}`, as somebody who may do this there, and start \
             the build again"
        )),
        RegistryStatus::NotFound => Some(format!(
            "registry {host} has no such image or repository: check the name; some registries also say so to those who are not \
             logged in"
        )),
        _ => None,
    }
}

/// The registry of the image that a message is about, as docker reads its name.
fn host_named(message: &str) -> Option<&str> {
    let about = ["failed to resolve source metadata for ", "failed to push "];
    let (_, rest) = about.iter().find_map(|words| message.split_once(words))?;
    let (first, _) = rest.split(": ").next()?.split_once('/').unwrap_or_default();
    Some(if first.contains(['.', ':']) || first == "localhost" { first } else { "docker.io" })
}

fn class(kind: &FailureKind) -> FailureClass {
    match kind {
        kind if kind.is_user_error() => FailureClass::UserError,
        FailureKind::Registry(_) | FailureKind::Source { .. } => FailureClass::Transient,
        FailureKind::Cancelled => FailureClass::Cancelled,
        _ => FailureClass::CellFault,
    }
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_the_one_of_the_images_name() {
        for (message, host) in [
            (
                "failed to resolve source metadata for r.example:5000/a/b:v1: r.example:5000/a/b:v1: not found",
                "r.example:5000",
            ),
            ("x: failed to resolve source metadata for docker.io/library/no:v1: not found", "docker.io"),
            ("failed to push localhost/app: unexpected status", "localhost"),
            ("failed to push shop/app: unexpected status", "docker.io"),
        ] {
            assert_eq!(host_named(message), Some(host), "{message}");
        }
        assert_eq!(host_named("process did not complete"), None);
    }
}
