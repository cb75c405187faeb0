//! Which addresses a cell's steps get: a /24 of 10.0.0.0/8 that no route of the host leads to.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A network of 256 addresses, by its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Addr);

impl Subnet {
    /// The bridge's own address, the steps' gateway.
    pub fn gateway(self) -> Ipv4Addr {
        let [a, b, c, _] = self.0.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The address of the one guest.
    pub fn guest(self) -> Ipv4Addr {
        let [a, b, c, _] = self.0.octets();
        Ipv4Addr::new(a, b, c, 2)
    }

    /// The half of the addresses that the guest's steps get: the first one, and the length of their common prefix.
    pub fn steps(self) -> (Ipv4Addr, u8) {
        let [a, b, c, _] = self.0.octets();
        (Ipv4Addr::new(a, b, c, 128), 25)
    }

    /// What the text of each of its addresses begins with.
    pub fn text_prefix(self) -> String {
        let [a, b, c, _] = self.0.octets();
        format!("{a}.{b}.{c}.")
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.0)
    }
}

impl FromStr for Subnet {
    type Err = NotASubnet;
    fn from_str(text: &str) -> Result<Self, NotASubnet> {
        let address: Option<Ipv4Addr> = text.strip_suffix("/24").and_then(|address| address.parse().ok());
        address.filter(|address| address.octets()[3] == 0).map(Self).ok_or_else(|| NotASubnet(text.to_owned()))
    }
}

impl TryFrom<String> for Subnet {
    type Error = NotASubnet;
    fn try_from(text: String) -> Result<Self, NotASubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 network of the form a.b.c.0/24")]
pub struct NotASubnet(String);

/// A destination of the host's routing table, without the default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    destination: u32,
    mask: u32,
}

impl Route {
    fn overlaps(self, subnet: Subnet) -> bool {
        // Two prefixes overlap when they agree on the bits of the shorter one.
        let mask = self.mask & 0xffff_ff00;
        self.destination & mask == subnet.0.to_bits() & mask
    }
}

/// The host's IPv4 routes (main table; local addresses have a route too).
///
/// # Errors
/// When `/proc/net/route` cannot be read.
pub fn routes() -> anyhow::Result<Vec<Route>> {
    let table = std::fs::read_to_string("/proc/net/route").context("cannot read /proc/net/route")?;
    Ok(parse(&table))
}

/// Columns: interface, destination, gateway, flags, reference count, use, metric, mask, …; addresses as the hex of their bytes in host order.
fn parse(table: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    let route = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        Some(Route { destination: number(columns.get(1)?)?, mask: number(columns.get(7)?)? })
    };
    table.lines().skip(1).filter_map(route).filter(|route| route.mask != 0).collect()
}

/// The former subnet while no route leads to it, else the first free one in an order that is the bridge's own, so that cells seldom ask
/// for the same.
///
/// # Errors
/// When all of 10.64.0.0/10 is routed.
pub fn choose(bridge: &str, former: Option<Subnet>, routes: &[Route]) -> anyhow::Result<Subnet> {
    let digest = blake3::hash(bridge.as_bytes());
    let start = u16::from_le_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]);
    let candidate = |step: u16| {
        let [high, low] = (start.wrapping_add(step) & 0x3fff).to_be_bytes();
        Subnet(Ipv4Addr::new(10, 64 + high, low, 0))
    };
    former
        .into_iter()
        .chain((0..0x4000).map(candidate))
        .find(|subnet| !routes.iter().any(|route| route.overlaps(*subnet)))
        .context("no free subnet in 10.64.0.0/10")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        vpn0\t0000400A\t00000000\t0001\t0\t0\t0\t0000C0FF\t0\t0\t0\n";

    #[test]
    fn the_default_route_is_no_obstacle() {
        let routes = parse(TABLE);
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0], Route { destination: 0xc000_0200, mask: 0xffff_ff00 });
    }

    #[test]
    fn routed_subnets_are_passed_over() {
        let first = choose("kiln0", None, &[]).unwrap();
        let taken = Route { destination: first.0.to_bits(), mask: 0xffff_ff00 };
        let second = choose("kiln0", None, &[taken]).unwrap();
        assert_ne!(first, second);
        assert_eq!(choose("kiln0", Some(first), &[]).unwrap(), first);
        assert_eq!(choose("kiln0", Some(first), &[taken]).unwrap(), second);
        assert!(choose("kiln0", None, &parse(TABLE)).is_err(), "vpn0 covers 10.64.0.0/10");
    }

    #[test]
    fn only_whole_networks_parse() {
        assert_eq!("10.1.2.0/24".parse::<Subnet>().unwrap().gateway(), Ipv4Addr::new(10, 1, 2, 1));
        assert!("10.1.2.3/24".parse::<Subnet>().is_err());
        assert!("10.1.0.0/16".parse::<Subnet>().is_err());
    }
}
