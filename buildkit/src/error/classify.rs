//! The order in which the signs of a failure are looked at: what BuildKit states in details first, its words after.

use super::{FailureKind, details::Details, registry};
use tonic::Code;

/// Whether the daemon refused the build because one by its reference runs.
pub(crate) fn is_duplicate(message: &str) -> bool {
    message.strip_prefix("job ID ").is_some_and(|rest| rest.ends_with(" exists"))
}

pub(super) fn kind(code: Code, message: &str, details: &Details) -> FailureKind {
    if is_duplicate(message) {
        return FailureKind::DuplicateRef;
    }
    // Also when a process was killed for it: its exit code is of no interest then.
    if code == Code::Cancelled || message.ends_with("context canceled") {
        return FailureKind::Cancelled;
    }
    if message.contains("no active session for") || message.contains("session healthcheck failed") {
        return FailureKind::ConnectionLost;
    }
    if let Some(code) = details.exit {
        return FailureKind::Exit { code, out_of_memory: message.ends_with("cannot allocate memory") };
    }
    if message.contains("no space left on device") {
        return FailureKind::DiskFull;
    }
    if code == Code::ResourceExhausted {
        return FailureKind::Exhausted;
    }
    if let Some(id) = missing_secret(message) {
        return FailureKind::MissingSecret { id };
    }
    if let Some(image) = denied_image(message) {
        return FailureKind::ImageDenied { image };
    }
    if let Some(failure) = registry::recognise(message) {
        return FailureKind::Registry(failure);
    }
    if cannot_be_asked_for(message) {
        return FailureKind::Definition;
    }
    let definition = details.frontend || !details.sources.is_empty() || is_about_the_definition(message);
    if definition && code != Code::Internal { FailureKind::Definition } else { FailureKind::Daemon }
}

/// `secret ID: not found`, at the end of the message.
fn missing_secret(message: &str) -> Option<String> {
    let rest = message.strip_suffix(": not found")?;
    let (_, id) = rest.rsplit_once("secret ")?;
    (!id.is_empty() && !id.contains(": ")).then(|| id.to_owned())
}

/// `source "docker-image://REFERENCE" denied by policy`, in the words of the daemon's policy engine.
fn denied_image(message: &str) -> Option<String> {
    let (before, _) = message.split_once("\" denied by policy")?;
    let (_, image) = before.rsplit_once("source \"docker-image://")?;
    Some(image.to_owned())
}

/// gRPC's refusal of a pattern or path that it cannot put into a header, such as one with a line feed: the daemon cannot
/// ask for the files, on whatever cell.
fn cannot_be_asked_for(message: &str) -> bool {
    message.contains("header key \"") && message.contains("contains value with non-printable ASCII characters")
}

/// Failures of the definition that come without details.
fn is_about_the_definition(message: &str) -> bool {
    [
        "failed to read dockerfile",
        "dockerfile parse error",
        "failed to parse",
        "failed to compute cache key",
        "is not allowed",
    ]
    .iter()
    .any(|words| message.contains(words))
}
