//! One file, directory or symbolic link of a snapshot, and the order entries stand in.

use super::digest::BlobId;

/// Files longer than this are cut into chunks; no blob is longer.
pub const LONGEST_BLOB: u64 = 4 << 20;
/// The directory of the root that holds a Dockerfile from outside the context. A tree's own `.kiln` is left out.
pub const RESERVED: &[u8] = b".kiln";
/// Whole seconds since 1970 that an entry's time can have: up to the year 2242. Earlier and later ones are brought into it.
pub const TIMES: std::ops::RangeInclusive<i64> = 0..=(1 << 33) - 1;
/// The nanoseconds of a stamp stay below this, so that rounding and truncating to seconds agree.
const STAMPS: u64 = 500_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the context, `/`-separated, without `.`, `..` or empty parts. Any bytes but NUL.
    pub path: Vec<u8>,
    /// Permission bits with the set-user-id, set-group-id and sticky bits; see `canonical_mode`.
    pub mode: u32,
    /// Seconds since 1970. No part of the snapshot's id.
    pub mtime: i64,
    pub node: Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Content),
    /// With its target.
    Symlink(Vec<u8>),
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Up to `LONGEST_BLOB` bytes.
    Whole(Blob),
    /// More: content-defined chunks, in order.
    Chunks(Vec<Blob>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub id: BlobId,
    /// Bytes, at most `LONGEST_BLOB`.
    pub size: u32,
}

impl Content {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.blobs().iter().map(|blob| u64::from(blob.size)).sum()
    }

    pub fn blobs(&self) -> &[Blob] {
        match self {
            Self::Whole(blob) => std::slice::from_ref(blob),
            Self::Chunks(blobs) => blobs,
        }
    }
}

impl Entry {
    /// Bytes of content; 0 for anything but a file.
    pub fn size(&self) -> u64 {
        if let Node::File(content) = &self.node { content.size() } else { 0 }
    }

    pub fn is_directory(&self) -> bool {
        self.node == Node::Directory
    }

    /// Whether this is the same file, directory or link as `other`, whatever its time.
    pub fn same(&self, other: &Self) -> bool {
        self.path == other.path && self.mode == other.mode && self.node == other.node
    }

    /// The time that buildkitd sees, nanoseconds since 1970. It takes a file for unchanged when size and time are those it knows, so bits
    /// of content, mode and link stand in the nanoseconds; images keep whole seconds.
    pub fn stamped_mtime(&self) -> i64 {
        self.mtime * 1_000_000_000 + self.stamp() as i64
    }

    fn stamp(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.mode.to_le_bytes());
        match &self.node {
            Node::Directory => {}
            Node::File(content) => content.blobs().iter().for_each(|blob| {
                hasher.update(&blob.id.0);
            }),
            Node::Symlink(target) => {
                hasher.update(target);
            }
        }
        let hash = hasher.finalize();
        let (first, _) = hash.as_bytes().split_at(8);
        first.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) % STAMPS
    }
}

/// The part of a mode that is kept: not the write bits of group and others, which come from the umask of whoever checked the tree out,
/// and no set-group-id of directories, which is inherited from where they were made. So the same tree is the same snapshot anywhere.
pub fn canonical_mode(mode: u32, directory: bool) -> u32 {
    mode & if directory { 0o1755 } else { 0o7755 }
}

/// The directory a path is in; empty for the root.
pub fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

/// A path as text for messages: what is not UTF-8 or not printable is escaped.
pub fn show(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for symbol in chunk.valid().chars() {
            if symbol.is_control() || symbol == '\\' {
                text.extend(symbol.escape_default());
            } else {
                text.push(symbol);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u32) -> Entry {
        let blob = Blob { id: BlobId::of(content), size: content.len() as u32 };
        Entry { path: b"f".into(), mode, mtime: 1_700_000_000, node: Node::File(Content::Whole(blob)) }
    }

    #[test]
    fn an_edit_that_keeps_size_and_time_changes_the_stamp() {
        let link = |target: &[u8]| Entry { node: Node::Symlink(target.into()), ..file(b"", 0o777) };
        let all = [file(b"one", 0o644), file(b"two", 0o644), file(b"one", 0o755), link(b"a"), link(b"b")];
        let stamps: std::collections::HashSet<_> = all.iter().map(Entry::stamped_mtime).collect();
        assert_eq!(stamps.len(), all.len());
        for entry in all {
            let (seconds, nanoseconds) = (entry.stamped_mtime() / 1_000_000_000, entry.stamped_mtime() % 1_000_000_000);
            assert_eq!(seconds, entry.mtime);
            assert!((0..500_000_000).contains(&nanoseconds));
        }
    }

    #[test]
    fn modes_do_not_depend_on_the_umask_or_an_inherited_group() {
        assert_eq!(canonical_mode(0o100664, false), 0o644);
        assert_eq!(canonical_mode(0o100775, false), 0o755);
        assert_eq!(canonical_mode(0o100600, false), 0o600);
        assert_eq!(canonical_mode(0o104755, false), 0o4755);
        assert_eq!(canonical_mode(0o042775, true), 0o755);
        assert_eq!(canonical_mode(0o041777, true), 0o1755);
    }

    #[test]
    fn shows_any_path_readably() {
        assert_eq!(show("grün/a b".as_bytes()), "grün/a b");
        assert_eq!(show(b"a\nb\\\xff"), r"a\nb\\\xff");
    }
}
