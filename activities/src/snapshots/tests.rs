//! The whole way of a snapshot: from a tree, through the uploader and the service, object storage and the cell's source, with faults on
//! the way.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buildkit::Source as _;
use bytes::Bytes;
use workflows::contract::{ProjectId, SnapshotId};

use super::*;
use crate::objects::{ObjectStore, Problem, http_client};
use crate::testing::fault_proxy::{Fault, FaultProxy};
use crate::testing::s3::TestStore;
use crate::testing::{impatient, objects_at};

/// The api without HTTP, for one project.
#[derive(Clone)]
struct DirectApi {
    service: SnapshotService,
    project: ProjectId,
    /// What was asked for: packs of each `begin`, then of each upload it presigned.
    asked: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl SnapshotApi for DirectApi {
    async fn latest(&self) -> Result<Option<(SnapshotId, Bytes)>, ApiError> {
        self.service.latest(&self.project).await.map_err(answered)
    }

    async fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, ApiError> {
        let begun = self.service.begin(&self.project, id, session, packs).await.map_err(answered)?;
        self.asked.lock().unwrap().push((packs.len(), begun.uploads.len()));
        Ok(begun)
    }

    async fn commit(&self, id: &SnapshotId, session: &str, manifest: Bytes) -> Result<Committed, ApiError> {
        self.service.commit(&self.project, id, session, manifest, None).await.map_err(answered)
    }
}

fn answered(error: SnapshotError) -> ApiError {
    ApiError::Answered { status: 400, class: "refused".into(), message: error.to_string() }
}

struct Setup {
    store: TestStore,
    proxy: FaultProxy,
    objects: ObjectStore,
    api: DirectApi,
    project: ProjectId,
    tree: tempfile::TempDir,
    cache: tempfile::TempDir,
}

/// A store, a proxy before it that everything passes, and an empty tree with a Dockerfile.
async fn setup() -> Setup {
    let store = TestStore::start().await;
    let proxy = FaultProxy::start(store.address()).await;
    let objects = objects_at(proxy.address());
    let project: ProjectId = "00000000000000aa".parse().unwrap();
    let service = SnapshotService::new(objects.clone(), Caps::default(), Duration::from_secs(600));
    let api = DirectApi { service, project: project.clone(), asked: Arc::default() };
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    Setup { store, proxy, objects, api, project, tree, cache: tempfile::tempdir().unwrap() }
}

impl Setup {
    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn tree(&self) -> Tree {
        let root = self.tree.path().to_owned();
        Tree { root, dockerfile: None, include_git: false, caps: Caps::default() }
    }

    async fn try_upload(&self) -> Result<Uploaded, UploadError> {
        let uploader = Uploader::new(self.api.clone(), http_client().unwrap()).with_patience(impatient());
        uploader.upload(&self.tree(), |_| {}).await
    }

    async fn upload(&self) -> Uploaded {
        self.try_upload().await.unwrap()
    }

    async fn open(&self, id: &SnapshotId) -> Result<SnapshotSource, SnapshotError> {
        let cache = SnapshotCache::open(self.cache.path(), 1 << 30).unwrap();
        SnapshotSource::open(&self.objects, &cache, &self.project, id, &Caps::default()).await
    }

    async fn contents(&self, id: &SnapshotId) -> BTreeMap<Vec<u8>, Vec<u8>> {
        contents(self.open(id).await.unwrap().context()).await.unwrap()
    }

