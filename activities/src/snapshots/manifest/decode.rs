//! Reading manifests, whoever wrote them.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;

use workflows::contract::SnapshotId;

use super::super::Caps;
use super::super::digest::{BlobId, PackId};
use super::super::entry::{Blob, Content, Entry, Node};
use super::encode::id_of_encoded;
use super::rules::{Broken, Checker};
use super::wire::{Malformed, Reader};
use super::{
    ENTRIES_MAGIC, Frame, LONGEST_BODY, LONGEST_FRAME, LONGEST_PACK, Layout, MAGIC, Manifest, Pack, Place,
    distinct_blobs,
};

/// Why bytes are not a manifest that can be used. `Display` names the rule, and the entry or pack that breaks it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("the manifest is of a kind that is not known here")]
    Unknown,
    #[error("the manifest is damaged: it cannot be decompressed")]
    Compression,
    #[error("the manifest is longer than {0} bytes")]
    Length(u64),
    #[error("the manifest is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("the manifest is malformed: bytes follow its end")]
    Trailing,
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("pack {id}: {rule}")]
    Pack { id: PackId, rule: PackRule },
    #[error("blob {0} has two sizes")]
    Sizes(BlobId),
    #[error("blob {0} is not within a pack")]
    Place(BlobId),
    #[error("the manifest is that of snapshot {actual}, expected {expected}")]
    Id { expected: SnapshotId, actual: SnapshotId },
}

/// What is wrong with a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackRule {
    #[error("it is listed twice")]
    Repeated,
    #[error("it is empty or longer than 8 MiB")]
    Size,
    #[error("a frame is not within it")]
    Range,
    #[error("a frame is empty or holds more than 256 KiB")]
    Frame,
}

impl Manifest {
    /// Reads a stored manifest and computes the id of the snapshot it describes.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn decode(stored: &[u8], caps: &Caps) -> Result<(SnapshotId, Self), FormatError> {
        let body = decompress(stored)?;
        let mut body = Reader(&body);
        let encoded = body.bytes()?;
        let id = id_of_encoded(encoded);
        let mut entries = read_entries(encoded, caps)?;
        read_times(&mut body, &mut entries)?;
        check_entries(&entries, caps)?;
        let (packs, frames) = read_packs(&mut body)?;
        let mut layout = Layout { packs, frames, places: HashMap::new() };
        read_places(&mut body, &entries, &mut layout)?;
        if !body.is_empty() {
            return Err(FormatError::Trailing);
        }
        Ok((id, Self { entries, layout }))
    }

    /// As [`Manifest::decode`], for the manifest of a known snapshot.
    ///
    /// # Errors
    /// The first rule that it breaks, or that it is another snapshot's.
    pub fn decode_as(expected: &SnapshotId, stored: &[u8], caps: &Caps) -> Result<Self, FormatError> {
        let (actual, manifest) = Self::decode(stored, caps)?;
        if actual == *expected { Ok(manifest) } else { Err(FormatError::Id { expected: expected.clone(), actual }) }
    }
}

/// Bounded: what decompresses to more than a manifest can be is refused before it takes the memory.
fn decompress(stored: &[u8]) -> Result<Vec<u8>, FormatError> {
    let compressed = stored.strip_prefix(MAGIC).ok_or(FormatError::Unknown)?;
    let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(|_| FormatError::Compression)?;
    let mut body = Vec::with_capacity((compressed.len() * 2).min(64 << 20));
    decoder.take(LONGEST_BODY + 1).read_to_end(&mut body).map_err(|_| FormatError::Compression)?;
    if body.len() as u64 > LONGEST_BODY { Err(FormatError::Length(LONGEST_BODY)) } else { Ok(body) }
}

fn read_entries(encoded: &[u8], caps: &Caps) -> Result<Vec<Entry>, FormatError> {
    let mut reader = Reader(encoded.strip_prefix(ENTRIES_MAGIC).ok_or(FormatError::Unknown)?);
    let count = reader.number()?;
    if count > caps.entries {
        return Err(Broken::Entries(caps.entries).into());
    }
    // An entry takes three bytes or more, so a count that lies cannot make this large.
    let mut entries = Vec::with_capacity((count as usize).min(encoded.len() / 3));
    for _ in 0..count {
        entries.push(read_entry(&mut reader)?);
    }
    if reader.is_empty() { Ok(entries) } else { Err(FormatError::Trailing) }
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let path = reader.bytes()?.to_vec();
    let kind = reader.small()?;
    let node = match kind & 3 {
        0 => Node::Directory,
        1 => Node::File(Content::Whole(read_blob(reader)?)),
        2 => Node::Symlink(reader.bytes()?.to_vec()),
        _ => {
            let count = reader.number()?;
            let mut blobs = Vec::new();
            for _ in 0..count {
                blobs.push(read_blob(reader)?);
            }
            Node::File(Content::Chunks(blobs))
        }
    };
    Ok(Entry { path, mode: kind >> 2, mtime: 0, node })
}

