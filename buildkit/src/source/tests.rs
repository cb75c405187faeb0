//! The tables of fsutil's own tests of filters and links, for both kinds of source, and properties.

use super::{follow::follow_links, *};
use proptest::prelude::*;
use std::{fs, os::unix::fs::symlink, path::Path};

/// A source that knows its entries, and no more.
struct Listed(Vec<Entry>);

impl Source for Listed {
    fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(self.0.clone())
    }

    fn open(&self, _path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Makes `a/` directories, `a -> b` links and `a` files.
fn make(root: &Path, tree: &[&str]) {
    for line in tree {
        if let Some((path, target)) = line.split_once(" -> ") {
            symlink(target, root.join(path)).unwrap();
        } else if let Some(path) = line.strip_suffix('/') {
            fs::create_dir_all(root.join(path)).unwrap();
        } else {
            fs::write(root.join(line), line).unwrap();
        }
    }
}

fn selection(include: &[&str], exclude: &[&str], follow: &[&str]) -> Selection {
    let bytes = |list: &[&str]| list.iter().map(|item| item.as_bytes().to_vec()).collect();
    Selection { include: bytes(include), exclude: bytes(exclude), follow: bytes(follow) }
}

fn shown(source: &dyn Source, selection: &Selection) -> Vec<String> {
    let mut lines = Vec::new();
    let show = &mut |entry: Entry| {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        lines.push(match entry.kind {
            EntryKind::Directory => format!("{path}/"),
            EntryKind::File => path,
            EntryKind::Symlink => format!("{path} -> {}", String::from_utf8_lossy(&entry.link)),
        });
        Ok(())
    };
    source.select(selection, show).unwrap();
    lines
}

/// What is selected of a tree; the same by walking as from a list.
fn selected(tree: &[&str], selection: &Selection) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    make(root.path(), tree);
    let directory = Directory::new(root.path()).unwrap();
    let walked = shown(&directory, selection);
    let mut entries = directory.entries().unwrap();
    entries.reverse();
    assert_eq!(shown(&Listed(entries), selection), walked);
    walked
}

#[test]
fn includes() {
    let tree = ["bar/", "bar/foo", "foo2"];
    let below_bar: &[&str] = &["bar/", "bar/foo"];
    for (pattern, expected) in [
        ("bar", below_bar),
        ("bar/foo", below_bar),
        ("b*", below_bar),
        ("bar/f*", below_bar),
        ("bar/g*", &[]),
        ("f*", &["foo2"]),
        ("b*/f*", below_bar),
        ("b*/foo", below_bar),
        ("b*/", below_bar),
    ] {
        assert_eq!(selected(&tree, &selection(&[pattern], &[], &[])), expected, "{pattern}");
    }
    assert_eq!(selected(&tree, &Selection::default()), ["bar/", "bar/foo", "foo2"]);
}

#[test]
fn includes_across_directories() {
    let tree = [
        "a/b/baz/",
        "a/b/bar/",
        "a/b/bar/foo",
        "a/b/bar/fop",
        "bar/",
        "bar/foo",
        "baz/",
        "foo2",
        "foo/bar/",
        "foo/bar/bee",
    ];
    let bars: &[&str] =
        &["a/", "a/b/", "a/b/bar/", "a/b/bar/foo", "a/b/bar/fop", "bar/", "bar/foo", "foo/", "foo/bar/", "foo/bar/bee"];
    for (pattern, expected) in [
        ("**/bar", bars),
        ("**/bar/foo", &["a/", "a/b/", "a/b/bar/", "a/b/bar/foo", "bar/", "bar/foo"]),
        ("**/bar/f*", &["a/", "a/b/", "a/b/bar/", "a/b/bar/foo", "a/b/bar/fop", "bar/", "bar/foo"]),
        ("**/bar/g*", &[]),
        (
            "**/f*",
            &[
                "a/",
                "a/b/",
                "a/b/bar/",
                "a/b/bar/foo",
                "a/b/bar/fop",
                "bar/",
                "bar/foo",
                "foo/",
                "foo/bar/",
                "foo/bar/bee",
                "foo2",
            ],
        ),
    ] {
        assert_eq!(selected(&tree, &selection(&[pattern], &[], &[])), expected, "{pattern}");
    }
}

