//! Addresses and flags of network devices, by the kernel's `ioctl`s: a bare Debian has no `ip` command. And deleting a bridge, as
//! former releases had one for each cell.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// <linux/sockios.h>; the libc crate lacks it.
const SIOCBRDELBR: libc::c_ulong = 0x89a1;

/// Deletes the bridge if there is one.
pub fn remove(name: &str) {
    if let Ok(control) = Control::new() {
        // A bridge has to be down to be deleted; both fail when it is not there.
        let _ = control.set_up(name, false);
        let _ = control.bridge(SIOCBRDELBR, name);
    }
}

/// A socket to send interface requests through; also for [`super::tap`].
pub struct Control(std::os::fd::OwnedFd);

impl Control {
    pub fn new() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    fn bridge(&self, request: libc::c_ulong, name: &str) -> io::Result<()> {
        let name = std::ffi::CString::new(name)?;
        // SAFETY: the request reads a NUL-terminated interface name.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, name.as_ptr()) })
    }

    pub fn set_address(&self, request: libc::c_ulong, name: &str, address: Ipv4Addr) -> io::Result<()> {
        let mut ifreq = ifreq(name)?;
        let address = libc::sockaddr_in {
            sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: sockaddr_in and sockaddr have the same size, and the kernel reads the former when the family says AF_INET.
        ifreq.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        self.send(request, &mut ifreq)
    }

    /// The interface's own address; `None` when it has none.
    pub fn address(&self, name: &str) -> io::Result<Option<Ipv4Addr>> {
        let mut ifreq = ifreq(name)?;
        ifreq.ifr_ifru.ifru_addr.sa_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
        match self.send(libc::SIOCGIFADDR, &mut ifreq) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            asked => asked?,
        }
        // SAFETY: the kernel has written an address of the family that was asked for; both structs have the same size.
        let address = unsafe { std::mem::transmute::<libc::sockaddr, libc::sockaddr_in>(ifreq.ifr_ifru.ifru_addr) };
        Ok(Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))))
    }

    pub fn is_up(&self, name: &str) -> io::Result<bool> {
        let mut ifreq = ifreq(name)?;
        self.send(libc::SIOCGIFFLAGS, &mut ifreq)?;
        // SAFETY: the kernel has written the flags.
        Ok(i32::from(unsafe { ifreq.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0)
    }

    pub fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        let mut ifreq = ifreq(name)?;
        ifreq.ifr_ifru.ifru_flags = if up { libc::c_short::try_from(libc::IFF_UP).unwrap_or_default() } else { 0 };
        self.send(libc::SIOCSIFFLAGS, &mut ifreq)
    }

    fn send(&self, request: libc::c_ulong, ifreq: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the requests used here read and write one ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, ifreq) })
    }
}

pub fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a valid ifreq.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(ifreq)
}

pub fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
