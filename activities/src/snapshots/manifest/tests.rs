use buildkit::compare_paths;
use proptest::prelude::*;

use super::super::Caps;
use super::super::entry::{Content, LONGEST_BLOB, canonical_mode, parent};
use super::decode::PackRule;
use super::rules::{Broken, Rule};
use super::*;

fn blob(content: &[u8]) -> Blob {
    Blob { id: BlobId::of(content), size: content.len() as u32 }
}

fn entry(path: &str, node: Node) -> Entry {
    let mode = if matches!(node, Node::Symlink(_)) { 0o777 } else { 0o755 };
    Entry { path: path.into(), mode, mtime: 1_700_000_000, node }
}

fn directory(path: &str) -> Entry {
    entry(path, Node::Directory)
}

fn file(path: &str, content: &str) -> Entry {
    entry(path, Node::File(Content::Whole(blob(content.as_bytes()))))
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, Node::Symlink(target.into()))
}

fn chunked(path: &str, sizes: &[u32]) -> Entry {
    let blobs = sizes.iter().enumerate().map(|(index, size)| Blob { id: BlobId([index as u8 + 1; 32]), size: *size });
    entry(path, Node::File(Content::Chunks(blobs.collect())))
}

/// Lays blobs out one after the other, small ones sharing frames.
fn lay_out(entries: Vec<Entry>) -> Manifest {
    let mut layout = Layout::default();
    let mut open: Option<(u32, u32)> = None;
    for blob in distinct_blobs(&entries) {
        let place = match open {
            Some((frame, used)) if used + blob.size <= LONGEST_FRAME => Place { frame, offset: used, size: blob.size },
            _ => Place { frame: layout.frames.len() as u32, offset: 0, size: blob.size },
        };
        layout.places.insert(blob.id, place);
        if place.offset > 0 {
            layout.frames[place.frame as usize].raw += blob.size;
        } else {
            let raws =
                std::iter::successors(Some(blob.size), |left| left.checked_sub(LONGEST_FRAME).filter(|left| *left > 0));
            for raw in raws.map(|left| left.min(LONGEST_FRAME)) {
                push_frame(&mut layout, raw, place.offset == 0 && blob.size > LONGEST_FRAME);
            }
        }
        open = Some((layout.frames.len() as u32 - 1, layout.frames.last().unwrap().raw));
        if blob.size > LONGEST_FRAME {
            open = None;
        }
    }
    Manifest { entries, layout }
}

/// Frames of 100 bytes, sixteen to a pack; the frames of one blob stay together.
fn push_frame(layout: &mut Layout, raw: u32, large: bool) {
    let frames = layout.frames.len() as u32;
    if layout.packs.is_empty() || (frames.is_multiple_of(16) && !large) {
        layout.packs.push(Pack { id: PackId([layout.packs.len() as u8; 32]), size: 100 });
    }
    let pack = layout.packs.len() as u32 - 1;
    let offset = layout.frames.last().filter(|last| last.pack == pack).map_or(0, |last| last.offset + last.length);
    layout.packs[pack as usize].size = u64::from(offset) + 100;
    layout.frames.push(Frame { pack, offset, length: 100, raw });
}

fn refusal(manifest: &Manifest) -> FormatError {
    let (_, stored) = manifest.encode().unwrap();
    Manifest::decode(&stored, &Caps::default()).unwrap_err()
}

fn broken_rule(entries: Vec<Entry>) -> Rule {
    match refusal(&lay_out(entries)) {
        FormatError::Broken(Broken::Entry { rule, .. }) => rule,
        other => panic!("{other}"),
    }
}

/// A body written by hand: as `encode` would store it.
fn stored(body: &[u8]) -> Vec<u8> {
    let mut stored = MAGIC.to_vec();
    stored.extend(zstd::bulk::compress(body, 1).unwrap());
    stored
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(|content| Node::File(Content::Whole(blob(&content)))),
        1 => Just(Node::Directory),
        1 => proptest::collection::vec(1_u8.., 1..20).prop_map(Node::Symlink),
        1 => proptest::collection::vec((any::<[u8; 32]>(), (1_u32 << 20)..(4 << 20)), 5..8).prop_map(|chunks| {
            Node::File(Content::Chunks(chunks.into_iter().map(|(id, size)| Blob { id: BlobId(id), size }).collect()))
        }),
    ]
}

