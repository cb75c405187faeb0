//! Swap on a disk of its own, which the host may hand over empty: its header is written here at each start.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::{blockdev, sys};

const PAGE: u64 = 4096;
/// `SWAP_FLAG_DISCARD`: freed pages are given back, or the host's sparse file would only ever grow.
const DISCARD: i32 = 0x10000;

pub fn turn_on(device: &str) -> io::Result<()> {
    let disk = File::options().write(true).open(device)?;
    let pages = blockdev::size(&disk)? / PAGE;
    disk.write_all_at(&header(pages), 0)?;
    drop(disk);
    sys::swap_on(device, DISCARD)
}

/// The first page of a swap device of so many pages, this one included (`union swap_header` of <linux/swap.h>).
fn header(pages: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    // Fields lie behind 1024 bytes kept for boot loaders: version, last page, number of bad pages.
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    let last = u32::try_from(pages.saturating_sub(1)).unwrap_or(u32::MAX);
    page[1028..1032].copy_from_slice(&last.to_le_bytes());
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_header_says_how_many_pages_there_are() {
        let header = super::header(256);
        assert_eq!(header.len(), 4096);
        assert_eq!(&header[4086..], b"SWAPSPACE2");
        assert_eq!(header[1028..1032], 255u32.to_le_bytes());
    }
}
