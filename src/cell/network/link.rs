//! The network namespace of a cell's buildkitd, and the pair of cards that leads there. Inside it is as in a guest: one card, one way
//! out, and for each step a namespace of its own behind it (`kiln_init::steps`).
//!
//! ```text
//! host's namespace            buildkitd's namespace                    a step's
//! kiln0a .1 ══════════════ eth0 .2   step130 ════════════════════════ eth0 .130
//! rules of `policy`        127.0.0.1:P (a named service) ─► .1:P       no IPv6
//! ```
//!
//! For a process of one thread: it enters namespaces and comes back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use kiln_init::cards::{CARD, Cards};
use kiln_init::netlink::Netlink;
use kiln_init::settings::{Network, StepNetwork};
use kiln_init::steps;
use nix::sched::{CloneFlags, setns, unshare};

use super::bridge::Control;
use super::rules;
use super::subnet::Subnet;

const OWN: &str = "/proc/thread-self/ns/net";
const MTU: u32 = 1500;
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Makes both ends; the namespace lasts as long as it is held open, or a process is in it, and the cards go with it.
///
/// # Errors
/// When the kernel has no such devices, IPv6 cannot be turned off, or iptables is missing or refuses a rule.
pub fn make(device: &str, subnet: Subnet, services: &BTreeSet<SocketAddr>) -> anyhow::Result<File> {
    let namespace = new_namespace().context("cannot make a network namespace (root is needed)")?;
    let wired = Netlink::open().and_then(|netlink| netlink.add_pair(device, CARD, namespace.as_raw_fd(), MTU));
    wired.with_context(|| format!("cannot make the pair of cards {device}"))?;
    hosts_end(device, subnet).with_context(|| format!("cannot set up {device}"))?;
    inside(&namespace, || far_end(subnet, services))??;
    Ok(namespace)
}

/// Removes the host's end and with it the other one, if there is one.
pub fn remove(device: &str) {
    // Fails when it is not there.
    let _ = Netlink::open().and_then(|netlink| netlink.remove_link(device));
}

/// What buildkitd is told of the network of steps.
pub fn configuration(subnet: Subnet) -> String {
    steps::configuration(&step_network(subnet), subnet.guest())
}

/// Runs something in a network namespace, and comes back.
///
/// # Errors
/// When the namespace cannot be entered or left.
pub fn inside<T>(namespace: &File, run: impl FnOnce() -> T) -> anyhow::Result<T> {
    let own = File::open(OWN).with_context(|| format!("cannot open {OWN}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    let done = run();
    setns(own, CloneFlags::CLONE_NEWNET).context("cannot leave the network namespace")?;
    Ok(done)
}

fn new_namespace() -> io::Result<File> {
    let own = File::open(OWN)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let new = File::open(OWN);
    setns(own, CloneFlags::CLONE_NEWNET)?;
    new
}

fn hosts_end(device: &str, subnet: Subnet) -> io::Result<()> {
    steps::no_ipv6(device)?;
    let control = Control::new()?;
    control.set_address(libc::SIOCSIFADDR, device, subnet.gateway())?;
    control.set_address(libc::SIOCSIFNETMASK, device, MASK)?;
    control.set_up(device, true)?;
    super::guest::allow(device)
}

fn far_end(subnet: Subnet, services: &BTreeSet<SocketAddr>) -> anyhow::Result<()> {
    for card in ["all", "default"] {
        steps::no_ipv6(card).context("cannot turn IPv6 off for buildkitd and steps")?;
    }
    let network = Network {
        address: subnet.guest(),
        prefix: 24,
        gateway: subnet.gateway(),
        dns: Vec::new(),
        // The builder answers at the host's end: what steps ask for leads out like all they send.
        forwarder: false,
        mtu: None,
        steps: Some(step_network(subnet)),
    };
    let card = || -> io::Result<()> {
        let cards = Cards::new()?;
        cards.up("lo")?;
        cards.address(CARD, libc::SIOCSIFADDR, network.address)?;
        cards.address(CARD, libc::SIOCSIFNETMASK, MASK)?;
        cards.up(CARD)?;
        cards.default_route(network.gateway)?;
        // Answers of the services that are reached at the loopback's addresses.
        fs::write(format!("/proc/sys/net/ipv4/conf/{CARD}/route_localnet"), "1")?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        steps::set_up(&network)
    };
    card().context("cannot set up buildkitd's end")?;
    rules::restore(&loopback(subnet, services)).context("cannot lead buildkitd to the host's services")
}

/// A registry on the host's loopback keeps its name in here: what buildkitd sends there goes to the gateway, whose rules lead on.
fn loopback(subnet: Subnet, services: &BTreeSet<SocketAddr>) -> String {
    let mut text = "*nat\n".to_owned();
    for service in services.iter().filter(|service| service.is_ipv4()) {
        let (address, port) = (service.ip(), service.port());
        let to = subnet.gateway();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "-A OUTPUT -d {address}/32 -p tcp --dport {port} -j DNAT --to-destination {to}:{port}");
    }
    let _ = writeln!(text, "-A POSTROUTING -s 127.0.0.0/8 -o {CARD} -j SNAT --to-source {}\nCOMMIT", subnet.guest());
    text
}

fn step_network(subnet: Subnet) -> StepNetwork {
    let (first, prefix) = subnet.steps();
    StepNetwork { first, prefix }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::super::policy::{Daemons, Wire};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Connects from within and says what the service says; `None` when it is refused or nothing answers.
    fn reached(namespace: &File, at: SocketAddr) -> Option<String> {
        inside(namespace, || {
            let mut stream = TcpStream::connect_timeout(&at, PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).ok()?;
            Some(said)
        })
        .unwrap()
    }

    /// In a network namespace of the thread's own, which stands for the host's.
    #[test]
    fn a_daemon_reaches_the_registry_by_its_loopback_address_and_nothing_else_of_the_host() {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        Control::new().unwrap().set_up("lo", true).unwrap();
        let subnet: Subnet = "10.64.3.0/24".parse().unwrap();
        let serve = |text: &'static str| {
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(text.as_bytes());
                }
            });
            SocketAddr::from(([127, 0, 0, 1], port))
        };
        let (registry, console) = (serve("registry"), serve("console"));
        let services = [registry].into();
        let namespace = make("kiln0a", subnet, &services).unwrap();
        let daemons = Daemons::Alone { reach: vec![], forwarder: false };
        let wire = Wire {
            device: "kiln0a",
            subnet,
            services: &services,
            dns: &[],
            local_resolver: None,
            steps_reach: &[],
            daemons,
        };
        rules::restore(&wire.script()).unwrap();
        assert!(rules::stand("kiln0a", &wire.script()).unwrap());
        assert_eq!(reached(&namespace, registry).as_deref(), Some("registry"));
        assert_eq!(reached(&namespace, console), None, "its own loopback has no such service");
        for address in [subnet.gateway(), Ipv4Addr::LOCALHOST] {
            assert_eq!(reached(&namespace, (address, console.port()).into()), None, "{address}");
        }
        assert!(TcpStream::connect(console).is_ok(), "it is there, seen from the host");
        let ipv6 = |card: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{card}/disable_ipv6"));
        if let Ok(off) = ipv6("kiln0a") {
            assert_eq!(off.trim(), "1");
            assert_eq!(inside(&namespace, || ipv6(CARD)).unwrap().unwrap().trim(), "1");
        }
        remove("kiln0a");
        assert!(Control::new().unwrap().is_up("kiln0a").is_err(), "it is gone");
    }
}
