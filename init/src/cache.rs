//! The cache disk: looked at, checked where there is doubt, mounted; nothing on it is ever repaired beyond what is safe.
//!
//! A superblock that says "unmounted in order, no errors" is believed (reading it takes nothing). Anything else is e2fsck's to judge, in
//! its mode that only mends what loses nothing: a cache that was pieced together could hand out a layer with files missing, and a cold
//! start is the smaller harm. Found errors stop the kernel (`errors=panic`), so that the next start's check sees them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use crate::sys::Ended;
use crate::{blockdev, buildkitd, console, sys};

pub const MOUNT: &str = "/data";
/// Daemons' temporary files lie on the cache disk: in memory a large one would be taken from the builds.
const TEMPORARY: &str = "/data/tmp";
const OPTIONS: &str = "errors=panic,lazytime";

/// ext4's mark, and where it is in the superblock.
const MAGIC: u16 = 0xef53;
const MAGIC_AT: usize = 0x38;

/// What the superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Unmounted in order and without known errors.
    Clean,
    /// To be checked first: the journal holds changes, or errors were seen, or there is no ext4 at all.
    Doubtful,
}

pub fn condition(device: &str) -> io::Result<Condition> {
    let mut superblock = [0; 1024];
    File::open(device)?.read_exact_at(&mut superblock, 1024)?;
    Ok(judge(&superblock))
}

/// Fields by the kernel's documentation, filesystems/ext4/super: magic, state (1 is "cleanly unmounted"), features.
fn judge(superblock: &[u8; 1024]) -> Condition {
    let half = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
    let (magic, state, needs_recovery) = (half(MAGIC_AT), half(0x3a), half(0x60) & 0x4 != 0);
    if magic == MAGIC && state == 1 && !needs_recovery { Condition::Clean } else { Condition::Doubtful }
}

/// Replays the journal and mends what can be mended without loss.
pub fn check_command(device: &str) -> Command {
    let mut command = Command::new("/sbin/e2fsck");
    command.args(["-p", device]);
    command
}

/// What is known of the disk after a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Usable,
    Damaged,
    /// The check itself failed; the next one may not.
    Unknown,
}

/// By e2fsck's exit code, a sum (fsck(8)): 1 and 2 mended, 4 left unmended, 8 could not work. That last one is also what it says when
/// there is no ext4 at all.
pub fn verdict(ended: Ended, is_ext4: bool) -> Verdict {
    match ended {
        Ended::Exit(0..=3) => Verdict::Usable,
        Ended::Exit(4..=7 | 12..=15) => Verdict::Damaged,
        Ended::Exit(8..=11) if !is_ext4 => Verdict::Damaged,
        _ => Verdict::Unknown,
    }
}

/// Whether the device has ext4's mark; one that cannot be read may have it.
pub fn is_ext4(device: &str) -> bool {
    let mut magic = [0; 2];
    let read = File::open(device).and_then(|disk| disk.read_exact_at(&mut magic, 1024 + MAGIC_AT as u64));
    read.is_err() || u16::from_le_bytes(magic) == MAGIC
}

/// Whether an error of reading or mounting the disk is of what is on it, and not of this machine.
pub fn is_damage(error: &io::Error) -> bool {
    const DAMAGE: [i32; 4] = [libc::EIO, libc::EINVAL, libc::EUCLEAN, libc::EBADMSG];
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error().is_some_and(|number| DAMAGE.contains(&number))
}

/// Mounts the disk and what lies on it.
pub fn mount(device: &str) -> io::Result<()> {
    sys::mount(device, MOUNT, "ext4", libc::MS_NOATIME | libc::MS_NODEV, OPTIONS)?;
    let _ = fs::rename(TEMPORARY, rubbish());
    match fs::create_dir_all(TEMPORARY) {
        // buildkitd, which makes room on the disk, has to come up all the same.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            console::say("the cache disk is full: temporary files are kept in memory until the next start");
            let flags = libc::MS_NOSUID | libc::MS_NODEV;
            sys::mount("tmpfs", "/tmp", "tmpfs", flags, "mode=1777,size=64m")
        }
        made => {
            made?;
            fs::set_permissions(TEMPORARY, fs::Permissions::from_mode(0o1777))?;
            sys::mount(TEMPORARY, "/tmp", "", libc::MS_BIND, "")
        }
    }
}

