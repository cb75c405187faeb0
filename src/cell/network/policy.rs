//! What goes over the wire of a cell, whatever the cell is: a guest behind a tap, or buildkitd in a network namespace of its own behind
//! a pair of cards. One script of iptables rules on the host's end of the wire.
//!
//! ```text
//! daemons .2 ──────┐          ┌─► 127.0.0.1:P of the host, for each named service        (the cell asks .1:P)
//!                  ├─ wire .1 ┼─► the world, translated; the host's resolvers
//! steps .128/25 ───┘          └─✗ anything else of the host, other cells, metadata services
//!       └─✗ the named services, the resolvers, private networks but those that are named for steps
//! ```
//!
//! No rule looks at IPv6: it is off at both ends of the wire, and the cell does not come up where it cannot be turned off.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::rules::METADATA;
use super::{DNS, METRICS, Subnet};

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

/// What runs at the far end beside the steps, at the guest's own address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemons {
    /// buildkitd and the builder, which answers for names there: they reach private networks, where the installation's services may be.
    WithBuilder,
    /// buildkitd alone. What it fetches a Dockerfile has named, so of private networks it reaches those that are listed.
    Alone {
        reach: Vec<String>,
        /// The builder answers for names at the host's end of the wire.
        forwarder: bool,
    },
}

/// One cell's wire.
#[derive(Debug, Clone)]
pub struct Wire<'a> {
    /// The host's end.
    pub device: &'a str,
    pub subnet: Subnet,
    /// On the host's loopback; for the daemons only.
    pub services: &'a BTreeSet<SocketAddr>,
    /// The resolvers that the cell is told of; the gateway stands for the one that follows.
    pub dns: &'a [Ipv4Addr],
    /// A resolver on the host's loopback, asked at the gateway's address.
    pub local_resolver: Option<Ipv4Addr>,
    /// The private networks that steps may reach.
    pub steps_reach: &'a [String],
    pub daemons: Daemons,
}

impl Wire<'_> {
    /// All rules. Each names the device, so that [`super::rules::remove`] finds it. Rules are inserted at the front: of a chain the last
    /// one here is asked first.
    pub fn script(&self) -> String {
        let mut text = self.to_the_host();
        text.push_str(&self.to_the_world());
        text
    }

    /// Who asks the resolvers: steps only where nobody answers for names in their stead.
    fn askers(&self) -> String {
        match self.daemons {
            Daemons::Alone { forwarder: false, .. } => self.subnet.to_string(),
            _ => format!("{}/32", self.subnet.guest()),
        }
    }

    fn to_the_host(&self) -> String {
        let Self { device, subnet, .. } = self;
        let (gateway, guest) = (subnet.gateway(), format!("{}/32", subnet.guest()));
        let tcp = self.services.iter().filter_map(|service| match service.ip() {
            IpAddr::V4(address) => Some((guest.clone(), "tcp", address, service.port())),
            IpAddr::V6(_) => None,
        });
        let resolver = self.local_resolver.into_iter();
        let dns = resolver.flat_map(|to| ["udp", "tcp"].map(|protocol| (self.askers(), protocol, to, DNS)));
        let open: Vec<_> = tcp.chain(dns).collect();
        let mut text = format!("*nat\n-I POSTROUTING -s {subnet} ! -o {device} -j MASQUERADE\n");
        for (from, protocol, to, port) in &open {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "-I PREROUTING -i {device} -s {from} -d {gateway} -p {protocol} --dport {port} -j DNAT --to-destination {to}:{port}"
            );
        }
        let _ = writeln!(text, "COMMIT\n*filter\n-I INPUT -i {device} -j REJECT");
        match self.daemons {
            Daemons::WithBuilder => {
                let answers = format!("-p tcp --sport {METRICS} -m conntrack --ctstate ESTABLISHED");
                let _ = writeln!(text, "-I INPUT -i {device} -s {guest} {answers} -j ACCEPT");
            }
            Daemons::Alone { forwarder: true, .. } => {
                for protocol in ["udp", "tcp"] {
                    let _ = writeln!(text, "-I INPUT -i {device} -d {gateway} -p {protocol} --dport {DNS} -j ACCEPT");
                }
            }
            Daemons::Alone { forwarder: false, .. } => {}
        }
        for (from, protocol, to, port) in &open {
            let _ = writeln!(text, "-I INPUT -i {device} -s {from} -d {to} -p {protocol} --dport {port} -j ACCEPT");
        }
        text.push_str("COMMIT\n");
        text
    }

    /// What is not for the host itself. The rules in `mangle` are asked before those of any other program. What the host leads on to
    /// somebody else when it is asked (a container's published port) is a service of the host's all the same.
    fn to_the_world(&self) -> String {
        let Self { device, subnet, .. } = self;
        let (guest, (first, prefix)) = (format!("{}/32", subnet.guest()), subnet.steps());
        let steps = format!("{first}/{prefix}");
        let (kept_out, daemons_reach): (_, &[String]) = match &self.daemons {
            Daemons::WithBuilder => (format!(" -s {steps}"), &[]),
            Daemons::Alone { reach, .. } => (String::new(), reach),
        };
        let mut text = format!("*filter\n-I FORWARD -i {device} -j ACCEPT\n");
        for network in PRIVATE {
            let _ = writeln!(text, "-I FORWARD -i {device}{kept_out} -d {network} -j REJECT");
        }
        for (from, reach) in [(&steps, self.steps_reach), (&guest, daemons_reach)] {
            for network in reach {
                let _ = writeln!(text, "-I FORWARD -i {device} -s {from} -d {network} -j ACCEPT");
            }
        }
        if matches!(self.daemons, Daemons::Alone { .. }) {
            self.ask_resolvers(&mut text);
        }
        let _ = writeln!(
            text,
            "-I FORWARD -o {device} -j DROP\n\
             -I FORWARD -o {device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             COMMIT\n*mangle\n\
             -I FORWARD -i {device} -o kiln+ -j DROP\n\
             -I FORWARD -i {device} -m conntrack --ctstate DNAT -j DROP"
        );
        for network in METADATA {
            let _ = writeln!(text, "-I FORWARD -i {device} -d {network} -j DROP");
        }
        self.ask_resolvers(&mut text);
        text.push_str("COMMIT\n");
        text
    }

    /// A resolver may be at an address where others find metadata (`169.254.169.254` is both): it is asked for names and nothing else.
    fn ask_resolvers(&self, text: &mut String) {
        let (device, askers) = (self.device, self.askers());
        for resolver in self.dns.iter().filter(|resolver| **resolver != self.subnet.gateway()) {
            for protocol in ["udp", "tcp"] {
                let _ = writeln!(
                    text,
                    "-I FORWARD -i {device} -s {askers} -d {resolver} -p {protocol} --dport {DNS} -j ACCEPT"
                );
            }
        }
    }
}

