//! What the integration tests start and stop.

pub mod clocks;
pub mod conformance;
pub mod dev;
#[path = "../../activities/tests/support/fault_proxy.rs"]
pub mod fault_proxy;
pub mod gate;
pub mod host;
pub mod invariants;
pub mod life;
pub mod link;
pub mod pki;
pub mod plane;
pub mod registry;
pub mod roles;
pub mod running;
pub mod scan;
pub mod spine;
pub mod temporal;
pub mod temporal_tls;

use std::path::PathBuf;
use std::process::Command;

/// The path of a pinned tool, built at its first use.
pub fn tool(name: &str) -> PathBuf {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/tools/build");
    let output = Command::new(build).arg(name).output().expect("deploy/tools/build runs");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