/// Trees with odd names; what is above an entry becomes a directory.
fn tree() -> impl Strategy<Value = Vec<Entry>> {
    let path = "[a-c \n.é]{1,3}(/[ab]{1,2}){0,3}".prop_map(String::into_bytes);
    let odd = prop_oneof![4 => path, 1 => Just(vec![0xff, b'x'])];
    let entries = proptest::collection::vec((odd, node(), any::<u32>(), 0_i64..1 << 33), 0..30);
    entries.prop_map(|entries| {
        let mut tree: Vec<Entry> = Vec::new();
        for (path, node, mode, mtime) in entries {
            let clean = path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"." | b".."));
            let above = std::iter::successors(Some(parent(&path)), |path| Some(parent(path)))
                .take_while(|path| !path.is_empty());
            let above: Vec<_> = above.map(<[u8]>::to_vec).collect();
            if !clean || tree.iter().any(|old| above.contains(&old.path) && !old.is_directory()) {
                continue;
            }
            for path in above {
                if !tree.iter().any(|old| old.path == path) {
                    tree.push(Entry { path, mode: 0o755, mtime, node: Node::Directory });
                }
            }
            if !tree.iter().any(|old| old.path == path) {
                let mode = if matches!(node, Node::Symlink(_)) {
                    0o777
                } else {
                    canonical_mode(mode, node == Node::Directory)
                };
                tree.push(Entry { path, mode, mtime, node });
            }
        }
        tree.sort_by(|left, right| compare_paths(&left.path, &right.path));
        tree
    })
}

proptest! {
    #[test]
    fn a_manifest_comes_back_as_it_was(entries in tree()) {
        let manifest = lay_out(entries);
        let (id, stored) = manifest.encode().unwrap();
        let (read, again) = Manifest::decode(&stored, &Caps::default()).unwrap();
        prop_assert_eq!(&read, &id);
        prop_assert_eq!(&again, &manifest);
        prop_assert_eq!(again.encode().unwrap().1, stored);
    }

    #[test]
    fn any_change_of_an_entry_changes_the_id_and_times_do_not(entries in tree(), at: prop::sample::Index, byte: u8) {
        prop_assume!(!entries.is_empty());
        let id = snapshot_id(&entries);
        let at = at.index(entries.len());
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut entries = entries.clone();
            change(&mut entries[at]);
            snapshot_id(&entries)
        };
        prop_assert_eq!(&changed(&|entry| entry.mtime += 1), &id);
        prop_assert_ne!(&changed(&|entry| entry.mode ^= 0o100), &id);
        prop_assert_ne!(&changed(&|entry| entry.path.push(byte)), &id);
        prop_assert_ne!(&changed(&|entry| match &mut entry.node {
            Node::Directory => entry.node = Node::Symlink(vec![byte]),
            Node::Symlink(target) => target.push(byte),
            Node::File(Content::Whole(blob)) => blob.id.0[0] ^= byte | 1,
            Node::File(Content::Chunks(blobs)) => blobs[2].size -= 1,
        }), &id);
        let mut without = entries.clone();
        without.remove(at);
        prop_assert_ne!(&snapshot_id(&without), &id);
    }

    #[test]
    fn no_bytes_make_reading_panic(entries in tree(), at: prop::sample::Index, flip in 1_u8.., cut: prop::sample::Index) {
        let (_, good) = lay_out(entries).encode().unwrap();
        let mut body = zstd::bulk::decompress(&good[MAGIC.len()..], 1 << 20).unwrap();
        let at = at.index(body.len());
        body[at] ^= flip;
        let _ = Manifest::decode(&stored(&body), &Caps::default());
        let _ = Manifest::decode(&stored(&body[..cut.index(body.len())]), &Caps::default());
    }
}

#[test]
fn the_id_is_the_blake3_of_the_documented_bytes() {
    let entries = [directory("d"), file("d/f", "hi"), symlink("l", "d/f")];
    let hi = blake3::hash(b"hi");
    let expected = [
        b"kiln-entries 1\n\x03".as_slice(),
        b"\x01d\xb4\x0f",
        b"\x03d/f\xb5\x0f\x02",
        hi.as_bytes(),
        b"\x01l\xfe\x0f\x03d/f",
    ]
    .concat();
    assert_eq!(snapshot_id(&entries).as_str(), blake3::hash(&expected).to_hex().as_str());
}