/// Whether builds have left something on the mounted disk.
pub fn is_warm() -> bool {
    fs::metadata(format!("{}/cache.db", buildkitd::ROOT)).is_ok()
}

/// Removes the temporary files of former starts.
pub fn remove_rubbish() -> io::Result<()> {
    for entry in fs::read_dir(MOUNT)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".old-tmp-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn rubbish() -> String {
    format!("{MOUNT}/.old-tmp-{}", sys::wall_ns())
}

/// Writes everything out and unmounts. Processes that were just killed may hold the disk for a moment.
pub fn unmount() -> io::Result<()> {
    sys::sync();
    let _ = sys::unmount("/tmp", libc::MNT_DETACH);
    loop {
        match sys::unmount(MOUNT, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(Duration::from_millis(50)),
            ended => return ended,
        }
    }
}

/// Grows the file system to its device.
pub fn grow(device: &str) -> io::Result<()> {
    // `EXT4_IOC_RESIZE_FS` of <linux/ext4.h>: the new size in blocks.
    const RESIZE: libc::c_ulong = 0x4008_6610;
    let mut superblock = [0; 1024];
    let disk = File::open(device)?;
    disk.read_exact_at(&mut superblock, 1024)?;
    let mut block = 1024;
    for _ in 0..superblock[0x18] {
        block *= 2;
    }
    let mut blocks = blockdev::size(&disk)? / block;
    let root = File::open(MOUNT)?;
    // SAFETY: the request reads one u64.
    unsafe { sys::ioctl(std::os::fd::AsRawFd::as_raw_fd(&root), RESIZE, &mut blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(magic: u16, state: u16, features: u16) -> [u8; 1024] {
        let mut superblock = [0; 1024];
        for (at, value) in [(0x38, magic), (0x3a, state), (0x60, features)] {
            superblock[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        superblock
    }

    #[test]
    fn only_a_disk_that_was_unmounted_without_errors_is_believed() {
        assert_eq!(judge(&superblock(0xef53, 1, 0x2c2)), Condition::Clean);
        assert_eq!(judge(&superblock(0xef53, 1, 0x2c6)), Condition::Doubtful, "the journal is to be replayed");
        assert_eq!(judge(&superblock(0xef53, 3, 0x2c2)), Condition::Doubtful, "errors were seen");
        assert_eq!(judge(&superblock(0xef53, 0, 0x2c2)), Condition::Doubtful, "not unmounted");
        assert_eq!(judge(&superblock(0, 1, 0)), Condition::Doubtful, "no ext4");
    }

    #[test]
    fn what_e2fsck_leaves_unmended_is_not_used() {
        let all = |codes: &[i32], is_ext4, expected| {
            codes.iter().for_each(|code| assert_eq!(verdict(Ended::Exit(*code), is_ext4), expected, "{code}"));
        };
        all(&[0, 1, 2, 3], true, Verdict::Usable);
        all(&[4, 5, 12], true, Verdict::Damaged);
        all(&[8], false, Verdict::Damaged);
    }

    #[test]
    fn a_check_that_failed_says_nothing_of_the_disk() {
        for ended in [Ended::Exit(8), Ended::Exit(16), Ended::Exit(128), Ended::Signal(9)] {
            assert_eq!(verdict(ended, true), Verdict::Unknown, "{ended}");
        }
        assert_eq!(verdict(Ended::Signal(9), false), Verdict::Unknown);
    }

    #[test]
    fn errors_of_the_machine_are_not_the_disks() {
        let of = io::Error::from_raw_os_error;
        assert!(is_damage(&of(libc::EUCLEAN)) && is_damage(&io::ErrorKind::UnexpectedEof.into()));
        assert!(!is_damage(&of(libc::ENOMEM)) && !is_damage(&of(libc::ENOENT)) && !is_damage(&of(libc::ENODEV)));
    }
}
