//! What an entry list must keep to. Checked when a manifest is read, whoever wrote it, and before one is written.

use std::cmp::Ordering;

use buildkit::compare_paths;

use super::super::Caps;
use super::super::entry::{Content, Entry, LONGEST_BLOB, Node, RESERVED, TIMES, parent, show};

/// The longest name in a directory that Linux has.
const LONGEST_NAME: usize = 255;
/// The longest target of a symbolic link that Linux has.
const LONGEST_LINK: usize = 4095;

/// An entry list that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("more than {0} entries")]
    Entries(u64),
    #[error("more than {0} bytes of content")]
    Bytes(u64),
    #[error("{}: {rule}", show(.path))]
    Entry { path: Vec<u8>, rule: Rule },
}

/// What is wrong with one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    #[error("the path is empty")]
    Empty,
    #[error("the path is absolute")]
    Absolute,
    #[error("the path has a part that is empty, \".\" or \"..\"")]
    Dots,
    #[error("the path has a NUL byte")]
    Nul,
    #[error("the path is longer than {0} bytes")]
    Length(usize),
    #[error("the path is deeper than {0}")]
    Depth(usize),
    #[error("a name is longer than 255 bytes")]
    Name,
    #[error("the path is listed twice")]
    Repeated,
    #[error("the path is out of order")]
    Order,
    #[error("the path is in a directory that is not listed")]
    Orphan,
    #[error("the path passes through a symbolic link")]
    ThroughSymlink,
    #[error("the path passes through a file")]
    ThroughFile,
    #[error(".kiln is reserved: a directory of plain files only")]
    Reserved,
    #[error("the mode has bits that snapshots do not keep")]
    Mode,
    #[error("the time is out of range")]
    Time,
    #[error("the link's target is empty, too long, or has a NUL byte")]
    Target,
    #[error("the file is cut into chunks in a way that no client does")]
    Chunks,
}

/// Sees the entries of a list in order.
pub struct Checker<'a> {
    caps: &'a Caps,
    entries: u64,
    bytes: u64,
    last: Option<(Vec<u8>, Passage)>,
    /// The directories that the entry seen last is in, or is.
    directories: Vec<Vec<u8>>,
}

/// Whether there can be a path through an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    Directory,
    File,
    Symlink,
}

impl<'a> Checker<'a> {
    pub fn new(caps: &'a Caps) -> Self {
        Self { caps, entries: 0, bytes: 0, last: None, directories: Vec::new() }
    }

    /// # Errors
    /// The first rule that the list breaks with this entry.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), Broken> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size());
        if self.entries > self.caps.entries {
            return Err(Broken::Entries(self.caps.entries));
        }
        if self.bytes > self.caps.bytes {
            return Err(Broken::Bytes(self.caps.bytes));
        }
        let checks =
            check_path(&entry.path, self.caps).and_then(|()| self.check_place(entry)).and_then(|()| check_node(entry));
        checks.map_err(|rule| Broken::Entry { path: entry.path.clone(), rule })?;
        self.remember(entry);
        Ok(())
    }

    fn check_place(&mut self, entry: &Entry) -> Result<(), Rule> {
        if let Some((last, passage)) = &self.last {
            match compare_paths(last, &entry.path) {
                Ordering::Equal => return Err(Rule::Repeated),
                Ordering::Greater => return Err(Rule::Order),
                Ordering::Less => {}
            }
            match passage {
                Passage::Symlink if is_below(&entry.path, last) => return Err(Rule::ThroughSymlink),
                Passage::File if is_below(&entry.path, last) => return Err(Rule::ThroughFile),
                _ => {}
            }
        }
        while self.directories.last().is_some_and(|directory| !is_below(&entry.path, directory)) {
            self.directories.pop();
        }
        if parent(&entry.path) != self.directories.last().map_or(b"".as_slice(), Vec::as_slice) {
            return Err(Rule::Orphan);
        }
        if entry.path.starts_with(RESERVED) { check_reserved(entry) } else { Ok(()) }
    }

    fn remember(&mut self, entry: &Entry) {
        let passage = match entry.node {
            Node::Directory => Passage::Directory,
            Node::File(_) => Passage::File,
            Node::Symlink(_) => Passage::Symlink,
        };
        if passage == Passage::Directory {
            self.directories.push(entry.path.clone());
        }
        self.last = Some((entry.path.clone(), passage));
    }
}

fn check_path(path: &[u8], caps: &Caps) -> Result<(), Rule> {
    if path.is_empty() {
        return Err(Rule::Empty);
    }
    if path.len() > caps.path {
        return Err(Rule::Length(caps.path));
    }
    if path[0] == b'/' {
        return Err(Rule::Absolute);
    }
    if path.contains(&0) {
        return Err(Rule::Nul);
    }
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        depth += 1;
        match part {
            b"" | b"." | b".." => return Err(Rule::Dots),
            long if long.len() > LONGEST_NAME => return Err(Rule::Name),
            _ => {}
        }
    }
    if depth > caps.depth { Err(Rule::Depth(caps.depth)) } else { Ok(()) }
}

fn check_reserved(entry: &Entry) -> Result<(), Rule> {
    let fits = match entry.path.strip_prefix(RESERVED) {
        Some(b"") => entry.is_directory(),
        Some([b'/', name @ ..]) => matches!(entry.node, Node::File(_)) && !name.contains(&b'/'),
        // `.kilnignore` and the like.
        _ => true,
    };
    if fits { Ok(()) } else { Err(Rule::Reserved) }
}

fn check_node(entry: &Entry) -> Result<(), Rule> {
    let mode = match entry.node {
        Node::Directory => entry.mode & !0o1755 == 0,
        Node::File(_) => entry.mode & !0o7755 == 0,
        Node::Symlink(_) => entry.mode == 0o777,
    };
    if !mode {
        return Err(Rule::Mode);
    }
    if !TIMES.contains(&entry.mtime) {
        return Err(Rule::Time);
    }
    match &entry.node {
        Node::Symlink(target) if target.is_empty() || target.len() > LONGEST_LINK || target.contains(&0) => {
            Err(Rule::Target)
        }
        Node::File(content) => check_content(content),
        _ => Ok(()),
    }
}

fn check_content(content: &Content) -> Result<(), Rule> {
    let fits = |size: u32| u64::from(size) <= LONGEST_BLOB;
    let good = match content {
        Content::Whole(blob) => fits(blob.size),
        Content::Chunks(blobs) => {
            content.size() > LONGEST_BLOB && blobs.iter().all(|blob| blob.size > 0 && fits(blob.size))
        }
    };
    if good { Ok(()) } else { Err(Rule::Chunks) }
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}