#[test]
fn refuses_hostile_paths() {
    let long = "x".repeat(256);
    let deep = vec!["d"; 129].join("/");
    let too_long = vec!["x".repeat(200); 21].join("/");
    let cases = [
        (vec![file("", "x")], Rule::Empty),
        (vec![file("/etc/passwd", "x")], Rule::Absolute),
        (vec![file("../x", "x")], Rule::Dots),
        (vec![directory("a"), file("a/../../x", "x")], Rule::Dots),
        (vec![file("a//b", "x")], Rule::Dots),
        (vec![file("a/.", "x")], Rule::Dots),
        (vec![directory("a/")], Rule::Dots),
        (vec![file("a\0b", "x")], Rule::Nul),
        (vec![file(&long, "x")], Rule::Name),
        (vec![file(&deep, "x")], Rule::Depth(128)),
        (vec![file(&too_long, "x")], Rule::Length(4096)),
        (vec![file("a", "x"), file("a", "y")], Rule::Repeated),
        (vec![file("b", "x"), file("a", "y")], Rule::Order),
        (vec![directory("a"), directory("a-b"), file("a/c", "x")], Rule::Order),
        (vec![file("a/b", "x")], Rule::Orphan),
        (vec![directory("a"), directory("b"), file("b/c/d", "x")], Rule::Orphan),
        (vec![symlink("a", "/etc"), file("a/passwd", "x")], Rule::ThroughSymlink),
        (vec![file("a", "x"), file("a/b", "x")], Rule::ThroughFile),
        (vec![file(".kiln", "x")], Rule::Reserved),
        (vec![directory(".kiln"), symlink(".kiln/Dockerfile", "/etc/shadow")], Rule::Reserved),
        (vec![directory(".kiln"), directory(".kiln/d")], Rule::Reserved),
    ];
    for (entries, rule) in cases {
        assert_eq!(broken_rule(entries), rule);
    }
}

#[test]
fn refuses_entries_that_no_client_makes() {
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut entry = file("f", "x");
        change(&mut entry);
        broken_rule(vec![entry])
    };
    assert_eq!(with(&|entry| entry.mode = 0o775), Rule::Mode);
    assert_eq!(with(&|entry| entry.mode = 0o100_755), Rule::Mode);
    assert_eq!(with(&|entry| entry.mtime = -1), Rule::Time);
    assert_eq!(with(&|entry| entry.mtime = 1 << 33), Rule::Time);
    assert_eq!(broken_rule(vec![symlink("l", "")]), Rule::Target);
    assert_eq!(broken_rule(vec![symlink("l", "a\0")]), Rule::Target);
    assert_eq!(broken_rule(vec![symlink("l", &"x".repeat(4096))]), Rule::Target);
    assert_eq!(broken_rule(vec![chunked("c", &[100, 200])]), Rule::Chunks);
    let large = LONGEST_BLOB as u32;
    assert_eq!(broken_rule(vec![chunked("c", &[large + 1, 200])]), Rule::Chunks);
    assert_eq!(broken_rule(vec![chunked("c", &[large, 0, 7])]), Rule::Chunks);
}

#[test]
fn refuses_what_is_over_a_cap() {
    let entries = vec![file("a", "12345"), file("b", "12345"), file("c", "6")];
    let (_, stored) = lay_out(entries).encode().unwrap();
    let with = |caps: Caps| Manifest::decode(&stored, &caps).unwrap_err();
    assert!(Manifest::decode(&stored, &Caps { entries: 3, bytes: 11, path: 1, depth: 1 }).is_ok());
    assert_eq!(with(Caps { entries: 2, ..Caps::default() }), Broken::Entries(2).into());
    assert_eq!(with(Caps { bytes: 10, ..Caps::default() }), Broken::Bytes(10).into());
    assert_eq!(with(Caps { path: 0, ..Caps::default() }).to_string(), "a: the path is longer than 0 bytes");
}