/// The host's resolvers; one on the loopback is reached at the gateway's address, and is the second answer then.
pub fn resolvers(all: &[SocketAddr], gateway: Ipv4Addr) -> (Vec<Ipv4Addr>, Option<Ipv4Addr>) {
    let v4 = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(address) => Some(address),
        // A cell has no IPv6.
        IpAddr::V6(_) => None,
    };
    let named: Vec<_> = all.iter().filter_map(v4).collect();
    match named.iter().find(|address| address.is_loopback()) {
        Some(local) => (vec![gateway], Some(*local)),
        None if named.is_empty() => (vec![gateway], None),
        None => (named, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire<'a>(services: &'a BTreeSet<SocketAddr>, dns: &'a [Ipv4Addr], daemons: Daemons) -> Wire<'a> {
        let subnet = "10.64.3.0/24".parse().unwrap();
        Wire { device: "kiln0a", subnet, services, dns, local_resolver: None, steps_reach: &[], daemons }
    }

    /// Else it would stay for ever.
    fn each_names_the_device(text: &str) {
        for line in text.lines().filter(|line| line.starts_with("-I")) {
            assert!(line.contains("-i kiln0a") || line.contains("-o kiln0a"), "{line}");
        }
    }

    #[test]
    fn a_guests_builder_reaches_services_and_its_steps_do_not() {
        let services = ["127.0.0.1:5000".parse().unwrap()].into();
        let (gateway, reach) = ([Ipv4Addr::new(10, 64, 3, 1)], ["10.7.0.0/16".to_owned()]);
        let wire = Wire {
            local_resolver: Some(Ipv4Addr::LOCALHOST),
            steps_reach: &reach,
            ..wire(&services, &gateway, Daemons::WithBuilder)
        };
        let text = wire.script();
        insta::assert_snapshot!(text);
        each_names_the_device(&text);
    }

    #[test]
    fn a_daemon_alone_reaches_registries_and_names() {
        let services = ["127.0.0.1:5000".parse().unwrap()].into();
        let dns = [Ipv4Addr::new(169, 254, 169, 253)];
        let daemons = Daemons::Alone { reach: vec!["10.0.0.5/32".into()], forwarder: true };
        let text = wire(&services, &dns, daemons).script();
        insta::assert_snapshot!(text);
        each_names_the_device(&text);
    }

    #[test]
    fn without_a_forwarder_steps_ask_the_hosts_resolvers_themselves() {
        let (services, gateway) = (BTreeSet::new(), [Ipv4Addr::new(10, 64, 3, 1)]);
        let daemons = Daemons::Alone { reach: vec![], forwarder: false };
        let local = Wire { local_resolver: Some(Ipv4Addr::LOCALHOST), ..wire(&services, &gateway, daemons.clone()) };
        let text = local.script();
        assert!(
            text.contains("-s 10.64.3.0/24 -d 10.64.3.1 -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:53"),
            "{text}"
        );
        let remote = wire(&services, &[Ipv4Addr::new(10, 0, 0, 2)], daemons).script();
        assert_eq!(remote.matches("-s 10.64.3.0/24 -d 10.0.0.2 -p udp --dport 53 -j ACCEPT").count(), 2, "{remote}");
        each_names_the_device(&text);
    }

    #[test]
    fn a_resolver_on_the_loopback_is_reached_at_the_gateway() {
        let gateway = Ipv4Addr::new(10, 64, 3, 1);
        let of = |all: &[&str]| {
            let all: Vec<_> = all.iter().map(|address| address.parse().unwrap()).collect();
            resolvers(&all, gateway)
        };
        assert_eq!(of(&["127.0.0.1:53"]), (vec![gateway], Some(Ipv4Addr::LOCALHOST)));
        let both = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];
        assert_eq!(of(&["10.0.0.2:53", "[::1]:53", "10.0.0.3:53"]), (both, None));
    }
}
