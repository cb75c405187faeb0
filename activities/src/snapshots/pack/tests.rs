use std::fs;
use std::sync::Mutex;

use super::*;
use crate::snapshots::Tree;
use crate::snapshots::digest::PackId;
use crate::snapshots::manifest::{LONGEST_FRAME, LONGEST_PACK};
use crate::snapshots::walk::walk;

/// Keeps every pack.
#[derive(Default)]
struct Keep(Mutex<Vec<ReadyPack>>);

impl Sink for Keep {
    fn pack(&self, pack: ReadyPack) -> Result<(), Stopped> {
        self.0.lock().unwrap().push(pack);
        Ok(())
    }

    fn read(&self, _: u64, _: u64) -> Result<(), Stopped> {
        Ok(())
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Files of all sizes, some alike.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("Dockerfile"), "").unwrap();
    let sizes = [0, 1, 1000, 262_143, 262_144, 262_145, 600_000, 4_194_304, 4_194_305, 12_000_000];
    for (index, size) in sizes.into_iter().enumerate() {
        fs::write(root.path().join(format!("size{size}")), noise(index as u64, size)).unwrap();
        fs::write(root.path().join(format!("twin{size}")), noise(index as u64, size)).unwrap();
    }
    for index in 0..300 {
        fs::write(root.path().join(format!("small{index}")), noise(1000 + index, 5000)).unwrap();
    }
    root
}

fn walked(root: &std::path::Path) -> Walked {
    let tree = Tree { root: root.to_owned(), dockerfile: None, include_git: false, caps: Caps::default() };
    walk(&tree, 2).unwrap()
}

fn packed(root: &std::path::Path, base: &Manifest, threads: usize) -> (Manifest, Vec<ReadyPack>) {
    let sink = Keep::default();
    let manifest = pack(&walked(root), base, &Caps::default(), threads, &sink).unwrap();
    let mut packs = sink.0.into_inner().unwrap();
    packs.sort_by_key(|pack| pack.frames[0].number);
    (manifest, packs)
}

fn ids(packs: &[ReadyPack]) -> Vec<PackId> {
    packs.iter().map(|pack| pack.id).collect()
}

#[test]
fn packing_gives_the_same_bytes_whatever_the_threads() {
    let root = tree();
    let (manifest, packs) = packed(root.path(), &Manifest::default(), 1);
    assert!(packs.len() >= 3);
    for threads in [2, 5] {
        let (again, packs_again) = packed(root.path(), &Manifest::default(), threads);
        assert_eq!(again, manifest);
        assert_eq!(ids(&packs_again), ids(&packs));
    }
}

#[test]
fn packs_and_frames_keep_to_their_limits_and_alike_content_is_there_once() {
    let root = tree();
    let (manifest, packs) = packed(root.path(), &Manifest::default(), 2);
    assert!(packs.iter().all(|pack| pack.bytes.len() as u64 <= LONGEST_PACK));
    assert!(manifest.layout.frames.iter().all(|frame| frame.raw <= LONGEST_FRAME));
    let raw: u64 = manifest.layout.frames.iter().map(|frame| u64::from(frame.raw)).sum();
    let content: u64 = [1, 1000, 262_143, 262_144, 262_145, 600_000, 4_194_304, 4_194_305, 12_000_000].iter().sum();
    assert_eq!(raw, content + 300 * 5000);
    // Every rule of the format holds.
    let (_, stored) = manifest.encode().unwrap();
    let (_, decoded) = Manifest::decode(&stored, &Caps::default()).unwrap();
    assert_eq!(decoded, manifest);
    let listed: Vec<_> = manifest.layout.packs.iter().map(|pack| pack.id).collect();
    assert_eq!(listed, ids(&packs));
}

#[test]
fn against_a_base_only_new_content_is_packed_and_unused_packs_are_dropped() {
    let root = tree();
    let (base, _) = packed(root.path(), &Manifest::default(), 2);
    let (same, packs) = packed(root.path(), &base, 2);
    assert_eq!((same, packs.len()), (base.clone(), 0));

    fs::write(root.path().join("small7"), noise(9999, 6000)).unwrap();
    let (edited, packs) = packed(root.path(), &base, 2);
    assert_eq!(packs.len(), 1);
    assert!(packs[0].bytes.len() < 6100);
    assert!(Manifest::decode(&edited.encode().unwrap().1, &Caps::default()).is_ok());

    for name in fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()) {
        if !["small7", "Dockerfile"].contains(&name.to_str().unwrap()) {
            fs::remove_file(root.path().join(name)).unwrap();
        }
    }
    let (few, packs) = packed(root.path(), &edited, 2);
    assert_eq!((few.layout.packs.len(), few.layout.frames.len(), packs.len()), (1, 1, 0));
}

#[test]
fn a_file_that_changes_is_read_again_then_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    fs::write(&path, "start").unwrap();
    // Changes the file while it is read, so many times.
    let meddle = |times: u32| {
        let mut read = 0;
        let result = read::steadily(&path, b"log", |steady| {
            let mut bytes = Vec::new();
            let length = steady.fill(&mut bytes, 1 << 20).unwrap();
            read += 1;
            if read <= times {
                fs::write(&path, format!("changed {read}")).unwrap();
            }
            Ok((bytes, length))
        });
        (result.map(|(bytes, _)| bytes), read)
    };
    let (content, reads) = meddle(2);
    assert_eq!((content.unwrap(), reads), (b"changed 2".to_vec(), 3));
    let (content, reads) = meddle(10);
    assert_eq!((content.unwrap_err().to_string().as_str(), reads), ("log keeps changing while it is read", 3));
}

#[test]
fn what_is_gone_or_has_become_a_link_or_pipe_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("Dockerfile"), "").unwrap();
    let change: [&dyn Fn(&std::path::Path); 3] =
        [&|_| {}, &|path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap(), &|path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()
        }];
    for change in change {
        let path = root.path().join("file");
        fs::write(&path, "x").unwrap();
        let walked = walked(root.path());
        fs::remove_file(&path).unwrap();
        change(&path);
        let error = pack(&walked, &Manifest::default(), &Caps::default(), 2, &Keep::default()).unwrap_err();
        assert_eq!(error.to_string(), "file keeps changing while it is read");
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn packing_ends_when_nobody_wants_the_packs() {
    struct Gone;
    impl Sink for Gone {
        fn pack(&self, _: ReadyPack) -> Result<(), Stopped> {
            Err(Stopped)
        }
        fn read(&self, _: u64, _: u64) -> Result<(), Stopped> {
            Ok(())
        }
    }
    let root = tree();
    let result = pack(&walked(root.path()), &Manifest::default(), &Caps::default(), 2, &Gone);
    assert!(matches!(result, Err(PackError::Stopped)));
}
