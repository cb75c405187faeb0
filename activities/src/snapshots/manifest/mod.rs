//! Manifests: what is in a snapshot, and where in object storage its content is.
//!
//! Reading trusts nothing: sizes are bounded before anything is allocated, every number has one encoding, every entry keeps to the
//! [rules](rules), and every blob lies within its pack. The format is described in `docs/snapshots.md`.

mod budget;
mod decode;
mod encode;
pub mod rules;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;

use workflows::contract::SnapshotId;

use super::digest::{BlobId, PackId};
use super::entry::{Blob, Entry, Node};
pub use budget::{LONGEST_CHECK, memory_of};
pub use decode::FormatError;
pub use encode::snapshot_id;

/// Starts a manifest; the last part is the format's version.
const MAGIC: &[u8] = b"kiln-manifest 1\n";
/// Starts the canonical entry list, and so what the snapshot's id is the digest of.
const ENTRIES_MAGIC: &[u8] = b"kiln-entries 1\n";

/// The most bytes of a pack.
pub const LONGEST_PACK: u64 = 8 << 20;
/// The most bytes a frame holds before compression.
pub const LONGEST_FRAME: u32 = 256 << 10;
/// The most bytes of a manifest as stored: the api accepts no longer one, and every reader reads up to this. A million files take about
/// 50 MB, which are their digests.
pub const LONGEST_MANIFEST: u64 = 64 << 20;
/// The most bytes of a manifest before compression.
const LONGEST_BODY: u64 = 160 << 20;

/// A snapshot: its entries in order, and where their content is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    pub entries: Vec<Entry>,
    pub layout: Layout,
}

/// Where blobs are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pub packs: Vec<Pack>,
    /// Those of the first pack in the order of their offsets, then those of the next one.
    pub frames: Vec<Frame>,
    /// One for each distinct blob that is not empty.
    pub places: HashMap<BlobId, Place>,
}

/// An object of zstd frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    pub id: PackId,
    /// Bytes.
    pub size: u64,
}

/// A zstd frame that can be read by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Index in [`Layout::packs`].
    pub pack: u32,
    /// In the pack, bytes.
    pub offset: u32,
    /// Compressed, bytes.
    pub length: u32,
    /// Decompressed, bytes.
    pub raw: u32,
}

/// Where a blob begins. A blob that does not end in this frame begins it, fills it, and goes on in the frames that follow in the same
/// pack, of which all but the last one are full as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index in [`Layout::frames`].
    pub frame: u32,
    /// In the decompressed frame, bytes.
    pub offset: u32,
    /// Of the blob, bytes.
    pub size: u32,
}

impl Manifest {
    /// The digest of the entries, times apart.
    pub fn id(&self) -> SnapshotId {
        snapshot_id(&self.entries)
    }

    /// The distinct blobs that are not empty, in the order of their first use.
    fn blobs(&self) -> impl Iterator<Item = Blob> {
        distinct_blobs(&self.entries)
    }
}

/// The distinct blobs that are not empty, in the order of their first use.
fn distinct_blobs(entries: &[Entry]) -> impl Iterator<Item = Blob> {
    let mut seen = std::collections::HashSet::new();
    let files =
        entries.iter().filter_map(|entry| if let Node::File(content) = &entry.node { Some(content) } else { None });
    files.flat_map(|content| content.blobs()).copied().filter(move |blob| blob.size > 0 && seen.insert(blob.id))
}

impl Layout {
    /// The frames that hold a blob, or `None` when they do not hold all of it: then the place is wrong.
    pub fn frames_of(&self, place: &Place) -> Option<std::ops::Range<usize>> {
        let first = place.frame as usize;
        let start = self.frames.get(first)?;
        let mut held = start.raw.checked_sub(place.offset)?;
        let mut end = first + 1;
        while held < place.size {
            let full = self.frames[end - 1].raw == LONGEST_FRAME && place.offset == 0;
            let next = self.frames.get(end).filter(|next| full && next.pack == start.pack)?;
            held += next.raw;
            end += 1;
        }
        Some(first..end)
    }
}
