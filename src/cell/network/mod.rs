//! The network of a cell's steps: a bridge of the cell's own with address translation, from which neither the host nor another cell's
//! steps can be reached.
//!
//! Bridge and firewall rules live in the host's network namespace (buildkitd itself must reach registries on the host's loopback), so
//! they outlive a killed cell; [`Network::set_up`] begins by removing what a former life of the same cell left, and what dead cells left
//! that may never start again.

mod bridge;
mod guest;
mod owners;
mod rules;
mod subnet;
mod tap;

use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use activities::dns::resolvers;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
pub use guest::{GuestNetwork, METRICS};
pub use owners::Claim;
pub use subnet::Subnet;

/// Taken while a cell chooses its subnet and while buildkitd makes the firewall's common chains: cells start side by side.
pub const LOCK: &str = "/run/kiln-network.lock";
/// Whoever keeps the lock for so long stands still: it is held for some iptables calls, and cells that start side by side line up.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const DNS: u16 = 53;

/// What the steps of the cell run in; recorded in the cell's `network.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Network {
    Bridge {
        name: String,
        subnet: Subnet,
        /// Where the cell's builder can answer its steps' queries for names: at the bridge's own address, which they reach for nothing
        /// else. None where there is no resolver to pass them on to, and where somebody on the host answers at all addresses
        /// already: steps then ask whom the host asks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        forwarder: Option<SocketAddr>,
    },
    /// The host's own network: steps reach whatever the host reaches.
    Host { why: String },
}

impl Network {
    /// What the cell's file says of its last start.
    pub fn recorded(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Removes what a former start left, makes the bridge and its rules and records them; they are this process's for as long as it keeps
    /// the claim. Where that cannot be done the steps get the host's network, if the plan allows it, and the record says why. `upstreams`
    /// are the resolvers that the cell's builder is told to ask, if it is.
    ///
    /// # Errors
    /// When there is no network for the steps, or the record cannot be written.
    pub fn set_up(plan: &Plan, upstreams: &[SocketAddr]) -> anyhow::Result<(Self, Option<Claim>)> {
        let file = plan.network_file();
        let name = format!("kiln{}", plan.tag());
        let former = match Self::recorded(&file) {
            Some(Self::Bridge { subnet, .. }) => Some(subnet),
            _ => None,
        };
        let (network, claim) = match make(plan, &name, former, upstreams) {
            Ok((network, claim)) => (network, Some(claim)),
            Err(error) => {
                remove(&name, former);
                let why = format!("{error:#}");
                anyhow::ensure!(plan.shares_network, "steps can have no network of their own: {why}");
                eprintln!("steps run in the host's network: {why}");
                (Self::Host { why }, None)
            }
        };
        std::fs::write(&file, serde_json::to_vec(&network)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok((network, claim))
    }

    /// Where the cell's builder has to answer for names, if anywhere.
    pub fn forwarder(&self) -> Option<SocketAddr> {
        match self {
            Self::Bridge { forwarder, .. } => *forwarder,
            Self::Host { .. } => None,
        }
    }

    /// Removes bridge and rules. Failures are for the next start to mend.
    pub fn tear_down(&self) {
        if let Self::Bridge { name, subnet, .. } = self {
            remove(name, Some(*subnet));
        }
    }
}

fn make(plan: &Plan, name: &str, former: Option<Subnet>, upstreams: &[SocketAddr]) -> anyhow::Result<(Network, Claim)> {
    for plugin in ["bridge", "host-local", "loopback", "firewall"] {
        let file = plan.tools.cni.join(plugin);
        anyhow::ensure!(file.exists(), "{} is missing (package containernetworking-plugins)", file.display());
    }
    let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
    remove(name, former);
    sweep();
    let subnet = subnet::choose(name, former, &subnet::routes()?)?;
    let claim = owners::claim(Path::new(owners::BRIDGES), name, subnet)
        .with_context(|| format!("cannot claim the bridge {name} in {}", owners::BRIDGES))?;
    bridge::add(name, subnet).with_context(|| format!("cannot make the bridge {name}"))?;
    let address = SocketAddr::new(subnet.gateway().into(), DNS);
    let forwarder = forwarder(address, upstreams, &resolvers::of_machine().unwrap_or_default())
        .inspect_err(|why| eprintln!("no forwarder of names: {why}"))
        .ok();
    rules::add(name, forwarder.map(|at| at.ip())).context("cannot set the firewall's rules")?;
    Ok((Network::Bridge { name: name.to_owned(), subnet, forwarder }, claim))
}

/// Blocks its thread until the lock is taken; until the file is dropped.
fn locked(path: &Path, patience: Duration) -> anyhow::Result<File> {
    let lock = File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = Instant::now() + patience;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "{path} has been held by another process for {patience:?}: a buildkitd or a host agent that stands still (`lslocks` names it)",
                path = path.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

/// This address, where a forwarder can do its work there; else why not. It asks the host's resolvers unless it is told of others.
fn forwarder(address: SocketAddr, upstreams: &[SocketAddr], of_host: &[SocketAddr]) -> Result<SocketAddr, String> {
    if upstreams.is_empty() && of_host.is_empty() {
        return Err("dns.upstreams names no resolver, and the host has none".to_owned());
    }
    // Both sockets are closed again at once.
    let free = UdpSocket::bind(address).and_then(|_udp| TcpListener::bind(address));
    free.map(|_| address).map_err(|error| format!("at {address}: {error}"))
}

/// Removes what belongs to nobody. Under [`LOCK`].
fn sweep() {
    for (orphan, subnet) in owners::orphans(Path::new(owners::BRIDGES)) {
        remove(&orphan, subnet);
    }
    guest::sweep(Path::new(owners::TAPS));
}

/// The bridge first: while the rules go, nothing is on the wire.
fn remove(name: &str, subnet: Option<Subnet>) {
    bridge::remove(name);
    match rules::remove(name, subnet) {
        Ok(()) => owners::forget(Path::new(owners::BRIDGES), name),
        Err(error) => eprintln!("cannot remove the firewall's rules of {name}: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarder_needs_a_resolver_of_the_settings_or_of_the_host_and_a_free_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let resolver = ["10.0.0.2:53".parse().unwrap()];
        assert_eq!(forwarder(any, &resolver, &[]), Ok(any));
        assert_eq!(forwarder(any, &[], &resolver), Ok(any));
        let none = forwarder(any, &[], &[]).unwrap_err();
        assert_eq!(none, "dns.upstreams names no resolver, and the host has none");
        let taken = UdpSocket::bind(any).unwrap();
        let at = taken.local_addr().unwrap();
        assert!(forwarder(at, &resolver, &[]).unwrap_err().starts_with(&format!("at {at}: ")));
    }

    #[test]
    fn whoever_keeps_the_lock_is_told_of_and_not_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = locked(file.path(), Duration::ZERO).unwrap();
        let refused = locked(file.path(), Duration::from_millis(20)).unwrap_err().to_string();
        assert!(refused.contains("has been held by another process for 20ms"), "{refused}");
        drop(held);
        locked(file.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_record_of_before_there_were_forwarders_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"mode":"bridge","name":"kiln0a","subnet":"10.64.3.0/24"}"#).unwrap();
        let recorded = Network::recorded(file.path()).unwrap();
        assert_eq!((recorded.forwarder(), matches!(recorded, Network::Bridge { .. })), (None, true));
    }
}
