//! Who can change a file that this host runs, or takes orders from: root and the agent's own user, nobody else.
//!
//! The agent runs programs outside of every namespace, so whoever can write one, or a file that names one, owns the
//! host. Access control lists count too: their mask is shown as the group's permissions.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;

/// Write permission for the group and for others.
const OTHERS_WRITE: u32 = 0o022;
/// Set on a directory whose entries only their owners can replace.
const STICKY: u32 = 0o1000;

/// Checks a path without links, and every directory on its way: each could be replaced together with what it holds.
///
/// # Errors
/// The first that others can change, and why.
pub fn whole_path(real: &Path) -> Result<(), String> {
    real.ancestors().try_for_each(entry)
}

/// Checks a file or a directory alone.
///
/// # Errors
/// Why others can change it.
pub fn entry(path: &Path) -> Result<(), String> {
    let found = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    if ![0, own].contains(&found.uid()) {
        return Err(format!(
            "{} belongs to user {}: only root may write what a host runs",
            path.display(),
            found.uid()
        ));
    }
    let sticky = found.is_dir() && found.mode() & STICKY != 0;
    if found.mode() & OTHERS_WRITE != 0 && !sticky {
        let mode = found.mode() & 0o7777;
        return Err(format!("{} has mode {mode:o}: only root may write what a host runs", path.display()));
    }
    Ok(())
}

/// Reads a file that says what the host runs, if nobody else can change it or the directory it is in.
///
/// # Errors
/// It cannot be read, or others can change it.
pub fn read(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let checked = [file.parent(), Some(file)].into_iter().flatten().try_for_each(entry);
    checked.map_err(anyhow::Error::msg)?;
    Ok(text)
}
