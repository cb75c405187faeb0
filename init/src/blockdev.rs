//! What is asked of block devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::sys;

/// `BLKGETSIZE64` of <linux/fs.h>; the libc crate lacks it.
const SIZE: libc::c_ulong = 0x8008_1272;

/// Bytes.
pub fn size(device: &File) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    // SAFETY: the request writes one u64.
    unsafe { sys::ioctl(device.as_raw_fd(), SIZE, &mut bytes)? };
    Ok(bytes)
}