fn read_blob(reader: &mut Reader<'_>) -> Result<Blob, Malformed> {
    let size = reader.small()?;
    Ok(Blob { id: BlobId(reader.digest()?), size })
}

fn read_times(reader: &mut Reader<'_>, entries: &mut [Entry]) -> Result<(), Malformed> {
    let mut last = 0_i64;
    for entry in entries {
        last = last.checked_add(reader.signed()?).ok_or(Malformed::Number)?;
        entry.mtime = last;
    }
    Ok(())
}

fn check_entries(entries: &[Entry], caps: &Caps) -> Result<(), Broken> {
    let mut checker = Checker::new(caps);
    entries.iter().try_for_each(|entry| checker.entry(entry))
}

fn read_packs(reader: &mut Reader<'_>) -> Result<(Vec<Pack>, Vec<Frame>), FormatError> {
    let count = reader.number()?;
    let (mut packs, mut frames) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for index in 0..count {
        let pack = Pack { id: PackId(reader.digest()?), size: reader.number()? };
        let refuse = |rule| FormatError::Pack { id: pack.id, rule };
        if !(1..=LONGEST_PACK).contains(&pack.size) {
            return Err(refuse(PackRule::Size));
        }
        if !seen.insert(pack.id) {
            return Err(refuse(PackRule::Repeated));
        }
        read_frames(reader, index as u32, pack, &mut frames)?;
        packs.push(pack);
    }
    Ok((packs, frames))
}

fn read_frames(reader: &mut Reader<'_>, index: u32, pack: Pack, frames: &mut Vec<Frame>) -> Result<(), FormatError> {
    let refuse = |rule| FormatError::Pack { id: pack.id, rule };
    let count = reader.number()?;
    let mut end = 0_u64;
    for _ in 0..count {
        let (gap, length, raw) = (reader.small()?, reader.small()?, reader.small()?);
        let offset = end + u64::from(gap);
        end = offset + u64::from(length);
        if end > pack.size {
            return Err(refuse(PackRule::Range));
        }
        if length == 0 || !(1..=LONGEST_FRAME).contains(&raw) {
            return Err(refuse(PackRule::Frame));
        }
        // Within the pack, so within 32 bits.
        frames.push(Frame { pack: index, offset: offset as u32, length, raw });
    }
    Ok(())
}

fn read_places(reader: &mut Reader<'_>, entries: &[Entry], layout: &mut Layout) -> Result<(), FormatError> {
    let (mut frame, mut end) = (0_i64, 0_i64);
    for blob in distinct_blobs(entries) {
        let step = reader.signed()?;
        frame = frame.checked_add(step).ok_or(Malformed::Number)?;
        let base = if step == 0 { end } else { 0 };
        let offset = base.checked_add(reader.signed()?).ok_or(Malformed::Number)?;
        let wrong = || FormatError::Place(blob.id);
        let place = Place {
            frame: u32::try_from(frame).map_err(|_| wrong())?,
            offset: u32::try_from(offset).map_err(|_| wrong())?,
            size: blob.size,
        };
        layout.frames_of(&place).ok_or_else(wrong)?;
        layout.places.insert(blob.id, place);
        end = offset + i64::from(blob.size);
    }
    check_sizes(entries, layout)
}

/// One digest is one content, so it has one size.
fn check_sizes(entries: &[Entry], layout: &Layout) -> Result<(), FormatError> {
    let empty = BlobId::of(b"");
    let blobs =
        entries.iter().filter_map(|entry| if let Node::File(content) = &entry.node { Some(content) } else { None });
    for blob in blobs.flat_map(|content| content.blobs()) {
        let size = if blob.id == empty { 0 } else { layout.places.get(&blob.id).map_or(0, |place| place.size) };
        if size != blob.size || (blob.size == 0 && blob.id != empty) {
            return Err(FormatError::Sizes(blob.id));
        }
    }
    Ok(())
}
