//! Builds that succeed: what arrives at the daemon and in the registry.

use crate::harness::{Context, Daemon, Registry, output, push, run, solve};
use buildkit::{Entry, EntryKind, Export, Frontend, Image, Selection, Solve, Source};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_is_pushed_and_reported() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let context = Context::new("RUN echo hello > /greeting && echo said\n");
    let client = daemon.client().await;
    let session = client.session().shared_key("a").dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.open().await.unwrap();
    let image = format!("{}/app:1", registry.address());
    let (solved, updates) = run(&session, push(&image).attr("filename", "Dockerfile")).await;
    let solved = solved.unwrap();
    let digest = solved.digest.unwrap();
    let descriptor = solved.descriptor.unwrap();
    assert_eq!(registry.digest("app", "1").await.as_deref(), Some(digest.as_str()));
    assert_eq!((descriptor.digest.as_str(), descriptor.media_type.contains("manifest")), (digest.as_str(), true));
    assert!(descriptor.size > 100);
    assert!(solved.config_digest.unwrap().starts_with("sha256:"));
    assert_eq!(solved.response["image.name"], image);
    assert!(output(&updates).contains("said"));
    let done = |name: &str| {
        let vertexes = updates.iter().flat_map(|update| &update.vertexes);
        vertexes
            .filter(|vertex| vertex.name.contains(name))
            .any(|vertex| vertex.completed_ms >= vertex.started_ms && vertex.completed_ms.is_some())
    };
    assert!(done("RUN echo hello") && done("exporting to image"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_digest_is_that_of_buildctl() {
    let registry = Registry::start();
    let context = Context::bare("FROM scratch\nCOPY . /tree/\n");
    odd_tree(context.path());
    let build = |daemon: &Daemon| {
        // Without a date of their own the images would differ by their time of creation.
        let output = format!("type=image,name={}/tree:buildctl,push=true,rewrite-timestamp=true", registry.address());
        let local = |name: &str| format!("{name}={}", context.path().display());
        daemon.buildctl(&[
            "build",
            "--frontend",
            "dockerfile.v0",
            "--local",
            &local("context"),
            "--local",
            &local("dockerfile"),
            "--opt",
            "build-arg:SOURCE_DATE_EPOCH=1700000000",
            "--output",
            &output,
        ]);
    };
    build(&Daemon::start());
    // Another daemon, so that nothing comes from the cache.
    let daemon = Daemon::start();
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.open().await.unwrap();
    let image = Image::named(format!("{}/tree:ours", registry.address())).push().attr("rewrite-timestamp", "true");
    let request = solve().attr("build-arg:SOURCE_DATE_EPOCH", "1700000000").export(Export::Image(image));
    let ours = run(&session, request).await.0.unwrap().digest;
    assert!(ours.is_some());
    assert_eq!(ours, registry.digest("tree", "buildctl").await);
}

/// Directories, modes, links, empty things, names in an order that separators disturb.
fn odd_tree(root: &Path) {
    for directory in ["a/b", "a-b", "empty", "deep/er/still"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in ["a/b/c", "a/c", "a.b", "a-b/x", "deep/er/still/file", "sp ace", "new\nline", "ünïcode"] {
        fs::write(root.join(file), file).unwrap();
        fs::File::options()
            .write(true)
            .open(root.join(file))
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000))
            .unwrap();
    }
    for (file, mode) in [("a.b", 0o4755), ("a/c", 0o2711), ("sp ace", 0o600), ("empty", 0o1777)] {
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("../a/c", root.join("a/link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    fs::write(root.join("zero"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ignore_file_is_applied() {
    let daemon = Daemon::start();
    let context = Context::new("COPY . /tree\nRUN cd /tree && /bin/busybox find . | /bin/busybox sort\n");
    context.write(".dockerignore", "# comment\n*.log\nsecret\n!keep.log\nvendor/**\n!vendor/keep\n");
    for file in ["x.log", "keep.log", "secret/key", "vendor/drop", "vendor/keep", "src/y.log"] {
        context.write(file, file);
    }
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let (solved, updates) = run(&session.open().await.unwrap(), solve()).await;
    solved.unwrap();
    let listed = output(&updates);
    let mut listed: Vec<_> = listed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    listed.sort_unstable();
    let expected = [
        ".",
        "./.dockerignore",
        "./Dockerfile",
        "./busybox",
        "./keep.log",
        "./src",
        "./src/y.log",
        "./vendor",
        "./vendor/keep",
    ];
    assert_eq!(listed, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_utf8_arrive() {
    let daemon = Daemon::start();
    let context =
        Context::new("COPY tree /tree\nRUN cd /tree && for f in *; do echo \"$f\" | /bin/busybox od -An -tx1; done\n");
    fs::create_dir(context.path().join("tree")).unwrap();
    fs::write(context.path().join("tree").join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let (solved, updates) = run(&session.open().await.unwrap(), solve()).await;
    solved.unwrap();
    assert!(output(&updates).contains("63 61 66 e9"), "{}", output(&updates));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_ascii_can_be_asked_for() {
    let daemon = Daemon::start();
    let context = Context::new("COPY prüfung/ä+b /x\nRUN /bin/busybox cat /x\n");
    context.write("prüfung/ä+b", "found").write("prüfung/other", "not asked for");
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let (solved, updates) = run(&session.shared_key("prüf/Ω").open().await.unwrap(), solve()).await;
    solved.unwrap();
    assert!(output(&updates).contains("found"));
}

/// A source in memory that counts what is read of it.
struct Memory {
    /// Path, content, modification time.
    files: BTreeMap<Vec<u8>, (String, i64)>,
    opened: AtomicUsize,
}

impl Memory {
    fn new(files: Vec<(&str, String, i64)>) -> Self {
        let file = |(path, content, mtime_ns): (&str, String, i64)| (path.as_bytes().to_vec(), (content, mtime_ns));
        Self { files: files.into_iter().map(file).collect(), opened: AtomicUsize::new(0) }
    }
}

impl Source for Memory {
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let file = |(path, (content, mtime_ns)): (&Vec<u8>, &(String, i64))| Entry {
            path: path.clone(),
            kind: EntryKind::File,
            mode: 0o644,
            size: content.len() as u64,
            mtime_ns: *mtime_ns,
            link: Vec::new(),
        };
        Ok(self.files.iter().map(file).collect())
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let content = self.files.get(path).ok_or(io::ErrorKind::NotFound)?.0.clone();
        Ok(Box::new(io::Cursor::new(content.into_bytes())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_changed_is_asked_for_again() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let dockerfile = Context::bare("FROM scratch\nCOPY . /\n");
    let big = "0123456789".repeat(100_000);
    let build = async |files: Vec<(&str, String, i64)>| {
        let memory = Arc::new(Memory::new(files));
        let session =
            client.session().shared_key("memory").dir("context", memory.clone()).dir("dockerfile", dockerfile.source());
        run(&session.open().await.unwrap(), solve()).await.0.unwrap();
        memory.opened.load(Ordering::SeqCst)
    };
    assert_eq!(build(vec![("b", "b".into(), 1), ("a", big.clone(), 1), ("c", String::new(), 1)]).await, 3);
    assert_eq!(build(vec![("a", big.clone(), 1), ("b", "b".into(), 1), ("c", String::new(), 1)]).await, 0);
    assert_eq!(build(vec![("a", big, 1), ("b", "B".into(), 2), ("c", String::new(), 1)]).await, 1);
}

/// Many more requests than fit the flow-control windows at once, of the smallest kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tens_of_thousands_of_files_are_sent() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let dockerfile = Context::bare("FROM scratch\nCOPY f19999 /\n");
    let all = Context::bare("FROM scratch\nCOPY . /\n");
    let names: Vec<String> = (0..20_000).map(|number| format!("f{number}")).collect();
    let build = async |source: &Context, time: i64| {
        let files = names.iter().map(|name| (name.as_str(), String::new(), time)).collect();
        let memory = Arc::new(Memory::new(files));
        let session =
            client.session().shared_key("many").dir("context", memory.clone()).dir("dockerfile", source.source());
        run(&session.open().await.unwrap(), solve()).await.0.unwrap();
        memory.opened.load(Ordering::SeqCst)
    };
    assert_eq!(build(&all, 1).await, 20_000);
    assert_eq!(build(&all, 1).await, 0);
    assert_eq!(build(&dockerfile, 2).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_syntax_line_is_followed_or_not_as_asked() {
    let daemon = Daemon::start();
    let context = Context::bare("# syntax=127.0.0.1:1/frontend:1\nFROM scratch\nCOPY Dockerfile /\n");
    let session = daemon.client().await.session().dir("context", context.source()).dir("dockerfile", context.source());
    let session = session.open().await.unwrap();
    run(&session, solve()).await.0.unwrap();
    let followed = run(&session, Solve::new("followed", Frontend::Dockerfile)).await.0.unwrap_err();
    assert!(followed.message.contains("127.0.0.1:1/frontend:1"), "{followed}");
    let image = Frontend::Image { reference: "127.0.0.1:1/other:1".into() };
    let named = run(&session, Solve::new("named", image)).await.0.unwrap_err();
    assert!(named.message.contains("127.0.0.1:1/other:1"), "{named}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_tells_of_itself() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let info = client.info().await.unwrap();
    assert!(info.version.starts_with('v'), "{info:?}");
    let workers = client.workers().await.unwrap();
    assert!(workers[0].platforms[0].starts_with("linux/"), "{workers:?}");
    let context = Context::bare("FROM scratch\nCOPY . /\n");
    let session = client.session().dir("context", context.source()).dir("dockerfile", context.source());
    run(&session.open().await.unwrap(), solve()).await.0.unwrap();
    let usage = client.disk_usage().await.unwrap();
    assert!(usage.iter().any(|entry| entry.kind == "source.local"), "{usage:?}");
}

#[test]
fn selections_reach_sources_by_default() {
    let memory = Memory::new(vec![("a", String::new(), 0), ("b", String::new(), 0)]);
    let mut seen = Vec::new();
    let selection = Selection { include: vec![b"b".to_vec()], ..Selection::default() };
    memory
        .select(&selection, &mut |entry| {
            seen.push(entry.path);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [b"b".to_vec()]);
}