#[test]
fn refuses_wrong_packs_frames_and_places() {
    let good = lay_out(vec![file("a", "12345"), file("b", "678")]);
    let with = |change: &dyn Fn(&mut Layout)| {
        let mut manifest = good.clone();
        change(&mut manifest.layout);
        refusal(&manifest)
    };
    let pack = |rule| FormatError::Pack { id: PackId([0; 32]), rule };
    assert_eq!(with(&|layout| layout.packs[0].size = 0), pack(PackRule::Size));
    assert_eq!(with(&|layout| layout.packs[0].size = LONGEST_PACK + 1), pack(PackRule::Size));
    assert_eq!(with(&|layout| layout.packs[0].size = 99), pack(PackRule::Range));
    assert_eq!(with(&|layout| layout.frames[0].offset = 1), pack(PackRule::Range));
    assert_eq!(with(&|layout| layout.frames[0].raw = LONGEST_FRAME + 1), pack(PackRule::Frame));
    assert_eq!(with(&|layout| layout.frames[0].length = 0), pack(PackRule::Frame));
    assert_eq!(with(&|layout| layout.packs.push(layout.packs[0])), pack(PackRule::Repeated));

    let second = BlobId::of(b"678");
    assert_eq!(with(&|layout| layout.frames[0].raw = 7), FormatError::Place(second));
    assert_eq!(with(&|layout| layout.places.get_mut(&second).unwrap().offset = 6), FormatError::Place(second));
    assert_eq!(with(&|layout| layout.places.get_mut(&second).unwrap().frame = 1), FormatError::Place(second));

    let mut two_sizes = good.clone();
    two_sizes.entries.push(entry("c", Node::File(Content::Whole(Blob { id: second, size: 2 }))));
    assert_eq!(refusal(&two_sizes), FormatError::Sizes(second));
    let mut no_bytes = good.clone();
    no_bytes.entries.push(entry("c", Node::File(Content::Whole(Blob { id: BlobId([7; 32]), size: 0 }))));
    assert_eq!(refusal(&no_bytes), FormatError::Sizes(BlobId([7; 32])));
}

#[test]
fn a_blob_may_not_go_on_in_another_pack_or_from_a_frame_that_is_not_full() {
    let mut manifest = lay_out(vec![chunked("c", &[3 << 20, 2 << 20])]);
    assert!(Manifest::decode(&manifest.encode().unwrap().1, &Caps::default()).is_ok());
    manifest.layout.frames[1].raw = 1000;
    assert_eq!(refusal(&manifest), FormatError::Place(BlobId([1; 32])));
    manifest = lay_out(vec![chunked("c", &[3 << 20, 2 << 20])]);
    manifest.layout.packs.push(Pack { id: PackId([9; 32]), size: 5000 });
    for frame in &mut manifest.layout.frames[3..] {
        (frame.pack, frame.offset) = (1, frame.offset - 300);
    }
    assert_eq!(refusal(&manifest), FormatError::Place(BlobId([1; 32])));
}

#[test]
fn refuses_what_is_not_a_manifest() {
    let refuse = |stored: &[u8]| Manifest::decode(stored, &Caps::default()).unwrap_err();
    assert_eq!(refuse(b""), FormatError::Unknown);
    assert_eq!(refuse(b"kiln-manifest 2\n"), FormatError::Unknown);
    assert_eq!(refuse(MAGIC), FormatError::Compression);
    assert_eq!(refuse(&stored(b"")), FormatError::Malformed(wire::Malformed::Truncated));
    assert_eq!(refuse(&[MAGIC, b"no zstd"].concat()), FormatError::Compression);
    let (_, mut good) = lay_out(vec![file("a", "x")]).encode().unwrap();
    let last = good.len() - 1;
    good[last] ^= 1;
    assert_eq!(refuse(&good), FormatError::Compression);
    let mut body = Vec::new();
    wire::put_bytes(&mut body, &[ENTRIES_MAGIC, b"\x00"].concat());
    body.extend(b"\x00");
    assert!(Manifest::decode(&stored(&body), &Caps::default()).is_ok());
    body.push(0);
    assert_eq!(refuse(&stored(&body)), FormatError::Trailing);
    // A count that promises more than there is.
    let mut body = Vec::new();
    wire::put_bytes(&mut body, &[ENTRIES_MAGIC, b"\xc0\x84\x3d"].concat());
    assert_eq!(refuse(&stored(&body)), FormatError::Malformed(wire::Malformed::Truncated));
}

