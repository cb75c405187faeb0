//! Reading manifests, whoever wrote them, in memory that is counted on the way.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;

use workflows::contract::SnapshotId;

use super::super::Caps;
use super::super::digest::{BlobId, PackId};
use super::super::entry::{Blob, Content, Entry, Node};
use super::budget::{Budget, declared_length, memory_of};
use super::encode::id_of_encoded;
use super::rules::{Broken, Checker};
use super::wire::{Malformed, Reader};
use super::{ENTRIES_MAGIC, Frame, LONGEST_BODY, LONGEST_FRAME, LONGEST_PACK, Layout, MAGIC, Manifest, Pack, Place};

/// The largest window of the zstd frame, as a power of two: a manifest's own level takes 2 MiB.
const LARGEST_WINDOW: u32 = 23;

/// Why bytes are not a manifest that can be used. `Display` names the rule, and the entry or pack that breaks it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("the manifest is of a kind that is not known here")]
    Unknown,
    #[error("the manifest is damaged: it cannot be decompressed")]
    Compression,
    #[error("the manifest is longer than {0} bytes")]
    Length(u64),
    #[error("the manifest takes more than {0} bytes of memory")]
    Memory(u64),
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
        read(None, stored, caps, Keep::All)
    }

    /// As [`Manifest::decode`], for the manifest of a known snapshot.
    ///
    /// # Errors
    /// The first rule that it breaks, or that it is another snapshot's.
    pub fn decode_as(expected: &SnapshotId, stored: &[u8], caps: &Caps) -> Result<Self, FormatError> {
        read(Some(expected), stored, caps, Keep::All).map(|(_, manifest)| manifest)
    }

    /// Checks all that [`Manifest::decode_as`] does and returns the packs alone, in at most `memory_of` bytes of memory.
    ///
    /// # Errors
    /// As [`Manifest::decode_as`].
    pub fn check_as(expected: &SnapshotId, stored: &[u8], caps: &Caps) -> Result<Vec<Pack>, FormatError> {
        read(Some(expected), stored, caps, Keep::Packs).map(|(_, manifest)| manifest.layout.packs)
    }
}

/// What is made of a manifest beyond checking it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    /// Neither entries nor places.
    Packs,
}

/// The one way to read: what is checked, and what that may take in memory, does not depend on what is kept, so that every reader can
/// read what the api has accepted. The id comes first: nothing of another snapshot's manifest is looked at.
fn read(
    expected: Option<&SnapshotId>,
    stored: &[u8],
    caps: &Caps,
    keep: Keep,
) -> Result<(SnapshotId, Manifest), FormatError> {
    let mut budget = Budget::new(memory_of(stored));
    let body = decompress(stored, &mut budget)?;
    let mut body = Reader(&body);
    let encoded = body.bytes()?;
    let id = id_of_encoded(encoded);
    if let Some(expected) = expected.filter(|expected| **expected != id) {
        return Err(FormatError::Id { expected: expected.clone(), actual: id });
    }
    let (entries, blobs) = read_entries(encoded, &mut body, caps, keep, &mut budget)?;
    let blobs = first_uses(blobs, &mut budget)?;
    let (packs, frames) = read_packs(&mut body, &mut budget)?;
    let mut layout = Layout { packs, frames, places: HashMap::new() };
    read_places(&mut body, &blobs, keep, &mut layout)?;
    if !body.is_empty() {
        return Err(FormatError::Trailing);
    }
    Ok((id, Manifest { entries, layout }))
}

/// Bounded: what decompresses to more than a manifest can be, or than it declares, is refused before it takes the memory.
fn decompress(stored: &[u8], budget: &mut Budget) -> Result<Vec<u8>, FormatError> {
    let compressed = stored.strip_prefix(MAGIC).ok_or(FormatError::Unknown)?;
    let limit = LONGEST_BODY.min(budget.left());
    let length = declared_length(stored).unwrap_or(compressed.len() as u64 * 2);
    if length > LONGEST_BODY {
        return Err(FormatError::Length(LONGEST_BODY));
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(|_| FormatError::Compression)?;
    decoder.window_log_max(LARGEST_WINDOW).map_err(|_| FormatError::Compression)?;
    let mut body = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or(0));
    decoder.take(limit + 1).read_to_end(&mut body).map_err(|_| FormatError::Compression)?;
    if body.len() as u64 > limit {
        return Err(FormatError::Length(limit));
    }
    budget.take_bytes(body.len() as u64)?;
    Ok(body)
}

