//! Turns what a walk found into entries and packs: reads, hashes, cuts and compresses on all cores at once.
//!
//! ```text
//!  files in order ─► read + hash ─► in order: what is new? ─► frames ─► compress ─► in order: packs ─► seal ─► sink
//!                    any thread     one thread at a time               any thread    one at a time     any
//! ```
//!
//! The same tree against the same base gives the same packs, byte for byte, however many threads there are: so an upload that was killed
//! finds its packs stored. Memory is bounded: reading waits for compression, compression waits for the sink.

mod assemble;
mod cut;
mod frame;
mod layout;
mod pipeline;
mod read;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::Caps;
use super::entry::Entry;
use super::manifest::Manifest;
use super::manifest::rules::Checker;
use super::walk::{TreeError, Walked};
pub use assemble::ReadyPack;
use layout::layout;
pub use pipeline::{Sink, Stopped};

/// How hard to compress. Frames are short, so a higher level costs more than it saves.
const LEVEL: i32 = 3;

/// Why packing ended early.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The sink wants no more: its other end is gone.
    #[error("stopped")]
    Stopped,
}

/// Packs a tree. Packs go to `sink` as they get ready, from any thread. Times of entries that are as in the base are taken from it.
pub fn pack(
    walked: &Walked,
    base: &Manifest,
    caps: &Caps,
    threads: usize,
    sink: &dyn Sink,
) -> Result<Manifest, PackError> {
    let collected = pipeline::run(walked, &base.layout, threads, sink)?;
    let mut entries = collected.entries;
    keep_times(&mut entries, &base.entries);
    let mut checker = Checker::new(caps);
    entries.iter().try_for_each(|entry| checker.entry(entry)).map_err(TreeError::from)?;
    let layout = layout(&entries, &base.layout, &collected.places, &collected.packs);
    Ok(Manifest { entries, layout })
}

fn keep_times(entries: &mut [Entry], base: &[Entry]) {
    let known: HashMap<&[u8], &Entry> = base.iter().map(|entry| (entry.path.as_slice(), entry)).collect();
    for entry in entries {
        if let Some(before) = known.get(entry.path.as_slice()).filter(|before| before.same(entry)) {
            entry.mtime = before.mtime;
        }
    }
}
