//! Making, mending and deleting a tap device: one end of a wire on the host, the guest's program holds the other.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use super::bridge::{Control, check, ifreq};
use super::subnet::Subnet;

// <linux/if_tun.h>; the libc crate has them as another type on each target.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
/// An Ethernet device without a header before each packet, with offloads, as QEMU and Firecracker open it.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes the device with the subnet's gateway as its address, up, without IPv6. It stays until it is removed.
///
/// # Errors
/// What the kernel says: no permission, no `/dev/net/tun`, a guest still has the device.
pub fn add(name: &str, subnet: Subnet) -> io::Result<()> {
    set_persistent(name, true)?;
    // A guest could reach the host over link-local IPv6, which the rules do not see.
    kiln_init::steps::no_ipv6(name)?;
    let control = Control::new()?;
    set_address(&control, name, subnet)?;
    control.set_up(name, true)
}

fn set_address(control: &Control, name: &str, subnet: Subnet) -> io::Result<()> {
    control.set_address(libc::SIOCSIFADDR, name, subnet.gateway())?;
    control.set_address(libc::SIOCSIFNETMASK, name, Ipv4Addr::new(255, 255, 255, 0))
}

pub fn take_down(name: &str) -> io::Result<()> {
    Control::new()?.set_up(name, false)
}

/// Gives the device back what it has lost since it was made; what that was.
///
/// # Errors
/// When the device is gone: another one would not be the guest's.
pub fn mend(name: &str, subnet: Subnet) -> io::Result<Vec<String>> {
    let control = Control::new()?;
    let mut mended = Vec::new();
    if !control.is_up(name)? {
        control.set_up(name, true)?;
        mended.push(format!("the tap {name} was down"));
    }
    if control.address(name)? != Some(subnet.gateway()) {
        set_address(&control, name, subnet)?;
        mended.push(format!("the tap {name} had lost its address"));
    }
    Ok(mended)
}

/// The guest's end.
pub(super) fn open(name: &str) -> io::Result<File> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(FLAGS).map_err(io::Error::other)?;
    // SAFETY: the request reads and writes one ifreq.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request) })?;
    Ok(tun)
}

pub fn is_there(name: &str) -> bool {
    Control::new().and_then(|control| control.is_up(name)).is_ok()
}

/// Whether no guest has the device.
pub fn is_free(name: &str) -> bool {
    open(name).is_ok()
}

/// Deletes the device if there is one and no guest has it.
pub fn remove(name: &str) {
    // One that is not there is made and goes again when the file is closed.
    let _ = set_persistent(name, false);
}

fn set_persistent(name: &str, persistent: bool) -> io::Result<()> {
    let tun = open(name)?;
    // SAFETY: the request takes a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const TAP: &str = "kilntest";
    /// Ethernet's number for "who has this address?", behind the header of virtio (10 bytes) and two addresses.
    const ARP: [u8; 2] = [0x08, 0x06];
    const TYPE_AT: usize = 10 + 12;

    /// Whether what the host sends to the guest's address comes out at the guest's end: its question who has it does.
    fn reaches(guest: &mut File, subnet: Subnet) -> bool {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.send_to(b"x", (subnet.guest(), 9)).is_err() {
            return false;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let patience = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(guest), PollFlags::POLLIN)];
            if poll(&mut fds, patience).unwrap() == 0 {
                return false;
            }
            let mut frame = [0; 2048];
            let size = guest.read(&mut frame).unwrap();
            if frame[..size].get(TYPE_AT..TYPE_AT + 2) == Some(&ARP) {
                return true;
            }
        }
    }

    /// In a network namespace of the thread's own: nothing of the machine's network is touched.
    #[test]
    fn a_wire_that_was_pulled_is_plugged_in_again() {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        let subnet: Subnet = "10.64.3.0/24".parse().unwrap();
        add(TAP, subnet).unwrap();
        let (mut guest, control) = (open(TAP).unwrap(), Control::new().unwrap());
        assert!(reaches(&mut guest, subnet));
        assert!(mend(TAP, subnet).unwrap().is_empty(), "nothing is wrong");

        control.set_up(TAP, false).unwrap();
        assert!(!reaches(&mut guest, subnet));
        assert_eq!(mend(TAP, subnet).unwrap(), ["the tap kilntest was down"]);
        assert!(reaches(&mut guest, subnet));

        control.set_address(libc::SIOCSIFADDR, TAP, Ipv4Addr::UNSPECIFIED).unwrap();
        assert!(!reaches(&mut guest, subnet));
        assert_eq!(mend(TAP, subnet).unwrap(), ["the tap kilntest had lost its address"]);
        assert!(reaches(&mut guest, subnet) && mend(TAP, subnet).unwrap().is_empty());

        drop(guest);
        remove(TAP);
        assert!(mend(TAP, subnet).is_err(), "another tap would not be the guest's");
    }
}