/// The entries, each checked as it is read with the time that stands elsewhere in the body, and every use of a blob that is not empty.
fn read_entries(
    encoded: &[u8],
    times: &mut Reader<'_>,
    caps: &Caps,
    keep: Keep,
    budget: &mut Budget,
) -> Result<(Vec<Entry>, Vec<Blob>), FormatError> {
    let mut reader = Reader(encoded.strip_prefix(ENTRIES_MAGIC).ok_or(FormatError::Unknown)?);
    let count = reader.number()?;
    if count > caps.entries {
        return Err(Broken::Entries(caps.entries).into());
    }
    let (mut entries, mut blobs) = (Vec::new(), Vec::new());
    if keep == Keep::All {
        // An entry takes three bytes or more, so a count that lies cannot make this large.
        entries.reserve_exact((count as usize).min(encoded.len() / 3));
    }
    let (mut checker, mut time) = (Checker::new(caps), 0_i64);
    for _ in 0..count {
        let mut entry = read_entry(&mut reader, budget)?;
        time = time.checked_add(times.signed()?).ok_or(Malformed::Number)?;
        entry.mtime = time;
        checker.entry(&entry)?;
        collect_blobs(&entry, &mut blobs, budget)?;
        if keep == Keep::All {
            entries.push(entry);
        }
    }
    if reader.is_empty() { Ok((entries, blobs)) } else { Err(FormatError::Trailing) }
}

fn collect_blobs(entry: &Entry, blobs: &mut Vec<Blob>, budget: &mut Budget) -> Result<(), FormatError> {
    let Node::File(content) = &entry.node else { return Ok(()) };
    let empty = BlobId::of(b"");
    for blob in content.blobs() {
        if (blob.size == 0) != (blob.id == empty) {
            return Err(FormatError::Sizes(blob.id));
        }
        if blob.size > 0 {
            budget.take::<Blob>(1)?;
            blobs.push(*blob);
        }
    }
    Ok(())
}

/// The distinct blobs in the order of their first use. One digest is one content, so it has one size.
fn first_uses(mut blobs: Vec<Blob>, budget: &mut Budget) -> Result<Vec<Blob>, FormatError> {
    budget.take_bytes(blobs.len() as u64 * 5)?;
    let mut order: Vec<u32> = (0..).take(blobs.len()).collect();
    let blob = |at: u32| &blobs[at as usize];
    order.sort_unstable_by(|&one, &other| blob(one).id.0.cmp(&blob(other).id.0).then(one.cmp(&other)));
    let mut is_first = vec![true; blobs.len()];
    for pair in order.windows(2) {
        let (before, after) = (blob(pair[0]), blob(pair[1]));
        if before.id == after.id {
            if before.size != after.size {
                return Err(FormatError::Sizes(after.id));
            }
            is_first[pair[1] as usize] = false;
        }
    }
    let mut firsts = is_first.into_iter();
    blobs.retain(|_| firsts.next().unwrap_or(false));
    Ok(blobs)
}

fn read_entry(reader: &mut Reader<'_>, budget: &mut Budget) -> Result<Entry, FormatError> {
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
                budget.take::<Blob>(1)?;
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

fn read_packs(reader: &mut Reader<'_>, budget: &mut Budget) -> Result<(Vec<Pack>, Vec<Frame>), FormatError> {
    let count = reader.number()?;
    let (mut packs, mut frames) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for index in 0..count {
        budget.take::<(Pack, PackId, u64)>(1)?;
        let pack = Pack { id: PackId(reader.digest()?), size: reader.number()? };
        let refuse = |rule| FormatError::Pack { id: pack.id, rule };
        if !(1..=LONGEST_PACK).contains(&pack.size) {
            return Err(refuse(PackRule::Size));
        }
        if !seen.insert(pack.id) {
            return Err(refuse(PackRule::Repeated));
        }
        read_frames(reader, index as u32, pack, &mut frames, budget)?;
        packs.push(pack);
    }
    Ok((packs, frames))
}

fn read_frames(
    reader: &mut Reader<'_>,
    index: u32,
    pack: Pack,
    frames: &mut Vec<Frame>,
    budget: &mut Budget,
) -> Result<(), FormatError> {
    let refuse = |rule| FormatError::Pack { id: pack.id, rule };
    let count = reader.number()?;
    let mut end = 0_u64;
    for _ in 0..count {
        budget.take::<Frame>(1)?;
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

fn read_places(reader: &mut Reader<'_>, blobs: &[Blob], keep: Keep, layout: &mut Layout) -> Result<(), FormatError> {
    let (mut frame, mut end) = (0_i64, 0_i64);
    for blob in blobs {
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
        if keep == Keep::All {
            layout.places.insert(blob.id, place);
        }
        end = offset + i64::from(blob.size);
    }
    Ok(())
}
