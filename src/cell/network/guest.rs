//! The network of a guest: a tap of its own with address translation. The guest reaches the world, of its host only the services named
//! here, and no other cell.
//!
//! ```text
//! guest .2 ── tap .1 ─┬─► 127.0.0.1:P of the host, for each named service        (the guest asks .1:P)
//!                     ├─► the world, translated; the host's resolvers
//!                     └─✗ anything else of the host, other cells, metadata services
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;

use super::Subnet;
use super::{LOCK, rules, subnet, tap};

const RESOLVERS: &str = "/etc/resolv.conf";
const DNS: u16 = 53;

/// A guest's network, as its start needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    pub tap: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
}

impl GuestNetwork {
    /// Removes what a former guest of the cell left, and makes tap and rules. `services` are on the host's loopback.
    ///
    /// # Errors
    /// When there are no taps on this machine, iptables is missing or refuses a rule, or no subnet is free.
    pub fn set_up(cell: &Path, services: &BTreeSet<SocketAddr>) -> anyhow::Result<Self> {
        let tap = name(cell);
        let lock = File::create(LOCK).with_context(|| format!("cannot open {LOCK}"))?;
        lock.lock().with_context(|| format!("cannot lock {LOCK}"))?;
        remove(&tap);
        let subnet = subnet::choose(&tap, None, &subnet::routes()?)?;
        tap::add(&tap, subnet).with_context(|| format!("cannot make the tap {tap}"))?;
        let (dns, resolver) = resolvers(&fs::read_to_string(RESOLVERS).unwrap_or_default(), subnet.gateway());
        allow(&tap).with_context(|| format!("cannot set up the tap {tap}"))?;
        rules::restore(&script(&tap, subnet, services, resolver)).context("cannot set the firewall's rules")?;
        Ok(Self { tap, address: subnet.guest(), gateway: subnet.gateway(), dns })
    }

    /// Removes the cell's tap and rules. Failures are for the next start to mend.
    pub fn tear_down(cell: &Path) {
        if let Ok(lock) = File::create(LOCK) {
            let _ = lock.lock();
            remove(&name(cell));
        }
    }
}

fn remove(tap: &str) {
    if let Err(error) = rules::remove(tap, None) {
        tracing::warn!(error = format!("{error:#}"), tap, "the firewall's rules stay");
    }
    tap::remove(tap);
}

/// Unlike that of any other cell on the host: it follows from the directory's path. Rules for all cells say `kiln+`.
fn name(cell: &Path) -> String {
    format!("kiln{}", &blake3::hash(cell.as_os_str().as_encoded_bytes()).to_hex()[..8])
}

/// Packets may be passed on, and come in for addresses of the loopback: the rules say which.
fn allow(tap: &str) -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write(format!("/proc/sys/net/ipv4/conf/{tap}/route_localnet"), "1")
}

/// The host's resolvers; one on the loopback is reached at the gateway's address, and is the second answer then.
fn resolvers(text: &str, gateway: Ipv4Addr) -> (Vec<Ipv4Addr>, Option<Ipv4Addr>) {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok());
    let named: Vec<_> = named.collect();
    match named.iter().find(|address| address.is_loopback()) {
        Some(local) => (vec![gateway], Some(*local)),
        None if named.is_empty() => (vec![gateway], None),
        None => (named, None),
    }
}

/// Each rule names the tap, so that [`rules::remove`] finds it. Rules are inserted at the front: the last one of a chain stands first.
fn script(tap: &str, subnet: Subnet, services: &BTreeSet<SocketAddr>, resolver: Option<Ipv4Addr>) -> String {
    let gateway = subnet.gateway();
    let tcp = services.iter().filter_map(|service| match service.ip() {
        IpAddr::V4(address) => Some(("tcp", address, service.port())),
        IpAddr::V6(_) => None,
    });
    let dns = resolver.into_iter().flat_map(|address| [("udp", address, DNS), ("tcp", address, DNS)]);
    let open: Vec<_> = tcp.chain(dns).collect();
    let mut text = format!("*nat\n-I POSTROUTING -s {subnet} ! -o {tap} -j MASQUERADE\n");
    for (protocol, to, port) in &open {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "-I PREROUTING -i {tap} -d {gateway} -p {protocol} --dport {port} -j DNAT --to-destination {to}:{port}"
        );
    }
    let _ = writeln!(text, "COMMIT\n*filter\n-I INPUT -i {tap} -j REJECT");
    for (protocol, to, port) in &open {
        let _ = writeln!(text, "-I INPUT -i {tap} -d {to} -p {protocol} --dport {port} -j ACCEPT");
    }
    let _ = writeln!(
        text,
        "-I FORWARD -i {tap} -j ACCEPT\n\
         -I FORWARD -o {tap} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n*mangle\n\
         -I FORWARD -i {tap} -o kiln+ -j DROP\n\
         -I FORWARD -i {tap} -d 169.254.0.0/16 -j DROP\n\
         COMMIT"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_services_of_the_host_are_open() {
        let services = ["127.0.0.1:5000".parse().unwrap()].into();
        let text = script("kiln0a", "10.64.3.0/24".parse().unwrap(), &services, Some(Ipv4Addr::new(127, 0, 0, 53)));
        insta::assert_snapshot!(text, @r"
        *nat
        -I POSTROUTING -s 10.64.3.0/24 ! -o kiln0a -j MASQUERADE
        -I PREROUTING -i kiln0a -d 10.64.3.1 -p tcp --dport 5000 -j DNAT --to-destination 127.0.0.1:5000
        -I PREROUTING -i kiln0a -d 10.64.3.1 -p udp --dport 53 -j DNAT --to-destination 127.0.0.53:53
        -I PREROUTING -i kiln0a -d 10.64.3.1 -p tcp --dport 53 -j DNAT --to-destination 127.0.0.53:53
        COMMIT
        *filter
        -I INPUT -i kiln0a -j REJECT
        -I INPUT -i kiln0a -d 127.0.0.1 -p tcp --dport 5000 -j ACCEPT
        -I INPUT -i kiln0a -d 127.0.0.53 -p udp --dport 53 -j ACCEPT
        -I INPUT -i kiln0a -d 127.0.0.53 -p tcp --dport 53 -j ACCEPT
        -I FORWARD -i kiln0a -j ACCEPT
        -I FORWARD -o kiln0a -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        COMMIT
        *mangle
        -I FORWARD -i kiln0a -o kiln+ -j DROP
        -I FORWARD -i kiln0a -d 169.254.0.0/16 -j DROP
        COMMIT
        ");
        for line in text.lines().filter(|line| line.starts_with("-I")) {
            assert!(line.contains("-i kiln0a") || line.contains("-o kiln0a"), "{line} would stay for ever");
        }
    }

    #[test]
    fn a_resolver_on_the_loopback_is_reached_at_the_gateway() {
        let gateway = Ipv4Addr::new(10, 64, 3, 1);
        let local = Ipv4Addr::new(127, 0, 0, 53);
        assert_eq!(resolvers("nameserver 127.0.0.53\n", gateway), (vec![gateway], Some(local)));
        let text = "# x\nsearch y\nnameserver 10.0.0.2\nnameserver ::1\nnameserver 10.0.0.3\n";
        assert_eq!(resolvers(text, gateway), (vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)], None));
    }
}
