//! Making and deleting a tap device: one end of a wire on the host, QEMU holds the other.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::bridge::{Control, check, ifreq};
use super::subnet::Subnet;

// <linux/if_tun.h>; the libc crate has them as another type on each target.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
/// An Ethernet device without a header before each packet, with offloads, as QEMU opens it.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes the device with the subnet's gateway as its address, up, without IPv6. It stays until it is removed.
///
/// # Errors
/// What the kernel says: no permission, no `/dev/net/tun`, a guest still has the device.
pub fn add(name: &str, subnet: Subnet) -> io::Result<()> {
    set_persistent(name, true)?;
    // A guest could reach the host over link-local IPv6, which the rules do not see.
    let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    if std::path::Path::new(&no_ipv6).exists() {
        std::fs::write(no_ipv6, "1")?;
    }
    let control = Control::new()?;
    control.set_address(libc::SIOCSIFADDR, name, subnet.gateway())?;
    control.set_address(libc::SIOCSIFNETMASK, name, std::net::Ipv4Addr::new(255, 255, 255, 0))?;
    control.set_up(name, true)
}

/// Deletes the device if there is one and no guest has it.
pub fn remove(name: &str) {
    // One that is not there is made and goes again when the file is closed.
    let _ = set_persistent(name, false);
}

fn set_persistent(name: &str, persistent: bool) -> io::Result<()> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(FLAGS).map_err(io::Error::other)?;
    // SAFETY: the request reads and writes one ifreq.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request) })?;
    // SAFETY: the request takes a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}
