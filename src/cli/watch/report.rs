//! What `kiln up` prints when a build has ended: for people, or one JSON object for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use workflows::contract::{BuildError, BuildResult, BuildStatus, Timings};

use crate::cli::client::BuildStarted;
use crate::cli::progress::duration;

/// Milliseconds that this command itself took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnTimings {
    /// Packing and uploading the snapshot.
    pub upload: u64,
    /// From the start of the command to the result.
    pub total: u64,
}

/// The exit code of a result: 0, or that of its class.
pub fn exit_code(result: &BuildResult) -> u8 {
    match (&result.status, &result.error) {
        (BuildStatus::Succeeded, _) => 0,
        (_, Some(error)) => error.class.exit_code(),
        (BuildStatus::Cancelled, None) => workflows::contract::FailureClass::Cancelled.exit_code(),
        _ => workflows::contract::FailureClass::Transient.exit_code(),
    }
}

/// For people, when it succeeded: the image first, alone on its line.
pub fn success(result: &BuildResult, own: OwnTimings) -> String {
    let mut text = String::new();
    let image = result.image.as_deref().unwrap_or("(no image)");
    let _ = writeln!(text, "{image}");
    for tag in &result.tags {
        let note = if tag.outcome == "superseded" { "  (kept: a build that started later has it)" } else { "" };
        let _ = writeln!(text, "  tag    {}{note}", tag.tag);
    }
    if result.from_outcome {
        let _ = writeln!(text, "  steps  none: this key was built before, and this is its result");
    } else {
        let _ = writeln!(text, "  steps  {} of {} cached", result.cache.cached_steps, result.cache.total_steps);
    }
    if let Some(cell) = cell(result) {
        let _ = writeln!(text, "  cell   {cell}{}", attempts_note(result));
    }
    let _ = writeln!(text, "  time   {}", times(&result.timings, own));
    text
}

/// For people, when it did not succeed: the step, its last lines, its code, the place in the Dockerfile, the sentence.
pub fn failure(error: &BuildError, build_id: &str) -> String {
    let mut text = String::new();
    if let Some(step) = &error.step {
        let _ = writeln!(text, "------\n > {step}:");
        for line in &error.log_tail {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let _ = writeln!(text, "------");
    }
    if let Some(source) = &error.source {
        let _ = writeln!(text, "{}", source.trim_end());
    }
    let _ = writeln!(text, "kiln: {}", sentence(error));
    let _ = writeln!(text, "  kiln builds show {build_id}");
    text
}

/// The message, with the code and the cause where it does not say them itself.
fn sentence(error: &BuildError) -> String {
    let mut text = error.message.trim_end().to_owned();
    if let Some(code) = error.exit_code
        && !text.contains(&format!("exit code: {code}"))
    {
        let _ = write!(text, " (exit code: {code})");
    }
    if error.out_of_memory && !text.contains("memory") {
        text.push_str(" (killed: out of memory)");
    }
    text
}

/// The object that `--output json` ends with; every key is there, `null` when it has no value.
pub fn json(started: Option<&BuildStarted>, result: &BuildResult, own: OwnTimings) -> Value {
    let Timings { queue, fetch, solve, publish, .. } = result.timings;
    json!({
        "build_id": started.map(|started| &started.build_id),
        "workflow_id": started.map(|started| &started.workflow_id),
        "status": result.status,
        "digest": result.digest,
        "image": result.image,
        "platforms": result.platforms,
        "cell": cell(result),
        "attempts": result.attempts.len(),
        "cached_steps": result.cache.cached_steps,
        "total_steps": result.cache.total_steps,
        "timings_ms": {
            "upload": own.upload, "queue": queue, "fetch": fetch, "solve": solve, "publish": publish, "total": own.total
        },
        "error": result.error,
    })
}

/// The cell that built it, or that was tried last.
fn cell(result: &BuildResult) -> Option<&str> {
    let built = result.platforms.last().map(|platform| platform.cell.as_str());
    built.or_else(|| result.attempts.last().map(|attempt| attempt.cell.as_str()))
}

fn attempts_note(result: &BuildResult) -> String {
    match result.attempts.len() {
        0 | 1 => String::new(),
        many => format!(" (attempt {many})"),
    }
}

fn times(timings: &Timings, own: OwnTimings) -> String {
    let parts = [
        ("upload", own.upload),
        ("queue", timings.queue),
        ("source", timings.fetch),
        ("build", timings.solve),
        ("publish", timings.publish),
    ];
    let parts: Vec<String> = parts.iter().map(|(name, ms)| format!("{name} {}", duration(*ms))).collect();
    format!("{} ({})", duration(own.total), parts.join(", "))
}