#[test]
fn a_small_manifest_that_decompresses_to_a_huge_one_is_refused() {
    let mut bomb = MAGIC.to_vec();
    let mut encoder = zstd::stream::write::Encoder::new(&mut bomb, 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..161 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    assert_eq!(Manifest::decode(&bomb, &Caps::default()).unwrap_err(), FormatError::Length(160 << 20));
}

/// A body that says what it is about in a few bytes and takes many times that: one pack of frames of three bytes each.
fn many_frames(count: u64) -> (SnapshotId, Vec<u8>) {
    let entries = [ENTRIES_MAGIC, b"\x00"].concat();
    let mut body = Vec::new();
    wire::put_bytes(&mut body, &entries);
    body.push(1);
    body.extend([7; 32]);
    wire::put_number(&mut body, LONGEST_PACK);
    wire::put_number(&mut body, count);
    for _ in 0..count {
        body.extend([0, 1, 1]);
    }
    (snapshot_id(&[]), stored(&body))
}

#[test]
fn memory_is_counted_across_the_whole_manifest() {
    let (id, few) = many_frames(1000);
    assert_eq!(Manifest::check_as(&id, &few, &Caps::default()).unwrap().len(), 1);
    let (id, bomb) = many_frames(8 << 20);
    assert!(bomb.len() < 64 << 10, "{} bytes", bomb.len());
    let limit = memory_of(&bomb);
    for error in [
        Manifest::check_as(&id, &bomb, &Caps::default()).unwrap_err(),
        Manifest::decode(&bomb, &Caps::default()).unwrap_err(),
    ] {
        assert_eq!(error, FormatError::Memory(limit));
    }
    assert!(limit <= LONGEST_CHECK && memory_of(&few) < 2 << 20);
}

/// What one reader accepts every other one reads.
#[test]
fn checking_and_reading_agree() {
    for entries in [vec![], vec![file("a", "x"), file("b", "x")], vec![chunked("c", &[3 << 20, 2 << 20])]] {
        let (id, stored) = lay_out(entries).encode().unwrap();
        let read = Manifest::decode_as(&id, &stored, &Caps::default()).unwrap();
        assert_eq!(Manifest::check_as(&id, &stored, &Caps::default()), Ok(read.layout.packs));
    }
}

/// The largest tree that is allowed, of files with names as real ones have.
#[test]
fn a_manifest_of_a_million_files_is_within_its_budget() {
    let entries: Vec<Entry> = (0..1_000_000)
        .map(|n| {
            let mut content = [0; 32];
            content[..4].copy_from_slice(&u32::to_be_bytes(n));
            let blob = Blob { id: BlobId(blake3::hash(&content).into()), size: 100 };
            let path = format!("a-source-file-with-a-rather-long-name-of-its-own-and-some-more-of-it-{n:07}.js");
            entry(&path, Node::File(Content::Whole(blob)))
        })
        .collect();
    let mut layout = Layout::default();
    for at in 0..500_u32 {
        let mut id = [1; 32];
        id[..4].copy_from_slice(&at.to_be_bytes());
        layout.packs.push(Pack { id: PackId(id), size: 200_000 });
        layout.frames.push(Frame { pack: at, offset: 0, length: 200_000, raw: 200_000 });
    }
    for (n, entry) in (0_u32..).zip(&entries) {
        let Node::File(Content::Whole(blob)) = &entry.node else { panic!() };
        layout.places.insert(blob.id, Place { frame: n / 2000, offset: n % 2000 * 100, size: 100 });
    }
    let (id, stored) = Manifest { entries, layout }.encode().unwrap();
    assert!((stored.len() as u64) < LONGEST_MANIFEST, "{} bytes", stored.len());
    assert_eq!(Manifest::check_as(&id, &stored, &Caps::default()).unwrap().len(), 500);
}

#[test]
fn a_manifest_of_another_snapshot_is_refused() {
    let (id, stored) = lay_out(vec![file("a", "x")]).encode().unwrap();
    assert!(Manifest::decode_as(&id, &stored, &Caps::default()).is_ok());
    let other = snapshot_id(&[]);
    let error = Manifest::decode_as(&other, &stored, &Caps::default()).unwrap_err();
    assert_eq!(error, FormatError::Id { expected: other, actual: id });
}
