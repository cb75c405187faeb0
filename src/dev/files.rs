//! Writing the files of the data directory: whole or not at all, and readable by their owner alone.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Writes `content` with mode 0600 beside `file` and renames it into place, so that a reader sees the former file or this one.
pub fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = NamedTempFile::new_in(directory)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// As [`write()`], the value as JSON.
pub fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    write(file, &serde_json::to_vec_pretty(value)?)
}

/// The value a file holds; `None` when it is not there.
///
/// # Errors
/// When it cannot be read or is something else.
pub fn read_json<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.json");
        fs::write(&file, "longer than what follows").unwrap();
        write_json(&file, &[1, 2]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&file).unwrap(), Some(vec![1, 2]));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
