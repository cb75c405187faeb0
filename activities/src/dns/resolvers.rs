//! The resolvers that this machine asks: resolv.conf(5).

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

pub const FILE: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// In the order of the file.
///
/// # Errors
/// When the file cannot be read.
pub fn of_machine() -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&fs::read_to_string(FILE)?))
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
    fn name_servers_are_found_among_the_rest() {
        let text = "# nameserver 10.0.0.1\nsearch example\n nameserver\t10.0.0.2 # here\nnameservers 10.0.0.3\nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let found: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "[::1]:53"]);
    }
}
