//! The resolvers that this machine asks: resolv.conf(5).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub const FILE: &str = "/etc/resolv.conf";
/// Whom systemd-resolved asks, and where it listens itself: it answers what comes from this very machine only (systemd-resolved(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
const PORT: u16 = 53;

/// In the order of the file.
///
/// # Errors
/// When the file cannot be read.
pub fn of_machine() -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&fs::read_to_string(FILE)?))
}

/// As [`of_machine`], for somebody who is not on this machine's own loopback.
///
/// # Errors
/// As there.
pub fn for_guests() -> io::Result<Vec<SocketAddr>> {
    Ok(without_stub(of_machine()?, || fs::read_to_string(BEHIND_STUB).ok()))
}

fn without_stub(all: Vec<SocketAddr>, behind: impl FnOnce() -> Option<String>) -> Vec<SocketAddr> {
    if !all.iter().any(|resolver| resolver.ip() == STUB) {
        return all;
    }
    behind().map(|text| parse(&text)).filter(|found| !found.is_empty()).unwrap_or(all)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_that_answers_this_machine_only_is_passed_over() {
        let stub = parse("nameserver 127.0.0.53\noptions edns0 trust-ad\n");
        let behind = "# by systemd-resolved\nnameserver 10.0.0.2\nnameserver 169.254.169.253\n";
        let named = |all: Vec<SocketAddr>| all.iter().map(|at| at.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(named(without_stub(stub.clone(), || Some(behind.into()))), ["10.0.0.2", "169.254.169.253"]);
        assert_eq!(named(without_stub(stub, || None)), ["127.0.0.53"], "nobody else is known");
        let another = parse("nameserver 127.0.0.1\n");
        assert_eq!(named(without_stub(another, || unreachable!("it is no stub"))), ["127.0.0.1"]);
    }

    #[test]
    fn name_servers_are_found_among_the_rest() {
        let text = "# nameserver 10.0.0.1\nsearch example\n nameserver\t10.0.0.2 # here\nnameservers 10.0.0.3\nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let found: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "[::1]:53"]);
    }
}
