//! The layout of a new snapshot: its own packs, and those frames of the base that it still uses.

use std::collections::{HashMap, HashSet};

use super::assemble::Laid;
use crate::snapshots::digest::{BlobId, PackId};
use crate::snapshots::entry::{Blob, Entry, Node};
use crate::snapshots::manifest::{Frame, Layout, Pack, Place};

/// A new pack without its bytes.
pub struct NewPack {
    pub id: PackId,
    pub size: u64,
    pub frames: Vec<Laid>,
}

/// `new` says where new blobs are, in frames by number; everything else that `entries` hold is in the base. Only what is used is kept: the
/// base's packs in the base's order, then the new ones.
pub fn layout(entries: &[Entry], base: &Layout, new: &HashMap<BlobId, Place>, packs: &[NewPack]) -> Layout {
    let blobs = used_blobs(entries);
    let mut layout = Layout::default();
    let base_frames = keep_base_frames(&mut layout, base, &blobs, new);
    let new_frames = add_new_frames(&mut layout, packs, used_new_frames(&blobs, new));
    for blob in blobs {
        let (place, frames) = match new.get(&blob.id) {
            Some(place) => (place, &new_frames),
            None => match base.places.get(&blob.id) {
                Some(place) => (place, &base_frames),
                None => continue,
            },
        };
        if let Some(&frame) = frames.get(&place.frame) {
            layout.places.insert(blob.id, Place { frame, ..*place });
        }
    }
    layout
}

fn used_blobs(entries: &[Entry]) -> Vec<Blob> {
    let files =
        entries.iter().filter_map(|entry| if let Node::File(content) = &entry.node { Some(content) } else { None });
    files.flat_map(|content| content.blobs()).copied().filter(|blob| blob.size > 0).collect()
}

/// Which new frames hold something that is used: all but those of a file that changed while it was read.
fn used_new_frames(blobs: &[Blob], new: &HashMap<BlobId, Place>) -> HashSet<u32> {
    let places = blobs.iter().filter_map(|blob| new.get(&blob.id));
    let frames = |place: &Place| {
        let long = place.size.div_ceil(crate::snapshots::manifest::LONGEST_FRAME);
        place.frame..place.frame + long.max(1)
    };
    places.flat_map(frames).collect()
}

/// From the base's index of a frame to the new one.
fn keep_base_frames(
    layout: &mut Layout,
    base: &Layout,
    blobs: &[Blob],
    new: &HashMap<BlobId, Place>,
) -> HashMap<u32, u32> {
    let places = blobs.iter().filter(|blob| !new.contains_key(&blob.id)).filter_map(|blob| base.places.get(&blob.id));
    let used: HashSet<u32> =
        places.flat_map(|place| base.frames_of(place)).flatten().map(|frame| frame as u32).collect();
    let mut renumbered = HashMap::with_capacity(used.len());
    let mut last = None;
    for (index, frame) in base.frames.iter().enumerate().filter(|(index, _)| used.contains(&(*index as u32))) {
        if last != Some(frame.pack) {
            layout.packs.push(base.packs[frame.pack as usize]);
            last = Some(frame.pack);
        }
        renumbered.insert(index as u32, layout.frames.len() as u32);
        layout.frames.push(Frame { pack: layout.packs.len() as u32 - 1, ..*frame });
    }
    renumbered
}

/// From a new frame's number to its index.
fn add_new_frames(layout: &mut Layout, packs: &[NewPack], used: HashSet<u32>) -> HashMap<u32, u32> {
    let mut renumbered = HashMap::with_capacity(used.len());
    for pack in packs {
        let frames: Vec<_> = pack.frames.iter().filter(|laid| used.contains(&laid.number)).collect();
        if frames.is_empty() {
            continue;
        }
        let index = layout.packs.len() as u32;
        layout.packs.push(Pack { id: pack.id, size: pack.size });
        for laid in frames {
            renumbered.insert(laid.number, layout.frames.len() as u32);
            layout.frames.push(Frame { pack: index, offset: laid.offset, length: laid.length, raw: laid.raw });
        }
    }
    renumbered
}
