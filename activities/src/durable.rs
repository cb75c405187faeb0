//! Files that a power cut leaves whole: with what they had before, or with what they have now.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Writes `content` beside `file` and renames it into place; it is on the disk when this returns.
///
/// # Errors
/// It cannot be written; then the former file is there.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut new = File::create(&temporary)?;
    new.write_all(content)?;
    new.sync_all()?;
    fs::rename(&temporary, file)?;
    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("epoch");
        replace(&file, b"10").unwrap();
        replace(&file, b"9").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"9");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none/file"), b"x").is_err());
    }
}
