//! Puts compressed frames, in their order, into packs.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::snapshots::digest::PackId;
use crate::snapshots::manifest::LONGEST_PACK;

/// A frame after compression.
pub struct PackedFrame {
    pub number: u32,
    pub bytes: Vec<u8>,
    /// Before compression, bytes.
    pub raw: u32,
    /// The frames of its group that follow.
    pub more: u32,
}

/// Where a frame came to lie in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laid {
    pub number: u32,
    pub offset: u32,
    pub length: u32,
    pub raw: u32,
}

/// A pack ready to be uploaded.
#[derive(Debug, Clone)]
pub struct ReadyPack {
    pub id: PackId,
    pub bytes: Bytes,
    pub frames: Vec<Laid>,
}

/// A full pack whose digest is still to be computed: a job for any thread.
pub struct FullPack {
    bytes: Vec<u8>,
    frames: Vec<Laid>,
}

impl FullPack {
    pub fn seal(self) -> ReadyPack {
        ReadyPack { id: PackId(Sha256::digest(&self.bytes).into()), bytes: self.bytes.into(), frames: self.frames }
    }
}

/// Takes frames as they get ready and puts them in order.
#[derive(Default)]
pub struct Assembler {
    early: BTreeMap<u32, PackedFrame>,
    next: u32,
    group: Vec<PackedFrame>,
    bytes: Vec<u8>,
    frames: Vec<Laid>,
}

impl Assembler {
    /// Takes in a frame; the packs that are full now.
    pub fn frame(&mut self, frame: PackedFrame) -> Vec<FullPack> {
        self.early.insert(frame.number, frame);
        let mut full = Vec::new();
        while let Some(frame) = self.early.remove(&self.next) {
            self.next += 1;
            let complete = frame.more == 0;
            self.group.push(frame);
            if complete {
                full.extend(self.lay());
            }
        }
        full
    }

    /// Lays the group at hand, into a new pack when it does not fit into this one.
    fn lay(&mut self) -> Option<FullPack> {
        let length: usize = self.group.iter().map(|frame| frame.bytes.len()).sum();
        let full = if self.bytes.len() + length > LONGEST_PACK as usize { self.finish() } else { None };
        for frame in self.group.drain(..) {
            let offset = self.bytes.len() as u32;
            self.frames.push(Laid { number: frame.number, offset, length: frame.bytes.len() as u32, raw: frame.raw });
            self.bytes.extend_from_slice(&frame.bytes);
        }
        full
    }

    /// Ends the pack at hand; `None` when there is nothing in it.
    pub fn finish(&mut self) -> Option<FullPack> {
        if self.bytes.is_empty() {
            return None;
        }
        Some(FullPack { bytes: std::mem::take(&mut self.bytes), frames: std::mem::take(&mut self.frames) })
    }
}
