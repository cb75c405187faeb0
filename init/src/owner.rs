//! Whose cache disk it is. A copy of another cell's disk keeps the layers and forgets whose it was.
//!
//! A builder keeps on the disk what makes it answer for its cell: its epoch, task tokens of attempts that run, logs not sent yet. A copy
//! that came up with them would end the other cell's attempts. BuildKit's records of past builds are the other cell's too.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use crate::console;

/// The cell's id, on its cache disk.
const FILE: &str = "cell";
/// What is of one cell only, below the disk's root: the builder's directory (`cell.dir` of its settings), BuildKit's history.
const PERSONAL: [&str; 2] = ["builder", "buildkit/history.db"];

/// Makes the disk mounted at `root` this cell's, for as long as no other cell gets a copy of it. `is_copy`: the host says that it was
/// copied, so one without an owner is another's too.
pub fn claim(root: &Path, id: &str, is_copy: bool) -> io::Result<()> {
    let file = root.join(FILE);
    let owner = match fs::read_to_string(&file) {
        Ok(owner) if owner == id => return Ok(()),
        Ok(owner) => Some(owner),
        Err(error) if error.kind() == ErrorKind::NotFound => is_copy.then(|| "another cell".to_owned()),
        Err(error) => return Err(error),
    };
    if let Some(owner) = owner {
        console::say(&format!("the cache disk is a copy of that of {owner}: its layers stay, the rest is forgotten"));
        PERSONAL.iter().try_for_each(|path| remove(&root.join(path)))?;
    }
    // Only now, and not before that is on the disk: a claim that was broken off is begun anew.
    let new = root.join("cell.new");
    let mut written = File::create(&new)?;
    written.write_all(id.as_bytes())?;
    written.sync_all()?;
    fs::rename(new, file)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mounted disk as a cell leaves it.
    fn disk(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("kiln-owner-{}-{name}", std::process::id()));
        for file in ["builder/epoch", "buildkit/history.db", "buildkit/cache.db"] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn left(root: &Path) -> [bool; 3] {
        ["builder", "buildkit/history.db", "buildkit/cache.db"].map(|file| root.join(file).exists())
    }

    #[test]
    fn a_copy_keeps_the_layers_only() {
        let root = disk("copy");
        claim(&root, "main", false).unwrap();
        claim(&root, "main", false).unwrap();
        assert_eq!(left(&root), [true; 3], "its own disk, for the first time and again");
        claim(&root, "clone", true).unwrap();
        assert_eq!(left(&root), [false, false, true]);
        fs::create_dir(root.join("builder")).unwrap();
        claim(&root, "clone", true).unwrap();
        assert_eq!(left(&root), [true, false, true], "what the clone wrote is its own");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_copy_of_a_disk_without_an_owner_is_a_copy() {
        let root = disk("old");
        claim(&root, "clone", true).unwrap();
        assert_eq!(left(&root), [false, false, true]);
        fs::remove_dir_all(root).unwrap();
    }
}
