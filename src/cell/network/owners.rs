//! Whose bridge or tap is whose: for each a file below `/run` with its subnet in it, locked by whoever made it for as long as that lives.
//!
//! What was killed cannot remove what it put into the host's network namespace, and its next start, which would, may never come. Rules of
//! dead cells are not only litter: the kernel goes through them for each packet of the host. So every start of any cell removes what
//! belongs to nobody; the kernel has let go of the locks of those who were killed. A tap is claimed by the host's agent, which a guest
//! outlives: it belongs to the guest that has it, too ([`super::tap::is_free`]).
//!
//! All of this under [`super::LOCK`].

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::Subnet;

pub const BRIDGES: &str = "/run/kiln-networks";
pub const TAPS: &str = "/run/kiln-taps";

/// Holds a bridge or a tap until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

/// Takes a device for this process.
///
/// # Errors
/// When the file cannot be written, or another process holds it.
pub fn claim(dir: &Path, device: &str, subnet: Subnet) -> io::Result<Claim> {
    fs::create_dir_all(dir)?;
    let mut lock = File::options().create(true).truncate(false).write(true).open(dir.join(device))?;
    lock.try_lock()?;
    lock.set_len(0)?;
    lock.write_all(subnet.to_string().as_bytes())?;
    Ok(Claim { _lock: lock })
}

/// The device is gone.
pub fn forget(dir: &Path, device: &str) {
    let _ = fs::remove_file(dir.join(device));
}

/// Devices whose makers are dead, with their subnets where they had come so far as to have one.
pub fn orphans(dir: &Path) -> Vec<(String, Option<Subnet>)> {
    let of = |entry: fs::DirEntry| {
        let device = entry.file_name().into_string().ok()?;
        File::open(entry.path()).ok()?.try_lock().ok()?;
        let subnet = fs::read_to_string(entry.path()).ok()?;
        Some((device, subnet.parse().ok()))
    };
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_an_orphan_when_who_claimed_it_is_gone_and_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(orphans(&dir.join("none")), []);
        let subnet: Subnet = "10.90.7.0/24".parse().unwrap();
        let claimed = claim(dir, "kiln0a", subnet).unwrap();
        assert!(claim(dir, "kiln0a", subnet).is_err(), "two cells have one bridge");
        let _other = claim(dir, "kiln0b", subnet).unwrap();
        assert_eq!(orphans(dir), []);
        drop(claimed);
        assert_eq!(orphans(dir), [("kiln0a".to_owned(), Some(subnet))]);
        assert_eq!(orphans(dir).len(), 1, "asking claims nothing");
        // Its own next start.
        let again = claim(dir, "kiln0a", subnet).unwrap();
        assert_eq!(orphans(dir), []);
        drop(again);
        forget(dir, "kiln0a");
        assert_eq!(orphans(dir), []);
    }
}
