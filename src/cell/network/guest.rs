//! The network of a guest: a tap of its own with address translation. Its daemons reach the world, of the host only the services named
//! here, and no other cell; its steps, by their own addresses, only the public part of the world. They ask their guest for names.
//!
//! ```text
//! daemons .2 ──────┐         ┌─► 127.0.0.1:P of the host, for each named service        (the guest asks .1:P)
//!                  ├─ tap .1 ┼─► the world, translated; the host's resolvers
//! steps .128/25 ───┘         └─✗ anything else of the host, other cells, metadata services
//!       └─✗ the named services, the resolvers, private networks but those of `guest.steps_reach`
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use activities::dns::resolvers::for_guests;
use anyhow::Context as _;

use super::owners::{self, Claim, TAPS};
use super::rules::METADATA;
use super::{DNS, LOCK, LOCK_PATIENCE, Subnet, locked, rules, subnet, tap};

/// In the cell's directory: the subnet of its last start, and the rules around it. Settings and resolvers may be others meanwhile.
const SUBNET: &str = "subnet";
const RULES: &str = "rules";
/// Where the guest's builder serves its metrics: the host asks, and only answers are let in.
pub const METRICS: u16 = 9464;
/// Networks that are not everybody's (<https://www.iana.org/assignments/iana-ipv4-special-registry>): whatever the installation keeps for
/// itself is there.
const PRIVATE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    // A public address by which a cloud's host is meant.
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A guest's network, as its start needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    pub tap: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// The addresses of its steps, by the first one and their prefix.
    pub steps: (Ipv4Addr, u8),
}

