//! Puts new blobs into frames in the snapshot's order: small blobs share a frame, a long one has frames of its own.

use std::collections::HashMap;

use crate::snapshots::digest::BlobId;
use crate::snapshots::entry::Blob;
use crate::snapshots::manifest::{LONGEST_FRAME, Layout, Place};

/// A frame before compression. Those of one long blob form a group, which must not be spread over packs.
pub struct RawFrame {
    /// Counts from 0 in the order of frames.
    pub number: u32,
    pub bytes: Vec<u8>,
    /// The frames of the group that follow this one.
    pub more: u32,
}

/// Decides what is new. Blobs have to come in the snapshot's order: packs are then the same each time.
pub struct Framer<'a> {
    base: &'a Layout,
    places: HashMap<BlobId, Place>,
    /// Small blobs waiting for their frame to be full, with where in it they are.
    open: Vec<u8>,
    waiting: Vec<(Blob, u32)>,
    next: u32,
}

impl<'a> Framer<'a> {
    pub fn new(base: &'a Layout) -> Self {
        Self { base, places: HashMap::new(), open: Vec::new(), waiting: Vec::new(), next: 0 }
    }

    /// Takes in a blob; what is full goes to `emit`.
    pub fn blob(&mut self, blob: Blob, content: &[u8], emit: &mut impl FnMut(RawFrame)) {
        if blob.size == 0 || self.base.places.contains_key(&blob.id) || self.places.contains_key(&blob.id) {
            return;
        }
        if blob.size > LONGEST_FRAME {
            return self.long_blob(blob, content, emit);
        }
        if self.open.len() + content.len() > LONGEST_FRAME as usize {
            self.close(emit);
        }
        let offset = self.open.len() as u32;
        if self.open.capacity() == 0 {
            self.open.reserve_exact(LONGEST_FRAME as usize);
        }
        self.open.extend_from_slice(content);
        self.waiting.push((blob, offset));
        // Known from here on; its frame's number is set when the frame is closed.
        self.places.insert(blob.id, Place { frame: u32::MAX, offset, size: blob.size });
    }

    fn long_blob(&mut self, blob: Blob, content: &[u8], emit: &mut impl FnMut(RawFrame)) {
        self.places.insert(blob.id, Place { frame: self.next, offset: 0, size: blob.size });
        let mut more = content.len().div_ceil(LONGEST_FRAME as usize) as u32;
        for part in content.chunks(LONGEST_FRAME as usize) {
            more -= 1;
            emit(RawFrame { number: self.next, bytes: part.to_vec(), more });
            self.next += 1;
        }
    }

    /// Closes the frame that small blobs share.
    fn close(&mut self, emit: &mut impl FnMut(RawFrame)) {
        if self.open.is_empty() {
            return;
        }
        for (blob, offset) in self.waiting.drain(..) {
            self.places.insert(blob.id, Place { frame: self.next, offset, size: blob.size });
        }
        emit(RawFrame { number: self.next, bytes: std::mem::take(&mut self.open), more: 0 });
        self.next += 1;
    }

    /// Ends the last frame; returns where the new blobs are, in frames by their number.
    pub fn finish(&mut self, emit: &mut impl FnMut(RawFrame)) -> HashMap<BlobId, Place> {
        self.close(emit);
        std::mem::take(&mut self.places)
    }
}
