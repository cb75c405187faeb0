//! Network cards: their addresses and routes. By ioctl, since there is no `ip` in the image.

use std::ffi::{CString, c_ulong};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use crate::sys;

/// The guest's own.
pub const CARD: &str = "eth0";

/// A socket to send interface requests through.
pub struct Cards(UdpSocket);

impl Cards {
    pub fn new() -> io::Result<Self> {
        Ok(Self(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))
    }

    pub fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        self.send(libc::SIOCSIFFLAGS, &mut request)
    }

    pub fn address(&self, card: &str, what: c_ulong, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request(card);
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.send(what, &mut request)
    }

    pub fn mtu(&self, card: &str, mtu: u32) -> io::Result<()> {
        let mut request = request(card);
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).map_err(io::Error::other)?;
        self.send(libc::SIOCSIFMTU, &mut request)
    }

    /// Asked of the kernel for this network namespace: what is mounted on `/sys` may be another one's.
    pub fn mtu_of(&self, card: &str) -> io::Result<u32> {
        let mut request = request(card);
        self.send(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: the kernel has written this field.
        u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
    }

    pub fn index_of(&self, card: &str) -> io::Result<u32> {
        let mut request = request(card);
        self.send(libc::SIOCGIFINDEX, &mut request)?;
        // SAFETY: the kernel has written this field.
        u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(io::Error::other)
    }

    pub fn default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut route = route(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags |= libc::RTF_GATEWAY;
        // SAFETY: this request reads one rtentry.
        unsafe { sys::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT, &mut route) }
    }

    /// One address that is at the other end of the card's wire.
    pub fn route_to(&self, address: Ipv4Addr, card: &str) -> io::Result<()> {
        let card = CString::new(card)?;
        let mut route = route(address, Ipv4Addr::BROADCAST);
        route.rt_flags |= libc::RTF_HOST;
        route.rt_dev = card.as_ptr().cast_mut();
        // SAFETY: this request reads one rtentry and the name it points to, which outlives the call.
        unsafe { sys::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT, &mut route) }
    }

    fn send(&self, what: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the requests used here read and write one ifreq.
        unsafe { sys::ioctl(self.0.as_raw_fd(), what, request) }
    }
}

fn route(to: Ipv4Addr, mask: Ipv4Addr) -> libc::rtentry {
    // SAFETY: all zeroes is a valid route.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    (route.rt_dst, route.rt_genmask, route.rt_flags) = (socket_address(to), socket_address(mask), libc::RTF_UP);
    route
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both have the same size, and the kernel reads the former when the family says AF_INET.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}
