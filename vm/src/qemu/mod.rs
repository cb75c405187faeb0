//! QEMU: its command line, and what is asked of it while it runs.

mod accel;
mod command;
mod qmp;

use std::time::Duration;

use serde_json::{Value, json};

pub(crate) use accel::tsc_khz;
pub use accel::{KvmError, kvm_opens, kvm_runs};
pub(crate) use command::arguments;
pub use qmp::{Qmp, QmpError};

use crate::machine::Files;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// For requests that QEMU answers at once.
const ANSWER: Duration = Duration::from_secs(10);

/// Holds all processors still.
pub(crate) async fn pause(files: &Files) -> Result<(), QmpError> {
    ask(files, "stop", json!({})).await
}

pub(crate) async fn go_on(files: &Files) -> Result<(), QmpError> {
    ask(files, "cont", json!({})).await
}

/// Whether the processors are held because a disk could not be written: QEMU waits then for space on the host.
pub(crate) async fn waits_for_space(files: &Files) -> Result<bool, QmpError> {
    let mut qmp = Qmp::connect(&files.qmp(), ANSWER).await?;
    Ok(qmp.execute("query-status", json!({}), ANSWER).await?["status"] == "io-error")
}

/// Tells the guest that its cache disk has so many bytes now.
pub(crate) async fn grow_cache_disk(files: &Files, bytes: u64) -> Result<(), QmpError> {
    ask(files, "block_resize", json!({ "device": "cache", "size": bytes })).await
}

async fn ask(files: &Files, command: &str, arguments: Value) -> Result<(), QmpError> {
    let mut qmp = Qmp::connect(&files.qmp(), ANSWER).await?;
    qmp.execute(command, arguments, ANSWER).await.map(drop)
}