impl GuestNetwork {
    /// Removes what a former guest of the cell left, and makes tap and rules; they are this process's for as long as it keeps the claim,
    /// and then the guest's. `services` are on the host's loopback, `reach` the private networks that steps may reach.
    ///
    /// # Errors
    /// When there are no taps on this machine, iptables is missing or refuses a rule, or no subnet is free.
    pub fn set_up(cell: &Path, services: &BTreeSet<SocketAddr>, reach: &[String]) -> anyhow::Result<(Self, Claim)> {
        let (tap, taps) = (name(cell), Path::new(TAPS));
        let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
        remove(taps, &tap);
        super::sweep();
        let subnet = subnet::choose(&tap, None, &subnet::routes()?)?;
        let claim =
            owners::claim(taps, &tap, subnet).with_context(|| format!("cannot claim the tap {tap} in {TAPS}"))?;
        tap::add(&tap, subnet).with_context(|| format!("cannot make the tap {tap}"))?;
        allow(&tap).with_context(|| format!("cannot set up the tap {tap}"))?;
        let (script, dns) = script(&tap, subnet, services, reach);
        rules::restore(&script).context("cannot set the firewall's rules")?;
        for (record, text) in [(SUBNET, &subnet.to_string()), (RULES, &script)] {
            let file = cell.join(record);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let (address, gateway, steps) = (subnet.guest(), subnet.gateway(), subnet.steps());
        Ok((Self { tap, address, gateway, dns, steps }, claim))
    }

    /// Puts up again what has come down since [`Self::set_up`], while the guest runs; what that was. Asked again, nothing is.
    ///
    /// # Errors
    /// When the tap is gone, or it is not known what it had: only another start of the guest brings another one.
    pub fn mend(cell: &Path) -> anyhow::Result<Vec<String>> {
        let tap = name(cell);
        let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
        let (subnet, script): (Subnet, _) = (recorded(cell, SUBNET)?.trim().parse()?, recorded(cell, RULES)?);
        let stand = rules::stand(&tap, &script)?;
        if !stand {
            // The guest is not on the wire while its rules are not.
            tap::take_down(&tap).with_context(|| format!("cannot take down the tap {tap}"))?;
            rules::remove(&tap, None)
                .and_then(|()| rules::restore(&script))
                .context("cannot set the firewall's rules")?;
        }
        let mut mended = tap::mend(&tap, subnet).with_context(|| format!("cannot put up the tap {tap}"))?;
        allow(&tap).with_context(|| format!("cannot set up the tap {tap}"))?;
        if !stand {
            mended = vec![format!("rules of the tap {tap} were missing")];
        }
        Ok(mended)
    }

    /// As [`Self::mend`], where rules are missing and the tap is there. Unlike a tap that is down nobody inside would notice: whoever flushes
    /// the firewall opens the host to steps.
    ///
    /// # Errors
    /// As there.
    pub fn guard(cell: &Path) -> anyhow::Result<Vec<String>> {
        let tap = name(cell);
        if !tap::is_there(&tap) || rules::stand(&tap, &recorded(cell, RULES)?)? {
            return Ok(Vec::new());
        }
        Self::mend(cell)
    }

    /// The guest's own address at its last start; `None` when it never was.
    pub fn address_of(cell: &Path) -> Option<Ipv4Addr> {
        recorded(cell, SUBNET).ok()?.trim().parse().ok().map(Subnet::guest)
    }

    /// Removes the cell's tap and rules. Failures are for the next start to mend.
    pub fn tear_down(cell: &Path) {
        let tap = name(cell);
        match locked(Path::new(LOCK), LOCK_PATIENCE) {
            Ok(_lock) => remove(Path::new(TAPS), &tap),
            Err(error) => tracing::warn!(error = format!("{error:#}"), tap, "the guest's tap and rules stay"),
        }
    }
}

fn recorded(cell: &Path, record: &str) -> anyhow::Result<String> {
    let file = cell.join(record);
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

/// All rules of a guest, and the resolvers that it is told of.
fn script(tap: &str, subnet: Subnet, services: &BTreeSet<SocketAddr>, reach: &[String]) -> (String, Vec<Ipv4Addr>) {
    let (dns, resolver) = resolvers(&for_guests().unwrap_or_default(), subnet.gateway());
    let mut script = to_the_host(tap, subnet, services, resolver);
    script.push_str(&to_the_world(tap, subnet, reach, &dns));
    (script, dns)
}

/// Removes the taps that no guest has and no agent is about to give to one.
pub(super) fn sweep(taps: &Path) {
    for (orphan, _) in owners::orphans(taps) {
        if tap::is_free(&orphan) {
            remove(taps, &orphan);
        }
    }
}

fn remove(taps: &Path, tap: &str) {
    tap::remove(tap);
    match rules::remove(tap, None) {
        Ok(()) => owners::forget(taps, tap),
        Err(error) => tracing::warn!(error = format!("{error:#}"), tap, "the firewall's rules stay"),
    }
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
fn resolvers(all: &[SocketAddr], gateway: Ipv4Addr) -> (Vec<Ipv4Addr>, Option<Ipv4Addr>) {
    let v4 = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(address) => Some(address),
        // A guest has no IPv6.
        IpAddr::V6(_) => None,
    };
    let named: Vec<_> = all.iter().filter_map(v4).collect();
    match named.iter().find(|address| address.is_loopback()) {
        Some(local) => (vec![gateway], Some(*local)),
        None if named.is_empty() => (vec![gateway], None),
        None => (named, None),
    }
}

/// Each rule names the tap, so that [`rules::remove`] finds it. Rules are inserted at the front: the last one of a chain stands first.
///
/// Services and the resolver are for the guest's own address only.
fn to_the_host(tap: &str, subnet: Subnet, services: &BTreeSet<SocketAddr>, resolver: Option<Ipv4Addr>) -> String {
    let (gateway, guest) = (subnet.gateway(), subnet.guest());
    let tcp = services.iter().filter_map(|service| match service.ip() {
        IpAddr::V4(address) => Some(("tcp", address, service.port())),
        IpAddr::V6(_) => None,
    });
    let dns = resolver.into_iter().flat_map(|to| ["udp", "tcp"].map(|protocol| (protocol, to, DNS)));
    let open: Vec<_> = tcp.chain(dns).collect();
    let mut text = format!("*nat\n-I POSTROUTING -s {subnet} ! -o {tap} -j MASQUERADE\n");
    for (protocol, to, port) in &open {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "-I PREROUTING -i {tap} -s {guest}/32 -d {gateway} -p {protocol} --dport {port} -j DNAT --to-destination {to}:{port}"
        );
    }
    let _ = writeln!(
        text,
        "COMMIT\n*filter\n-I INPUT -i {tap} -j REJECT\n\
         -I INPUT -i {tap} -s {guest}/32 -p tcp --sport {METRICS} -m conntrack --ctstate ESTABLISHED -j ACCEPT"
    );
    for (protocol, to, port) in &open {
        let _ = writeln!(text, "-I INPUT -i {tap} -s {guest}/32 -d {to} -p {protocol} --dport {port} -j ACCEPT");
    }
    text.push_str("COMMIT\n");
    text
}

/// As [`to_the_host`]: what is not for the host itself. The rules in `mangle` are asked before those of any other cell. A resolver may be at
/// an address where others find metadata (`169.254.169.254` is both): the guest asks it for names and nothing else.
fn to_the_world(tap: &str, subnet: Subnet, reach: &[String], dns: &[Ipv4Addr]) -> String {
    let (guest, (first, prefix)) = (subnet.guest(), subnet.steps());
    let steps = format!("-I FORWARD -i {tap} -s {first}/{prefix}");
    let mut text = format!("*filter\n-I FORWARD -i {tap} -j ACCEPT\n");
    for network in PRIVATE {
        let _ = writeln!(text, "{steps} -d {network} -j REJECT");
    }
    for network in reach {
        let _ = writeln!(text, "{steps} -d {network} -j ACCEPT");
    }
    let _ = writeln!(
        text,
        "-I FORWARD -o {tap} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n*mangle\n\
         -I FORWARD -i {tap} -o kiln+ -j DROP"
    );
    for network in METADATA {
        let _ = writeln!(text, "-I FORWARD -i {tap} -d {network} -j DROP");
    }
    for resolver in dns.iter().filter(|resolver| **resolver != subnet.gateway()) {
        for protocol in ["udp", "tcp"] {
            let _ =
                writeln!(text, "-I FORWARD -i {tap} -s {guest}/32 -d {resolver} -p {protocol} --dport {DNS} -j ACCEPT");
        }
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET: &str = "10.64.3.0/24";

    /// Else it would stay for ever.
    fn each_names_the_tap(text: &str) {
        for line in text.lines().filter(|line| line.starts_with("-I")) {
            assert!(line.contains("-i kiln0a") || line.contains("-o kiln0a"), "{line}");
        }
    }

    #[test]
    fn only_named_services_of_the_host_are_open_and_not_to_steps() {
        let services = ["127.0.0.1:5000".parse().unwrap()].into();
        let text = to_the_host("kiln0a", SUBNET.parse().unwrap(), &services, Some(Ipv4Addr::LOCALHOST));
        insta::assert_snapshot!(text);
        each_names_the_tap(&text);
    }

    #[test]
    fn steps_reach_the_public_world_and_what_is_named() {
        let text = to_the_world(
            "kiln0a",
            SUBNET.parse().unwrap(),
            &["10.7.0.0/16".into()],
            &[Ipv4Addr::new(169, 254, 169, 253)],
        );
        insta::assert_snapshot!(text);
        each_names_the_tap(&text);
    }

    #[test]
    fn a_resolver_on_the_loopback_is_reached_at_the_gateway() {
        let gateway = Ipv4Addr::new(10, 64, 3, 1);
        let local = Ipv4Addr::LOCALHOST;
        let of = |all: &[&str]| {
            let all: Vec<_> = all.iter().map(|address| address.parse().unwrap()).collect();
            resolvers(&all, gateway)
        };
        assert_eq!(of(&["127.0.0.1:53"]), (vec![gateway], Some(local)));
        let both = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];
        assert_eq!(of(&["10.0.0.2:53", "[::1]:53", "10.0.0.3:53"]), (both, None));
    }

    /// In a network namespace of the thread's own: nothing of the machine's network is touched.
    #[test]
    fn a_tap_that_nobody_has_is_swept_with_its_rules() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        let dir = tempfile::tempdir().unwrap();
        let (taps, subnet): (_, Subnet) = (dir.path(), SUBNET.parse().unwrap());
        let claim = owners::claim(taps, "kiln0a", subnet).unwrap();
        tap::add("kiln0a", subnet).unwrap();
        rules::restore(&to_the_world("kiln0a", subnet, &[], &[])).unwrap();
        let is_there = || fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("kiln0a");
        sweep(taps);
        assert!(is_there(), "its agent is about to give it to a guest");
        let guest = tap::open("kiln0a").unwrap();
        drop(claim);
        sweep(taps);
        assert!(is_there(), "its guest has it, whatever became of the agent");
        drop(guest);
        sweep(taps);
        assert!(!is_there() && owners::orphans(taps).is_empty());
        assert!(!rules::stand("kiln0a", &to_the_world("kiln0a", subnet, &[], &[])).unwrap());
        assert!(rules::stand("kiln0a", "").unwrap(), "no rule is left");
    }
}
