//! Writing manifests.

use std::io;

use workflows::contract::SnapshotId;

use super::super::entry::{Content, Entry, Node};
use super::wire::{put_bytes, put_number, put_signed};
use super::{ENTRIES_MAGIC, Layout, MAGIC, Manifest};

/// Of the manifest. Most of it is digests, which do not get smaller; a higher level finds little more in the paths.
const LEVEL: i32 = 3;

/// The snapshot id of an entry list: BLAKE3 of its canonical encoding, without times.
pub fn snapshot_id(entries: &[Entry]) -> SnapshotId {
    id_of_encoded(&encode_entries(entries))
}

#[expect(clippy::expect_used, reason = "64 hex digits are a snapshot id")]
pub(super) fn id_of_encoded(encoded: &[u8]) -> SnapshotId {
    blake3::hash(encoded).to_hex().parse().expect("64 hex digits")
}

impl Manifest {
    /// The manifest as it is stored, and the snapshot's id. Equal manifests have equal bytes.
    ///
    /// # Errors
    /// zstd's, for want of memory.
    pub fn encode(&self) -> io::Result<(SnapshotId, Vec<u8>)> {
        let entries = encode_entries(&self.entries);
        let id = id_of_encoded(&entries);
        let mut body = Vec::with_capacity(entries.len() + self.entries.len() * 8);
        put_bytes(&mut body, &entries);
        put_times(&mut body, &self.entries);
        put_packs(&mut body, &self.layout);
        self.put_places(&mut body);
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        // Entries have their id; this is for the rest.
        compressor.include_checksum(true)?;
        let mut stored = MAGIC.to_vec();
        stored.extend(compressor.compress(&body)?);
        Ok((id, stored))
    }

    /// In the order of first use: most blobs follow the one before, which makes their places zeros.
    fn put_places(&self, out: &mut Vec<u8>) {
        let (mut frame, mut end) = (0_i64, 0_i64);
        for blob in self.blobs() {
            let Some(place) = self.layout.places.get(&blob.id) else { continue };
            let step = i64::from(place.frame) - frame;
            put_signed(out, step);
            put_signed(out, i64::from(place.offset) - if step == 0 { end } else { 0 });
            (frame, end) = (i64::from(place.frame), i64::from(place.offset) + i64::from(place.size));
        }
    }
}

fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 100);
    out.extend_from_slice(ENTRIES_MAGIC);
    put_number(&mut out, entries.len() as u64);
    for entry in entries {
        put_entry(&mut out, entry);
    }
    out
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let kind = match &entry.node {
        Node::Directory => 0,
        Node::File(Content::Whole(_)) => 1,
        Node::Symlink(_) => 2,
        Node::File(Content::Chunks(_)) => 3,
    };
    put_bytes(out, &entry.path);
    put_number(out, u64::from(entry.mode) << 2 | kind);
    match &entry.node {
        Node::Directory => {}
        Node::Symlink(target) => put_bytes(out, target),
        Node::File(content) => {
            if let Content::Chunks(blobs) = content {
                put_number(out, blobs.len() as u64);
            }
            for blob in content.blobs() {
                put_number(out, u64::from(blob.size));
                out.extend_from_slice(&blob.id.0);
            }
        }
    }
}

fn put_times(out: &mut Vec<u8>, entries: &[Entry]) {
    let mut last = 0;
    for entry in entries {
        put_signed(out, entry.mtime - last);
        last = entry.mtime;
    }
}

fn put_packs(out: &mut Vec<u8>, layout: &Layout) {
    put_number(out, layout.packs.len() as u64);
    let mut frames = layout.frames.as_slice();
    for (index, pack) in layout.packs.iter().enumerate() {
        let count = frames.iter().take_while(|frame| frame.pack as usize == index).count();
        let (own, rest) = frames.split_at(count);
        frames = rest;
        out.extend_from_slice(&pack.id.0);
        put_number(out, pack.size);
        put_number(out, count as u64);
        let mut end = 0;
        for frame in own {
            put_number(out, u64::from(frame.offset - end));
            put_number(out, u64::from(frame.length));
            put_number(out, u64::from(frame.raw));
            end = frame.offset + frame.length;
        }
    }
}