    /// The keys of all packs, with their sizes.
    async fn packs(&self) -> Vec<(String, u64)> {
        self.objects.list(&format!("p/{}/packs/", self.project)).await.unwrap()
    }
}

/// Reads every file, as buildkitd would.
async fn contents(view: SnapshotView) -> std::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let read = move || {
        let entries = view.entries()?;
        let files: Vec<_> = entries.iter().filter(|entry| entry.kind == buildkit::EntryKind::File).collect();
        view.want(&files.iter().map(|entry| entry.path.as_slice()).collect::<Vec<_>>());
        let mut contents = BTreeMap::new();
        for file in files {
            let mut content = Vec::new();
            view.open(&file.path)?.read_to_end(&mut content)?;
            assert_eq!(content.len() as u64, file.size);
            contents.insert(file.path.clone(), content);
        }
        Ok(contents)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    let setup = setup().await;
    let root = setup.tree.path();
    setup.write("src/main.go", "package main\n");
    setup.write(".dot/.hidden", "dot");
    setup.write("empty", "");
    setup.write("with space/and\nnewline", "odd");
    setup.write("large.bin", noise(1, 9_000_000));
    setup.write("medium.bin", noise(2, 700_000));
    setup.write("zeros", vec![0; 5_000_000]);
    let not_utf8 = root.join(std::ffi::OsStr::from_bytes(b"latin-\xe9"));
    fs::write(&not_utf8, "é").unwrap();
    fs::create_dir(root.join("nothing in it")).unwrap();
    symlink("src/main.go", root.join("link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    fs::hard_link(root.join("src/main.go"), root.join("hardlink")).unwrap();
    fs::set_permissions(root.join("medium.bin"), fs::Permissions::from_mode(0o755)).unwrap();

    let uploaded = setup.upload().await;
    assert!(!uploaded.existed && uploaded.packs >= 2 && uploaded.manifest_bytes > 0);
    assert_eq!((uploaded.summary.files, uploaded.summary.directories, uploaded.summary.symlinks), (10, 4, 2));
    assert_eq!(uploaded.dockerfile, "Dockerfile");

    let source = setup.open(&uploaded.id).await.unwrap();
    let entries = source.context().entries().unwrap();
    let entry = |path: &[u8]| entries.iter().find(|entry| entry.path == path).unwrap();
    assert_eq!(entries.len(), 16);
    assert_eq!(entry(b"medium.bin").mode, 0o755);
    assert_eq!(entry(b"src/main.go").mode, 0o644);
    assert_eq!(entry(b"link").link, b"src/main.go");
    assert_eq!(entry(b"dangling").link, b"/nowhere");
    assert_eq!(entry(b"nothing in it").kind, buildkit::EntryKind::Directory);
    for (path, content) in contents(source.context()).await.unwrap() {
        assert_eq!(content, fs::read(root.join(std::ffi::OsStr::from_bytes(&path))).unwrap(), "{path:?}");
    }
    assert_eq!(source.fetched().pack_bytes, uploaded.pack_bytes);
    assert_eq!(source.read(b"src/main.go", 100).await.unwrap().unwrap(), "package main\n");
    assert_eq!(source.read(b"src", 100).await.unwrap(), None);
    assert_eq!(source.read(b"missing", 100).await.unwrap(), None);
    assert!(source.read(b"src/main.go", 5).await.is_err());
    let below = source.directory(b"with space").entries().unwrap();
    assert_eq!(below.iter().map(|entry| entry.path.as_slice()).collect::<Vec<_>>(), [b"and\nnewline"]);
}

#[tokio::test]
async fn only_what_is_new_travels() {
    let setup = setup().await;
    for index in 0..50 {
        setup.write(&format!("file{index}"), noise(index, 100_000));
    }
    let first = setup.upload().await;
    let again = setup.upload().await;
    assert_eq!(again.id, first.id);
    assert!(again.existed && again.packs == 0 && again.manifest_bytes == 0);
    let puts = setup.proxy.requests().iter().filter(|request| request.starts_with("PUT")).count() as u64;
    // The packs, the manifest and the pointer to it: nothing for the unchanged tree.
    assert_eq!(puts, first.packs + 2);

    setup.write("file7", noise(1007, 100_000));
    fs::rename(setup.tree.path().join("file8"), setup.tree.path().join("moved")).unwrap();
    let changed = setup.upload().await;
    assert_ne!(changed.id, first.id);
    assert_eq!(changed.packs, 1);
    assert!((100_000..101_000).contains(&changed.pack_bytes), "{}", changed.pack_bytes);
    let contents = setup.contents(&changed.id).await;
    assert_eq!(contents[b"moved".as_slice()], noise(8, 100_000));
    assert_eq!(contents[b"file7".as_slice()], noise(1007, 100_000));

    // And back: that snapshot is stored, though it is not the newest.
    setup.write("file7", noise(7, 100_000));
    fs::rename(setup.tree.path().join("moved"), setup.tree.path().join("file8")).unwrap();
    let back = setup.upload().await;
    assert_eq!((&back.id, back.existed, back.manifest_bytes), (&first.id, true, 0));
    assert_eq!(setup.api.latest().await.unwrap().unwrap().0, first.id);
}

#[tokio::test]
async fn the_cell_fetches_only_what_is_asked_for_and_only_once() {
    let setup = setup().await;
    for index in 0..100 {
        setup.write(&format!("file{index:02}"), noise(index, 200_000));
    }
    let uploaded = setup.upload().await;
    let source = setup.open(&uploaded.id).await.unwrap();
    assert_eq!(source.read(b"file42", 1 << 20).await.unwrap().unwrap(), noise(42, 200_000));
    let fetched = source.fetched();
    assert_eq!((fetched.requests, fetched.frames), (1, 1));
    assert!((200_000..260_000).contains(&fetched.pack_bytes), "{fetched:?}");
    assert!(fetched.manifest_bytes > 0);

    // Another build on this cell has it on disk.
    let source = setup.open(&uploaded.id).await.unwrap();
    source.read(b"file42", 1 << 20).await.unwrap().unwrap();
    assert_eq!(source.fetched(), Fetched::default());
    // All files: neighbours come in one read, what is at hand is not read again.
    contents(source.context()).await.unwrap();
    let fetched = source.fetched();
    assert!(fetched.requests <= 6, "{fetched:?}");
    assert!(fetched.pack_bytes < uploaded.pack_bytes, "{fetched:?}");
}

#[tokio::test]
async fn an_edit_that_keeps_size_and_time_is_seen_and_times_survive_a_checkout() {
    let setup = setup().await;
    setup.write("a", "one");
    setup.write("b", "same");
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let touch = |name: &str, time| fs::File::open(setup.tree.path().join(name)).unwrap().set_modified(time).unwrap();
    touch("a", time);
    touch("b", time);
    let first = setup.upload().await;
    setup.write("a", "two");
    touch("a", time);
    // As after another checkout.
    touch("b", time + Duration::from_secs(500));
    let second = setup.upload().await;
    let times = |source: SnapshotSource| {
        let entries = source.context().entries().unwrap();
        let time = |name: &str| entries.iter().find(|entry| entry.path == name.as_bytes()).unwrap().mtime_ns;
        (time("a"), time("b"))
    };
    let before = times(setup.open(&first.id).await.unwrap());
    let after = times(setup.open(&second.id).await.unwrap());
    assert_ne!(before.0, after.0);
    assert_eq!((before.0 / 1_000_000_000, after.0 / 1_000_000_000), (1_700_000_000, 1_700_000_000));
    assert_eq!(before.1, after.1);
}

#[tokio::test]
async fn the_same_tree_is_the_same_snapshot_wherever_it_is() {
    let (one, two) = (setup().await, setup().await);
    for setup in [&one, &two] {
        setup.write("bin/tool", "#!/bin/sh\n");
        fs::set_permissions(setup.tree.path().join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Checked out by somebody with another umask.
    fs::set_permissions(two.tree.path().join("bin/tool"), fs::Permissions::from_mode(0o775)).unwrap();
    fs::set_permissions(two.tree.path().join("bin"), fs::Permissions::from_mode(0o775)).unwrap();
    assert_eq!(one.upload().await.id, two.upload().await.id);
}

#[tokio::test]
async fn a_killed_upload_goes_on_where_it_was() {
    let setup = setup().await;
    for index in 0..400 {
        setup.write(&format!("file{index}"), noise(index, 100_000));
    }
    // Ends before the commit: the manifest is refused.
    setup.proxy.fail(1, "PUT /kiln/p/00000000000000aa/snapshots", Fault::Status { code: 403, retry_after: None });
    assert!(setup.try_upload().await.is_err());
    let stored = setup.packs().await;
    assert!(stored.len() >= 4, "{stored:?}");
    // As if it had been killed earlier: one pack is missing.
    fs::remove_file(setup.store.path(&stored[1].0)).unwrap();

    let uploaded = setup.upload().await;
    assert_eq!((uploaded.packs, uploaded.pack_bytes, uploaded.existed), (1, stored[1].1, false));
    assert_eq!(setup.packs().await, stored);
    assert_eq!(setup.contents(&uploaded.id).await.len(), 401);
}

#[tokio::test]
async fn storage_that_is_busy_or_cuts_connections_delays_an_upload_and_no_more() {
    let setup = setup().await;
    for index in 0..200 {
        setup.write(&format!("file{index}"), noise(index, 100_000));
    }
    setup.proxy.fail(2, "PUT", Fault::Status { code: 503, retry_after: None });
    setup.proxy.fail(1, "PUT", Fault::CutRequest { after: 2_000_000 });
    setup.proxy.fail(1, "PUT", Fault::CutResponse { after: 0 });
    setup.proxy.fail(1, "HEAD", Fault::Status { code: 500, retry_after: None });
    let uploaded = setup.upload().await;
    assert_eq!(setup.proxy.pending(), 0);
    setup.proxy.fail(1, "GET", Fault::Status { code: 503, retry_after: None });
    setup.proxy.fail(2, "GET /kiln/p/00000000000000aa/packs", Fault::CutResponse { after: 1_000_000 });
    assert_eq!(setup.contents(&uploaded.id).await.len(), 201);
    assert_eq!(setup.proxy.pending(), 0);
}

#[tokio::test]
async fn a_pack_altered_on_its_way_into_storage_is_uploaded_again() {
    let setup = setup().await;
    setup.write("data", noise(1, 300_000));
    setup.proxy.fail(1, "PUT /kiln/p/00000000000000aa/packs", Fault::CorruptRequest { at: 200_000 });
    let uploaded = setup.upload().await;
    assert_eq!(setup.proxy.pending(), 0);
    assert_eq!(setup.contents(&uploaded.id).await[b"data".as_slice()], noise(1, 300_000));
}

#[tokio::test]
async fn a_pack_altered_on_its_way_to_the_cell_is_fetched_again() {
    let setup = setup().await;
    setup.write("data", noise(1, 200_000));
    let uploaded = setup.upload().await;
    setup.proxy.fail(1, "GET /kiln/p/00000000000000aa/packs", Fault::CorruptResponse { at: 100_000 });
    let source = setup.open(&uploaded.id).await.unwrap();
    assert_eq!(contents(source.context()).await.unwrap()[b"data".as_slice()], noise(1, 200_000));
    assert_eq!(setup.proxy.pending(), 0);
    assert!(source.take_failure().is_none());
}

#[tokio::test]
async fn a_pack_altered_in_storage_is_refused_by_name() {
    let setup = setup().await;
    setup.write("data", noise(1, 200_000));
    let uploaded = setup.upload().await;
    let (key, size) = setup.packs().await.remove(0);
    let path = setup.store.path(&key);
    let good = fs::read(&path).unwrap();

    let mut altered = good.clone();
    altered[100_000] ^= 1;
    let longer = [good.as_slice(), b"more"].concat();
    let refused = async |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::remove_dir_all(setup.cache.path()).unwrap();
        let source = setup.open(&uploaded.id).await.unwrap();
        let read = contents(source.context()).await;
        (read.err().map(|error| error.to_string()), source.take_failure())
    };
    let (error, failure) = refused(&altered).await;
    let error = error.unwrap();
    assert!(error.contains(&key) && error.contains("expected blake3:"), "{error}");
    assert!(!failure.unwrap().is_transient());

    let (error, failure) = refused(&good[..1000]).await;
    assert!(error.unwrap().contains(&key));
    let Some(SnapshotError::Storage(failure)) = failure else { panic!() };
    assert!(matches!(failure.problem, Problem::Size { .. }), "{failure}");

    fs::remove_file(&path).unwrap();
    let (error, _) = refused(b"").await;
    assert!(error.unwrap().contains(&key));
    // What follows the pack is nobody's business, and nothing of it is read.
    assert_eq!(refused(&longer).await.0, None);
    assert_eq!(size, good.len() as u64);
}

#[tokio::test]
async fn a_snapshot_with_a_damaged_pack_is_stored_again_by_the_next_upload() {
    let setup = setup().await;
    setup.write("data", noise(1, 200_000));
    let uploaded = setup.upload().await;
    let path = setup.store.path(&setup.packs().await.remove(0).0);
    let mut altered = fs::read(&path).unwrap();
    altered[100_000] ^= 1;
    fs::write(&path, altered).unwrap();
    let source = setup.open(&uploaded.id).await.unwrap();
    contents(source.context()).await.unwrap_err();
    // Until it is withdrawn, whoever uploads the same tree joins the damaged snapshot.
    assert!(setup.upload().await.existed);

    let cache = SnapshotCache::open(setup.cache.path(), 1 << 30).unwrap();
    withdraw(&setup.objects, &cache, &setup.project, &uploaded.id, source.damage().unwrap()).await.unwrap();
    let again = setup.upload().await;
    assert_eq!((again.id.clone(), again.existed, again.packs), (uploaded.id, false, 1));
    assert_eq!(setup.contents(&again.id).await[b"data".as_slice()], noise(1, 200_000));
}

#[tokio::test]
async fn a_manifest_altered_in_storage_is_refused_and_replaced_by_the_next_upload() {
    let setup = setup().await;
    setup.write("data", "x");
    let uploaded = setup.upload().await;
    let path = setup.store.path(&format!("p/{}/snapshots/{}", setup.project, uploaded.id));
    let good = fs::read(&path).unwrap();
    let mut altered = good.clone();
    altered[60] ^= 1;
    fs::write(&path, &altered).unwrap();
    let error = setup.open(&uploaded.id).await.err().unwrap().to_string();
    assert!(error.contains(uploaded.id.as_str()), "{error}");

    let again = setup.upload().await;
    assert_eq!((again.id.clone(), again.existed), (uploaded.id, false));
    assert_eq!(setup.contents(&again.id).await[b"data".as_slice()], b"x");
}

#[tokio::test]
async fn another_projects_pack_is_refused() {
    let setup = setup().await;
    setup.write("data", noise(1, 1000));
    let uploaded = setup.upload().await;
    let (_, manifest) = setup.api.latest().await.unwrap().unwrap();
    let other: ProjectId = "00000000000000bb".parse().unwrap();
    let refused = setup.api.service.commit(&other, &uploaded.id, "session", manifest, None).await.unwrap_err();
    assert!(refused.to_string().contains("is not stored for this project"), "{refused}");
    assert!(setup.api.service.latest(&other).await.unwrap().is_none());
}

#[tokio::test]
async fn hostile_manifests_and_packs_are_refused() {
    let setup = setup().await;
    let service = &setup.api.service;
    let id = Manifest::default().id();
    let commit = async |id: &SnapshotId, manifest: Vec<u8>| {
        service.commit(&setup.project, id, "s", manifest.into(), None).await.unwrap_err().to_string()
    };
    let entry = |path: &str| Entry { path: path.into(), mode: 0o755, mtime: 0, node: Node::Directory };
    for path in ["/etc", "..", "a/../b"] {
        let hostile = Manifest { entries: vec![entry(path)], ..Manifest::default() };
        let (id, stored) = hostile.encode().unwrap();
        let error = commit(&id, stored).await;
        assert!(error.contains("the path"), "{error}");
    }
    // Under another name than its own.
    let other = Manifest { entries: vec![entry("a")], ..Manifest::default() };
    assert!(commit(&id, other.encode().unwrap().1).await.contains("expected"));
    assert!(commit(&id, b"garbage".to_vec()).await.contains("not known"));

    let begin = async |sha256: &str, size: u64| {
        let pack = PackRef { sha256: sha256.to_owned(), size };
        service.begin(&setup.project, None, None, &[pack]).await.unwrap_err().to_string()
    };
    assert!(begin("../../other/packs/x", 1).await.contains("64 lower-case hex digits"));
    assert!(begin(&"0".repeat(64), 0).await.contains("empty or longer"));
    assert!(begin(&"0".repeat(64), (8 << 20) + 1).await.contains("empty or longer"));

    // A pack that is stored, named with another size.
    setup.write("data", noise(1, 1000));
    setup.upload().await;
    let (key, size) = setup.packs().await.remove(0);
    let name = key.rsplit('/').next().unwrap();
    assert!(begin(name, size + 1).await.contains("bytes long, not"));
    assert!(setup.store.path(&key).exists());
}

#[tokio::test]
async fn the_first_manifest_stored_for_an_id_stays() {
    let setup = setup().await;
    let tree = |mtime| Manifest {
        entries: vec![Entry { path: b"d".into(), mode: 0o755, mtime, node: Node::Directory }],
        ..Manifest::default()
    };
    let ((id, first), (_, second)) = (tree(1).encode().unwrap(), tree(2).encode().unwrap());
    let service = &setup.api.service;
    let commit = async |manifest: &[u8]| {
        service.commit(&setup.project, &id, "s", Bytes::copy_from_slice(manifest), None).await.unwrap().existed
    };
    assert!(!commit(&first).await);
    assert!(commit(&second).await);
    assert_eq!(setup.api.latest().await.unwrap().unwrap(), (id.clone(), first.into()));
}

#[tokio::test]
async fn a_tree_that_breaks_a_cap_or_is_not_there_is_told_by_name() {
    let setup = setup().await;
    setup.write("a/b/c", "x");
    let upload = async |tree: &Tree| {
        let uploader = Uploader::new(setup.api.clone(), http_client().unwrap());
        uploader.upload(tree, |_| {}).await.unwrap_err().to_string()
    };
    let mut tree = setup.tree();
    tree.caps.depth = 2;
    assert_eq!(upload(&tree).await, "a/b/c: the path is deeper than 2");
    let mut tree = setup.tree();
    tree.dockerfile = Some(Path::new("/nowhere/Dockerfile").to_owned());
    assert!(upload(&tree).await.contains("looked for /nowhere/Dockerfile"));
    let missing = Tree { root: "/nowhere".into(), ..setup.tree() };
    assert!(upload(&missing).await.starts_with("/nowhere: "));
}
