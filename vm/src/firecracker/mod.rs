//! Firecracker: started with an API socket, told over it what the guest is made of, and what is asked of it while it runs.
//!
//! ```text
//! program --api-sock ─► GET /version ─► PUT machine-config, boot-source, drives, network, vsock, entropy ─► PUT actions: InstanceStart
//! running ─► PATCH /vm: Paused, Resumed        PATCH /drives/cache: the disk has grown
//! ```
//!
//! The guest's console is the program's standard output. It has no serial port for the control channel: that goes over vsock, whose host
//! end is a unix socket of Firecracker's. What it has not: emulation (KVM only), a network of its own, discarded blocks given back to the
//! host, a power switch (the guest resets itself, which ends the program).
//!
//! Written after Firecracker's API document (`src/firecracker/swagger/firecracker.yaml` of 1.17) and tested against a stand-in that checks
//! each request against it. No Firecracker is packaged for Debian 12, so this has not run a guest yet.

mod api;
mod requests;

use std::ffi::OsString;
use std::path::Path;

pub use api::ApiError;
use api::{Api, Method};
use serde_json::json;
use tokio::net::UnixStream;

use crate::Process;
use crate::machine::{Files, Machine, VmmKind};

/// The release whose API document this was written after.
const OLDEST: (u32, u32) = (1, 17);
/// The most processors it gives a guest.
pub const MOST_VCPUS: u32 = 32;

/// The program's arguments. `id` is what it calls itself in its log.
pub(crate) fn arguments(files: &Files, id: &str) -> Vec<OsString> {
    let log = files.vmm_log(VmmKind::Firecracker);
    let words = ["--api-sock".into(), files.api().into(), "--id".into(), id.into()];
    let log = ["--log-path".into(), log.into(), "--level".into(), "Warning".into(), "--show-level".into()];
    words.into_iter().chain(log).collect()
}

/// Why Firecracker cannot run such a guest at all, whatever the host has.
pub(crate) fn unfit(machine: &Machine) -> Option<String> {
    requests::network(machine).err().or_else(|| unfit_size(machine.vcpus, machine.memory_mib, machine.huge_pages))
}

/// Why Firecracker takes no guest of this size, if it does not.
pub fn unfit_size(vcpus: u32, memory_mib: u64, huge_pages: bool) -> Option<String> {
    if vcpus > MOST_VCPUS {
        return Some(format!("a guest of Firecracker has at most {MOST_VCPUS} processors, not {vcpus}"));
    }
    let odd = huge_pages && !memory_mib.is_multiple_of(2);
    odd.then(|| format!("with huge pages, which have 2 MiB, a guest's memory cannot be {memory_mib} MiB"))
}

/// The process that listens on the API socket: Firecracker itself, whoever its parent is.
pub(crate) async fn listener(files: &Files) -> Option<Process> {
    let stream = UnixStream::connect(files.api()).await.ok()?;
    Process::find(stream.peer_cred().ok()?.pid()?)
}

/// Says what the guest is made of, and switches it on.
pub(crate) async fn configure(files: &Files, machine: &Machine) -> Result<(), ApiError> {
    let api = Api::new(files.api());
    recent_enough(&api.get("/version").await?)?;
    for (path, body) in requests::all(machine, files) {
        api.send(Method::PUT, &path, &body).await?;
    }
    api.send(Method::PUT, "/actions", &json!({ "action_type": "InstanceStart" })).await
}

fn recent_enough(version: &serde_json::Value) -> Result<(), ApiError> {
    let text = version.get("firecracker_version").and_then(serde_json::Value::as_str).unwrap_or_default();
    let mut numbers = text.trim_start_matches('v').split('.').map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Ok(()),
        _ => Err(ApiError::Old { found: text.to_owned(), oldest: format!("{}.{}", OLDEST.0, OLDEST.1) }),
    }
}

/// Holds all processors still.
pub(crate) async fn pause(files: &Files) -> Result<(), ApiError> {
    Api::new(files.api()).send(Method::PATCH, "/vm", &json!({ "state": "Paused" })).await
}

pub(crate) async fn go_on(files: &Files) -> Result<(), ApiError> {
    Api::new(files.api()).send(Method::PATCH, "/vm", &json!({ "state": "Resumed" })).await
}

/// Has the size of the cache disk's file looked at again, and the guest told of it.
pub(crate) async fn grow_cache_disk(files: &Files, disk: &Path) -> Result<(), ApiError> {
    let body = json!({ "drive_id": requests::CACHE, "path_on_host": disk });
    Api::new(files.api()).send(Method::PATCH, &format!("/drives/{}", requests::CACHE), &body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_boots_no_packed_kernel_is_too_old() {
        let said = |version: &str| recent_enough(&json!({ "firecracker_version": version })).map_err(|e| e.to_string());
        assert_eq!(said("1.17.0"), Ok(()));
        assert_eq!(said("v2.0.1-dev"), Ok(()));
        let old = said("1.9.1").unwrap_err();
        assert_eq!(old, "this is Firecracker \"1.9.1\"; 1.17 and later are known to take what is said to them here");
        assert!(said("").is_err() && recent_enough(&json!({})).is_err());
    }

    #[test]
    fn sizes_that_it_does_not_take() {
        assert_eq!(unfit_size(32, 65_536, true), None);
        assert!(unfit_size(33, 1024, false).unwrap().contains("at most 32 processors, not 33"));
        assert!(unfit_size(2, 1025, true).is_some() && unfit_size(2, 1025, false).is_none());
    }

    #[test]
    fn it_says_who_it_is_in_its_log() {
        let words = arguments(&Files::new(Path::new("/run/c1")), "c1");
        let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            line,
            "--api-sock /run/c1/api.sock --id c1 --log-path /run/c1/firecracker.log --level Warning --show-level"
        );
    }
}
