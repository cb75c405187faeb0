//! The network of a cell of processes: buildkitd in a network namespace of its own, each step in one behind it, and around both the
//! rules that a guest has ([`policy`]). The builder stays in the host's network, where the installation's services are.
//!
//! Cards end with the cell's last process. Rules live in the host's network namespace, so they outlive a killed cell;
//! [`Network::set_up`] begins by removing what a former life of the same cell left, and what dead cells left that may never start again.

mod bridge;
mod guest;
mod link;
mod machine;
mod owners;
mod policy;
mod rules;
mod subnet;
mod tap;

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use activities::dns::resolvers;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
pub use guest::{GuestNetwork, METRICS};
pub use link::configuration;
pub use machine::{ROLE as MACHINE_ROLE, run as run_machine};
pub use owners::Claim;
use policy::{Daemons, Wire};
pub use subnet::Subnet;

/// Taken while a cell chooses its subnet and sets its rules: cells start side by side.
const LOCK: &str = "/run/kiln-network.lock";
/// Whoever keeps the lock for so long stands still: it is held for some iptables calls, and cells that start side by side line up.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const DNS: u16 = 53;

/// What buildkitd and the steps of the cell run in; recorded in the cell's `network.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Network {
    /// A namespace of their own. Former releases had a bridge of the same name.
    #[serde(alias = "bridge")]
    Own {
        /// The host's end of the wire.
        #[serde(alias = "name")]
        device: String,
        subnet: Subnet,
        /// Where the cell's builder can answer for names: at the host's end, which steps reach for nothing else. None where there is no
        /// resolver to pass queries on to, and where another program on the host answers at all addresses already: steps then ask the
        /// host's resolvers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        forwarder: Option<SocketAddr>,
    },
    /// The host's own network: steps reach whatever the host reaches.
    Host { why: String },
}

/// What the cell's settings say of its network.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The resolvers that the cell's builder is told to ask, if it is.
    pub upstreams: Vec<SocketAddr>,
    /// Registries on the host's loopback, which buildkitd pulls from and pushes to.
    pub services: BTreeSet<SocketAddr>,
    /// The private networks that steps may reach, and those that buildkitd may.
    pub steps_reach: Vec<String>,
    pub daemon_reach: Vec<String>,
}

/// A network that was made.
pub struct Made {
    pub network: Network,
    /// buildkitd's; `None` where it has the host's network.
    pub namespace: Option<File>,
    /// The resolvers that buildkitd asks.
    pub dns: Vec<Ipv4Addr>,
    /// Holds the device for as long as it is kept.
    pub claim: Option<Claim>,
}

impl Network {
    /// What the cell's file says of its last start.
    pub fn recorded(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Removes what a former start left, makes the namespace and its rules and records them. Where that cannot be done buildkitd and the
    /// steps get the host's network, if the plan allows it, and the record says why.
    ///
    /// # Errors
    /// When there is no network for the steps, or the record cannot be written.
    pub fn set_up(plan: &Plan, asked: &Asked) -> anyhow::Result<Made> {
        let file = plan.network_file();
        let device = format!("kiln{}", plan.tag());
        let former = match Self::recorded(&file) {
            Some(Self::Own { subnet, .. }) => Some(subnet),
            _ => None,
        };
        let made = match make(&device, former, asked) {
            Ok(made) => made,
            Err(error) => {
                remove(&device, former);
                let why = format!("{error:#}");
                anyhow::ensure!(plan.shares_network, "steps can have no network of their own: {why}");
                crate::terminal::note(format_args!("steps run in the host's network: {why}"));
                Made { network: Self::Host { why }, namespace: None, dns: Vec::new(), claim: None }
            }
        };
        std::fs::write(&file, serde_json::to_vec(&made.network)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(made)
    }

    /// Where the cell's builder has to answer for names, if anywhere.
    pub fn forwarder(&self) -> Option<SocketAddr> {
        match self {
            Self::Own { forwarder, .. } => *forwarder,
            Self::Host { .. } => None,
        }
    }

    /// Removes cards and rules. Failures are for the next start to mend.
    pub fn tear_down(&self) {
        if let Self::Own { device, subnet, .. } = self {
            remove(device, Some(*subnet));
        }
    }
}

fn make(device: &str, former: Option<Subnet>, asked: &Asked) -> anyhow::Result<Made> {
    let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
    remove(device, former);
    sweep();
    let subnet = subnet::choose(device, former, &subnet::routes()?)?;
    let claim = owners::claim(Path::new(owners::BRIDGES), device, subnet)
        .with_context(|| format!("cannot claim the device {device} in {}", owners::BRIDGES))?;
    let namespace = link::make(device, subnet, &asked.services)?;
    let address = SocketAddr::new(subnet.gateway().into(), DNS);
    let forwarder = forwarder(address, &asked.upstreams, &resolvers::of_machine().unwrap_or_default())
        .inspect_err(|why| crate::terminal::note(format_args!("no forwarder of names: {why}")))
        .ok();
    let (hosts, local_resolver) = policy::resolvers(&resolvers::for_guests().unwrap_or_default(), subnet.gateway());
    let wire = Wire {
        device,
        subnet,
        services: &asked.services,
        dns: &hosts,
        local_resolver,
        steps_reach: &asked.steps_reach,
        daemons: Daemons::Alone { reach: asked.daemon_reach.clone(), forwarder: forwarder.is_some() },
    };
    let script = wire.script();
    rules::restore(&script).context("cannot set the firewall's rules")?;
    anyhow::ensure!(rules::stand(device, &script)?, "the firewall took the rules of {device} and does not list them");
    let dns = if forwarder.is_some() { vec![subnet.gateway()] } else { hosts };
    let network = Network::Own { device: device.to_owned(), subnet, forwarder };
    Ok(Made { network, namespace: Some(namespace), dns, claim: Some(claim) })
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
                "{path} has been held by another process for {patience:?}: a cell or a host agent that stands still (`lslocks` names it)",
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

/// The wire first: while the rules go, nothing is on it.
fn remove(device: &str, subnet: Option<Subnet>) {
    link::remove(device);
    bridge::remove(device);
    match rules::remove(device, subnet) {
        Ok(()) => owners::forget(Path::new(owners::BRIDGES), device),
        Err(error) => crate::terminal::note(format_args!("cannot remove the firewall's rules of {device}: {error:#}")),
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
    fn a_former_releases_record_of_a_bridge_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"mode":"bridge","name":"kiln0a","subnet":"10.64.3.0/24"}"#).unwrap();
        let recorded = Network::recorded(file.path()).unwrap();
        assert_eq!((recorded.forwarder(), matches!(recorded, Network::Own { .. })), (None, true));
    }
}
