//! What the network's ioctls cannot do, by rtnetlink(7): pairs of virtual cards, routing tables and the rules that choose them.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

const HEADER: usize = size_of::<libc::nlmsghdr>();
// Of <linux/if_link.h>, <linux/veth.h> and <linux/fib_rules.h>; the libc crate lacks them.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FR_ACT_TO_TBL: u8 = 1;
const UP: u32 = libc::IFF_UP as u32;

pub struct Netlink(OwnedFd);

/// Packets that all of this holds for are looked up in the table. Lower priorities come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// An address and the length of its prefix.
    pub from: Option<(Ipv4Addr, u8)>,
    pub to: Option<Ipv4Addr>,
    /// The protocol's number and the port that they are sent to.
    pub port: Option<(u8, u16)>,
    pub table: u8,
    pub priority: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        // SAFETY: numbers only; the descriptor is new and nobody else's.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as said.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Two cards that are each other's wire: `near` here and up, `far` in the namespace, where it could not be yet.
    pub fn add_pair(&self, near: &str, far: &str, namespace: RawFd, mtu: u32) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &link(UP));
        message.attribute(libc::IFLA_IFNAME, &name(near));
        message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    peer.0.extend(link(0));
                    peer.attribute(libc::IFLA_IFNAME, &name(far));
                    peer.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
                    peer.attribute(libc::IFLA_NET_NS_FD, &namespace.to_ne_bytes());
                });
            });
        });
        self.exchange(message)
    }

    /// Removes a card, with the other end of its wire.
    pub fn remove_link(&self, card: &str) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, 0, &link(0));
        message.attribute(libc::IFLA_IFNAME, &name(card));
        self.exchange(message)
    }

    /// The only route of a table of its own.
    pub fn add_default_route(&self, table: u8, gateway: Ipv4Addr, card: u32) -> io::Result<()> {
        let [family, unicast] = [libc::AF_INET as u8, libc::RTN_UNICAST];
        let body = [family, 0, 0, 0, table, libc::RTPROT_STATIC, libc::RT_SCOPE_UNIVERSE, unicast, 0, 0, 0, 0];
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body);
        message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        message.attribute(libc::RTA_OIF, &card.to_ne_bytes());
        self.exchange(message)
    }

    pub fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        self.exchange(rule.message(libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL))
    }

    pub fn remove_rule(&self, rule: &Rule) -> io::Result<()> {
        self.exchange(rule.message(libc::RTM_DELRULE, 0))
    }

    /// Sends a request and waits for the kernel's verdict on it.
    fn exchange(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        let mut answer = [0u8; 4096];
        let fd = self.0.as_raw_fd();
        // SAFETY: pointer and length of one slice.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: likewise.
        let received = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        verdict(&answer[..received])
    }
}

/// The error in the kernel's answer: a header, then a number that is negative or 0.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let number = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match number {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Rule {
    fn message(&self, kind: u16, flags: libc::c_int) -> Message {
        let to = if self.to.is_some() { 32 } else { 0 };
        let from = self.from.map_or(0, |(_, length)| length);
        let body = [libc::AF_INET as u8, to, from, 0, self.table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        let mut message = Message::new(kind, flags, &body);
        message.attribute(FRA_PRIORITY, &self.priority.to_ne_bytes());
        if let Some(address) = self.to {
            message.attribute(FRA_DST, &address.octets());
        }
        if let Some((address, _)) = self.from {
            message.attribute(FRA_SRC, &address.octets());
        }
        if let Some((protocol, port)) = self.port {
            message.attribute(FRA_IP_PROTO, &[protocol]);
            // The first and the last port.
            message.attribute(FRA_DPORT_RANGE, &[port.to_ne_bytes(), port.to_ne_bytes()].concat());
        }
        message
    }
}

/// `struct ifinfomsg` of a card that gets these flags.
fn link(flags: u32) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// A message as it grows, or the inside of a nested attribute.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: libc::c_int, body: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or_default();
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let mut inside = Message(Vec::new());
        fill(&mut inside);
        self.attribute(kind, &inside.0);
    }

    /// The header's first field is the length of all.
    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or_default();
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE, &link(UP));
        message.nested(18, |info| {
            info.attribute(1, b"veth");
            info.attribute(3, &name("a"));
        });
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 16 + 4 + 8 + 8);
        assert_eq!(bytes[..4], 52u32.to_ne_bytes());
        assert_eq!(bytes[32..], *b"\x14\0\x12\0\x08\0\x01\0veth\x06\0\x03\0a\0\0\0");
    }

    #[test]
    fn a_rule_says_all_that_has_to_hold() {
        let rule = Rule {
            from: Some((Ipv4Addr::new(10, 0, 2, 128), 25)),
            to: Some(Ipv4Addr::new(10, 0, 2, 15)),
            port: Some((17, 53)),
            table: 255,
            priority: 5,
        };
        let bytes = rule.message(libc::RTM_NEWRULE, 0).finish();
        assert_eq!(bytes[HEADER..HEADER + 12], [2, 32, 25, 0, 255, 0, 0, 1, 0, 0, 0, 0]);
        let attributes = b"\x08\0\x06\0\x05\0\0\0\x08\0\x01\0\x0a\0\x02\x0f\x08\0\x02\0\x0a\0\x02\x80\
            \x05\0\x16\0\x11\0\0\0\x08\0\x18\0\x35\0\x35\0";
        assert_eq!(bytes[HEADER + 12..], *attributes);
    }

    #[test]
    fn the_kernels_verdict() {
        let answer = |number: i32| [&[0; HEADER][..], &number.to_ne_bytes()].concat();
        assert!(verdict(&answer(0)).is_ok());
        assert_eq!(verdict(&answer(-libc::EEXIST)).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(verdict(&[]).is_err());
    }
}
