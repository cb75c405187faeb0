//! Snapshots: stored, immutable copies of source code, named by their content.
//!
//! ```text
//!  client (Uploader)                     api (SnapshotService)            cell (SnapshotSource)
//!  walk ─ hash ─ pack ─ begin ─────────► presigns what is not stored
//!              └─ PUT packs ─► object storage ◄──────────────────────────  ranged reads of what buildkitd asks for
//!  manifest ─ commit ──────────────────► checks, stores, moves `latest`
//! ```
//!
//! Nothing is unpacked on the way to buildkitd. The format is described in `docs/snapshots.md`.

mod digest;
mod entry;
mod manifest;
mod pack;
mod room;
mod service;
mod source;
#[cfg(test)]
mod tests;
mod upload;
mod walk;

pub use digest::{BlobId, PackId};
pub use entry::{Blob, Content, Entry, Node};
pub use manifest::{FormatError, Frame, LONGEST_MANIFEST, Layout, Manifest, Pack, Place};
pub use service::{Begun, Committed, PackRef, PackUpload, SnapshotError, SnapshotService};
#[cfg(any(test, fuzzing))]
pub(crate) use source::exercise_frame;
pub use source::{Fetched, SnapshotCache, SnapshotSource, SnapshotView, withdraw};
pub use upload::{ApiError, HttpApi, Progress, SnapshotApi, Summary, UploadError, Uploaded, Uploader};
pub use walk::{LeftOut, Tree, TreeError};

/// What a snapshot may hold at most. A manifest that breaks one is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    pub entries: u64,
    /// Content of all files together, bytes.
    pub bytes: u64,
    /// Bytes of a path.
    pub path: usize,
    /// Components of a path.
    pub depth: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 64 << 30, path: 4096, depth: 128 }
    }
}