#[test]
fn excludes() {
    let tree = ["bar", "foo/", "foo2", "foo/bar2"];
    assert_eq!(selected(&tree, &selection(&[], &["foo*", "!foo/bar2"], &[])), ["bar", "foo/", "foo/bar2"]);
    assert_eq!(selected(&tree, &selection(&[], &["*", "!bar"], &[])), ["bar"]);
    assert_eq!(selected(&tree, &selection(&[], &["**/bar*"], &[])), ["foo/", "foo2"]);
    assert_eq!(selected(&tree, &selection(&["foo", "bar"], &["foo/bar2"], &[])), ["bar", "foo/"]);
}

#[test]
fn follows_links_into_what_they_lead_to() {
    let tree = [
        "bar",
        "foo/",
        "foo/l1 -> /baz/one",
        "foo/l2 -> /baz/two",
        "baz/",
        "baz/one",
        "baz/two -> ../bax",
        "bax",
        "bay",
    ];
    let expected =
        ["bar", "bax", "baz/", "baz/one", "baz/two -> ../bax", "foo/", "foo/l1 -> /baz/one", "foo/l2 -> /baz/two"];
    assert_eq!(selected(&tree, &selection(&[], &[], &["foo/l*", "bar"])), expected);
    let tree = ["foo -> .", "bar", "bay/", "bay/baz"];
    assert_eq!(selected(&tree, &selection(&[], &[], &["foo"])), ["bar", "bay/", "bay/baz", "foo -> ."]);
}

