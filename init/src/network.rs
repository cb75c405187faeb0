//! The guest's network: one card with an address that the host has chosen.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use crate::cards::{CARD, Cards};
use crate::settings::Network;
use crate::{console, steps};

/// `/etc/resolv.conf` of the image leads here.
const RESOLVER: &str = "/run/resolv.conf";

pub fn set_up(network: &Network) -> Result<(), String> {
    let cards = Cards::new().map_err(|error| format!("cannot open a socket: {error}"))?;
    cards.up("lo").map_err(|error| format!("cannot bring up lo: {error}"))?;
    configure(&cards, network).map_err(|error| format!("cannot set up {CARD}: {error}"))?;
    let gateway = network.gateway;
    cards.default_route(gateway).map_err(|error| format!("cannot route through the gateway {gateway}: {error}"))?;
    if network.steps.is_some() {
        steps::set_up(network).map_err(|error| format!("cannot set up the network of steps: {error}"))?;
    }
    let servers: String = network.name_servers().iter().map(|server| format!("nameserver {server}\n")).collect();
    fs::write(RESOLVER, servers).map_err(|error| format!("cannot write {RESOLVER}: {error}"))?;
    // IPv6 would be a way around rules that know IPv4 only: a guest that cannot turn it off runs no steps.
    for card in ["all", "default"] {
        steps::no_ipv6(card).map_err(|error| format!("cannot turn IPv6 off: {error}"))?;
    }
    // What steps send is passed on.
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
        console::say(&format!("cannot set net/ipv4/ip_forward: {error}"));
    }
    Ok(())
}

fn configure(cards: &Cards, network: &Network) -> io::Result<()> {
    cards.address(CARD, libc::SIOCSIFADDR, network.address)?;
    cards.address(CARD, libc::SIOCSIFNETMASK, netmask(network.prefix))?;
    if let Some(mtu) = network.mtu {
        cards.mtu(CARD, mtu)?;
    }
    cards.up(CARD)
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(9), Ipv4Addr::new(255, 128, 0, 0));
    }
}
