//! Where a build's files come from: a directory of this machine, or anything that can list entries and open one.
//!
//! The daemon asks for a source by its name, says which paths it wants, compares what it is told with what it has
//! from earlier builds, and asks for the content of just the files that differ in size, mode or time.

mod directory;
mod failure;
mod filter;
mod follow;
mod listing;
#[cfg(test)]
mod tests;

pub use directory::Directory;
pub use filter::Selection;
pub use listing::compare_paths;

pub(crate) use failure::{SourceFailure, SourceFailures, SourceFault};
pub(crate) use filter::Filter;

use std::io;

/// One file, directory or symbolic link of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the source's root, `/`-separated, without `.`, `..` or empty parts. Any bytes but NUL.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits as in `st_mode`, with the set-user-id, set-group-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Bytes of content; 0 for anything but a file.
    pub size: u64,
    /// Modification time, nanoseconds since 1970. The daemon takes a file for unchanged when size, mode and this agree.
    pub mtime_ns: i64,
    /// Where a symbolic link points; empty for anything else.
    pub link: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    Directory,
    File,
    Symlink,
}

/// Files that a session offers to the daemon. All calls are blocking and are made from threads that may block; several
/// files are opened and read at once.
pub trait Source: Send + Sync + 'static {
    /// Every entry, in any order; the directories above each entry have to be entries themselves.
    fn entries(&self) -> io::Result<Vec<Entry>>;

    /// Hands the selected entries to `emit`, in the order of [`compare_paths`]. The default lists everything and picks;
    /// a source whose listing is dear walks only where the selection can match. An error of `emit` is to be returned
    /// as it is.
    fn select(&self, selection: &Selection, emit: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        listing::select(self.entries()?, selection, emit)
    }

    /// The files that will be opened next: a hint, so that a remote source can fetch them in parallel. Not every file
    /// hinted at is opened in the end.
    fn want(&self, _paths: &[&[u8]]) {}

    /// Opens a file for reading from its start. An error fails the build.
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn io::Read + Send>>;
}