/// Tree, paths, and what they are resolved to; `None` for everything.
type Followed<'t> = (&'t [&'t str], &'t [&'t str], Option<&'t [&'t str]>);

const FOLLOWED: &[Followed<'_>] = &[
    (
        &["dir/", "dir/l1 -> foo", "l2 -> dir/l1", "dir/foo", "bar", "baz"],
        &["l2", "bar"],
        Some(&["bar", "dir/foo", "dir/l1", "l2"]),
    ),
    (&["l1 -> l1", "l2 -> l3", "l3 -> l2"], &["l1", "l3"], Some(&["l1", "l2", "l3"])),
    (
        &["dir/", "dir/l1 -> /foo/bar/baz", "foo/", "foo/bar -> ../", "baz"],
        &["dir/l1"],
        Some(&["baz", "dir/l1", "foo/bar"]),
    ),
    (
        &["dir/", "dir/l1 -> /foo/bar/baz", "foo/", "foo/bar -> ../../../", "baz"],
        &["dir/l1"],
        Some(&["baz", "dir/l1", "foo/bar"]),
    ),
    (&[], &["foo/bar/baz", "bar/baz"], Some(&["bar/baz", "foo/bar/baz"])),
    (&[], &["."], None),
    (&[], &["f*/foo/t*"], Some(&["f*/foo/t*"])),
    (&[], &["foo/bar/baz", "foo/bar"], Some(&["foo/bar"])),
    (&["dir/", "dir/l1 -> /foo", "dir/l2 -> /", "foo/", "foo/bar"], &["dir/l1", "foo/bar"], Some(&["dir/l1", "foo"])),
    (&["dir/", "dir/l1 -> /foo", "dir/l2 -> /", "foo/", "foo/bar"], &["dir/l2", "foo", "foo/bar"], None),
    (WILD, &["dir/l*"], Some(&["baz", "dir/l*", "foo/bar1", "foo/bar2"])),
    (WILD, &["dir"], Some(&["dir"])),
    (WILD, &["dir", "dir/*link"], Some(&["dir", "foo/bar3"])),
];

const WILD: &[&str] = &[
    "dir/",
    "foo/",
    "dir/l1 -> /foo/bar1",
    "dir/l2 -> /foo/bar2",
    "dir/anotherlink -> /foo/bar3",
    "foo/bar2 -> ../baz",
    "foo/bar1",
    "foo/bar3",
    "baz",
];

#[test]
fn links_are_resolved_as_in_fsutil() {
    for (tree, paths, expected) in FOLLOWED {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), tree);
        let paths: Vec<_> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let found = follow_links(&Directory::new(root.path()).unwrap(), &paths).unwrap();
        let expected = expected.map(|list| list.iter().map(|path| path.as_bytes().to_vec()).collect::<Vec<_>>());
        assert_eq!(found, expected, "{tree:?} {paths:?}");
    }
}

#[test]
fn malformed_patterns_fail_the_selection() {
    let refused = Listed(Vec::new()).select(&selection(&[], &["["], &[]), &mut |_| Ok(()));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_directory_tells_modes_sizes_times_and_links() {
    use std::os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixListener};
    let root = tempfile::tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\n");
    fs::write(root.path().join(odd), "12345").unwrap();
    fs::set_permissions(root.path().join(odd), fs::Permissions::from_mode(0o4751)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    fs::File::options().write(true).open(root.path().join(odd)).unwrap().set_modified(time).unwrap();
    symlink("nowhere", root.path().join("link")).unwrap();
    let _socket = UnixListener::bind(root.path().join("socket")).unwrap();
    let directory = Directory::new(root.path()).unwrap();
    let [link, file] = directory.entries().unwrap().try_into().unwrap();
    assert_eq!((link.kind, link.link, link.size), (EntryKind::Symlink, b"nowhere".to_vec(), 0));
    assert_eq!((file.path.as_slice(), file.mode, file.size), (&b"odd\xff\n"[..], 0o4751, 5));
    assert_eq!(file.mtime_ns, 1_700_000_000_123_456_789);
    let mut content = String::new();
    directory.open(b"odd\xff\n").unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "12345");
    // Listed as a file, and made a link since.
    assert!(directory.open(b"link").is_err());
}

#[test]
fn a_source_that_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(Directory::new(file.path()).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    assert_eq!(Directory::new(file.path().join("x")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is selected: in order, each directory before what is in it, and the same by walking as from a list.
    #[test]
    fn selections_are_what_the_daemon_accepts(
        paths in proptest::collection::btree_set("[ab.]{0,1}[ab](/[ab]{1,2}){0,3}", 1..12),
        include in proptest::collection::vec("!?([ab*]{1,2}|\\*\\*)(/([ab*]{1,2}|\\*\\*)){0,2}", 0..3),
        exclude in proptest::collection::vec("!?([ab*]{1,2}|\\*\\*)(/([ab*]{1,2}|\\*\\*)){0,2}", 0..3),
        follow in proptest::collection::vec("[ab]{1,2}(/[ab]){0,1}", 0..3),
    ) {
        let root = tempfile::tempdir().unwrap();
        for path in &paths {
            let path = root.path().join(path);
            // Where a file is in the way, so be it.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.exists() {
                fs::write(path, "").unwrap();
            }
        }
        fn as_str(list: &[String]) -> Vec<&str> {
            list.iter().map(String::as_str).collect()
        }
        let selection = selection(&as_str(&include), &as_str(&exclude), &as_str(&follow));
        let directory = Directory::new(root.path()).unwrap();
        let walked = shown(&directory, &selection);
        prop_assert_eq!(&shown(&Listed(directory.entries().unwrap()), &selection), &walked);
        let mut seen: Vec<&str> = Vec::new();
        for path in walked.iter().map(|line| line.trim_end_matches('/')) {
            if let Some(last) = seen.last() {
                prop_assert!(compare_paths(last.as_bytes(), path.as_bytes()).is_lt());
            }
            if let Some((parent, _)) = path.rsplit_once('/') {
                prop_assert!(seen.contains(&parent));
            }
            seen.push(path);
        }
    }
}
