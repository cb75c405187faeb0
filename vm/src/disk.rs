//! Cache disks: made, grown, copied, set aside. Raw files: every hypervisor takes them, and copy-on-write copies of them are the file
//! system's.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot make the cache disk {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("mkfs.ext4 of the cache disk {} failed: {said}", path.display())]
    Format { path: PathBuf, said: String },
    #[error("cannot set the cache disk {} aside", path.display())]
    SetAside { path: PathBuf, source: io::Error },
    #[error("cannot grow the cache disk {}", path.display())]
    Grow { path: PathBuf, source: io::Error },
    #[error("cannot copy the cache disk {} to {}", from.display(), to.display())]
    Copy { from: PathBuf, to: PathBuf, source: io::Error },
    #[error(
        "the file system of {} makes no copies that share their content with the original; cells are cloned on XFS (mkfs.xfs -m reflink=1) \
         or btrfs, with main cell and clone on the same one",
        to.display()
    )]
    NoReflink { to: PathBuf },
}

/// Copies a disk within its file system, which shares the content between the two until one of them is written to: it takes milliseconds,
/// however large the disk. A copy of one that is in use is of a single moment. It is there whole or not at all.
///
/// # Errors
/// [`DiskError::NoReflink`] where the file system has no such copies, [`DiskError::Copy`] for the rest.
pub async fn copy(from: &Path, to: &Path) -> Result<(), DiskError> {
    let (source, target) = (from.to_owned(), to.to_owned());
    let copied = tokio::task::spawn_blocking(move || reflink(&source, &target)).await;
    copied.map_err(io::Error::other).flatten().map_err(|source| match source.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::ENOTTY) => DiskError::NoReflink { to: to.to_owned() },
        _ => DiskError::Copy { from: from.to_owned(), to: to.to_owned(), source },
    })
}

fn reflink(from: &Path, to: &Path) -> io::Result<()> {
    let new = to.with_extension("new");
    let (source, target) = (File::open(from)?, own(&new, true)?);
    // SAFETY: both descriptors are open, and the request takes nothing else.
    let done = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    let done = if done < 0 { Err(io::Error::last_os_error()) } else { std::fs::rename(&new, to) };
    done.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// A disk's file, made where there is none, which nobody else on the host reads: layers, cached secrets and step memory are in disks.
fn own(path: &Path, emptied: bool) -> io::Result<File> {
    let file = File::options().create(true).truncate(emptied).write(true).mode(0o600).open(path)?;
    // One that was there keeps its mode otherwise.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a swap disk of this size, or makes the one that is there this size.
///
/// # Errors
/// When it cannot be made.
pub fn make_swap(path: &Path, bytes: u64) -> io::Result<()> {
    own(path, false)?.set_len(bytes)
}

/// Makes an empty cache disk. Sparse: it takes the host's space as it fills. It is there whole or not at all.
///
/// # Errors
/// When the file cannot be made, or `mkfs.ext4` is missing or fails.
pub async fn create(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let failed = |source| DiskError::Create { path: path.to_owned(), source };
    let new = path.with_extension("new");
    own(&new, true).and_then(|file| file.set_len(bytes)).map_err(failed)?;
    format(&new).await?;
    tokio::fs::rename(&new, path).await.map_err(failed)
}

/// Inode tables are written when they are used: a new disk takes milliseconds. No blocks are kept for root, there is nobody else.
async fn format(path: &Path) -> Result<(), DiskError> {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]).arg(path);
    // Not everybody's path has the directory of system programs.
    let path_variable = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path_variable}:/usr/sbin:/sbin"));
    let output = command.output().await.map_err(|source| DiskError::Create { path: path.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DiskError::Format { path: path.to_owned(), said })
}

/// Moves a disk that is of no use out of the way and keeps it for inspection; the path it has now.
///
/// # Errors
/// When it cannot be renamed.
pub async fn set_aside(path: &Path) -> Result<PathBuf, DiskError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".bad-{}", since.as_secs()));
    let aside = PathBuf::from(name);
    let renamed = tokio::fs::rename(path, &aside).await;
    renamed.map(|()| aside).map_err(|source| DiskError::SetAside { path: path.to_owned(), source })
}

/// Makes the file of a disk larger; a running guest is told through [`super::Guest::grow_disk`].
///
/// # Errors
/// When it would shrink, or the file system refuses.
pub async fn grow(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let failed = |source| DiskError::Grow { path: path.to_owned(), source };
    let file = tokio::fs::File::options().write(true).open(path).await.map_err(failed)?;
    if file.metadata().await.map_err(failed)?.len() > bytes {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "a disk cannot shrink")));
    }
    file.set_len(bytes).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_sparse_and_grows_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.img");
        create(&path, 1 << 30).await.unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1 << 30, 0o600));
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 64 << 20);
        grow(&path, 2 << 30).await.unwrap();
        assert!(matches!(grow(&path, 1 << 30).await, Err(DiskError::Grow { .. })));
        let aside = set_aside(&path).await.unwrap();
        assert!(!path.exists() && aside.exists());
    }
}
