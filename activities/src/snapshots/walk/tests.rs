//! What goes into a snapshot and what is left out, on real trees.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::snapshots::Caps;

/// A tree with a Dockerfile and these files, whose content is their path unless given.
struct Sample {
    directory: tempfile::TempDir,
}

impl Sample {
    fn new(files: &[&str]) -> Self {
        let sample = Self { directory: tempfile::tempdir().unwrap() };
        sample.write("Dockerfile", "FROM scratch\n");
        files.iter().for_each(|path| sample.write(path, path));
        sample
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn git(&self, arguments: &[&str]) {
        let status = Command::new("git").arg("-C").arg(self.root()).args(arguments).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    }

    fn tree(&self) -> Tree {
        Tree { root: self.root().to_owned(), dockerfile: None, include_git: false, caps: Caps::default() }
    }

    fn walk(&self) -> Walked {
        walk(&self.tree(), 3).unwrap()
    }

    /// The files that go into the snapshot, in order, without the Dockerfile.
    fn files(&self) -> Vec<String> {
        files(&self.walk())
    }
}

fn files(walked: &Walked) -> Vec<String> {
    let files = walked.found.iter().filter(|found| matches!(found.kind, FoundKind::File { .. }));
    files.map(|found| show(&found.path)).filter(|path| path != "Dockerfile").collect()
}

fn paths(walked: &Walked) -> Vec<String> {
    walked.found.iter().map(|found| show(&found.path)).collect()
}

fn left_out(walked: &Walked) -> Vec<(&str, u64, u64)> {
    walked.left_out.iter().map(|left| (left.reason.as_str(), left.entries, left.bytes)).collect()
}

#[test]
fn everything_is_found_once_in_order_whatever_the_threads() {
    let sample = Sample::new(&[".env", "a-b/x", "a/b/c", "a.txt", "z/.hidden/y"]);
    fs::create_dir(sample.root().join("empty")).unwrap();
    let found = paths(&sample.walk());
    let expected =
        [".env", "Dockerfile", "a", "a/b", "a/b/c", "a-b", "a-b/x", "a.txt", "empty", "z", "z/.hidden", "z/.hidden/y"];
    assert_eq!(found, expected);
    for threads in [0, 1, 8] {
        assert_eq!(paths(&walk(&sample.tree(), threads).unwrap()), expected);
    }
}

#[test]
fn gitignore_of_the_tree_counts_and_of_nowhere_else() {
    let sample = Sample::new(&["keep/a.log", "src/x.o", "src/y.c", "target/big", "deep/target/small", "doc/target.md"]);
    sample.write(".gitignore", "*.o\n/target/\n*.log\n");
    sample.write("keep/.gitignore", "!a.log\n");
    // None of these counts.
    sample.write(".ignore", "*.c\n");
    fs::create_dir_all(sample.root().join(".git/info")).unwrap();
    sample.write(".git/info/exclude", "*.c\n");
    let walked = sample.walk();
    assert_eq!(
        files(&walked),
        [".gitignore", ".ignore", "deep/target/small", "doc/target.md", "keep/.gitignore", "keep/a.log", "src/y.c"]
    );
    assert_eq!(left_out(&walked), [(".git", 1, 0), (".gitignore", 2, 7)]);

    // Nor does one above the tree.
    let inner =
        Tree { root: sample.root().join("src"), dockerfile: Some(sample.root().join("Dockerfile")), ..sample.tree() };
    let walked = walk(&inner, 1).unwrap();
    assert_eq!(files(&walked), [".kiln/Dockerfile", "x.o", "y.c"]);
}

#[test]
fn what_git_tracks_is_kept_even_when_ignored() {
    let sample = Sample::new(&["dist/index.js", "dist/other.js", "lib/gen.o", "lib/tmp.o"]);
    sample.git(&["init", "-q"]);
    sample.write(".gitignore", "dist/\n*.o\n");
    sample.git(&["add", "-f", "dist/index.js", "lib/gen.o", "Dockerfile", ".gitignore"]);
    assert_eq!(sample.files(), [".gitignore", "dist/index.js", "lib/gen.o"]);

    // From a directory of the repository as well.
    let inner =
        Tree { root: sample.root().join("lib"), dockerfile: Some(sample.root().join("Dockerfile")), ..sample.tree() };
    fs::write(sample.root().join("lib/.gitignore"), "*.o\n").unwrap();
    assert_eq!(files(&walk(&inner, 1).unwrap()), [".gitignore", ".kiln/Dockerfile", "gen.o"]);

    // And of a repository within the tree.
    let nested = sample.root().join("nested");
    fs::create_dir(&nested).unwrap();
    fs::write(nested.join("a.o"), "x").unwrap();
    fs::write(nested.join("b.o"), "x").unwrap();
    for arguments in [["init", "-q", "."].as_slice(), &["add", "-f", "a.o"]] {
        assert!(Command::new("git").arg("-C").arg(&nested).args(arguments).status().unwrap().success());
    }
    assert!(sample.files().contains(&"nested/a.o".to_owned()) && !sample.files().contains(&"nested/b.o".to_owned()));
}

#[test]
fn kilnignore_and_the_dockerfiles_ignore_file_win_over_git() {
    let sample = Sample::new(&["secret.pem", "big.bin", "dist/app.js", "dist/app.map", "out/x", "cache/y"]);
    sample.git(&["init", "-q"]);
    sample.git(&["add", "secret.pem", "big.bin"]);
    sample.write(".gitignore", "dist/\nout/\ncache/\n");
    sample.write(".kilnignore", "*.pem\n!out/\n");
    sample.write(".dockerignore", "big.bin\n!dist\n**/*.map\n");
    let walked = sample.walk();
    assert_eq!(files(&walked), [".dockerignore", ".gitignore", ".kilnignore", "dist/app.js", "out/x"]);
    assert_eq!(
        left_out(&walked),
        [(".dockerignore", 2, 19), (".git", 1, 0), (".gitignore", 2, 7), (".kilnignore", 1, 10)]
    );
}

#[test]
fn an_ignore_file_may_take_all_and_give_some_back() {
    let sample = Sample::new(&[
        "go.mod",
        "cmd/main.go",
        "cmd/deep/util.go",
        "node_modules/x/y",
        "assets/a/logo.png",
        "assets/b",
    ]);
    sample.write(".dockerignore", "*\n!go.mod\n!cmd/**/*.go\n!assets/a\n");
    let walked = sample.walk();
    // The Dockerfile and its ignore file are sent beside the context, which is just what the ignore file gives back.
    let expected = [
        ".kiln",
        ".kiln/Dockerfile",
        ".kiln/Dockerfile.dockerignore",
        "assets",
        "assets/a",
        "assets/a/logo.png",
        "cmd",
        "cmd/deep",
        "cmd/deep/util.go",
        "cmd/main.go",
        "go.mod",
    ];
    assert_eq!(paths(&walked), expected);
    assert_eq!(walked.dockerfile, ".kiln/Dockerfile");
    // `node_modules` was not even entered; it and `assets/b`, the Dockerfile and `.dockerignore` are what is left out.
    let entries: u64 = walked.left_out.iter().map(|left| left.entries).sum();
    assert_eq!(entries, 4, "{:?}", walked.left_out);
}

#[test]
fn a_dockerfiles_own_ignore_file_comes_first() {
    let sample = Sample::new(&["a", "b", "docker/prod.Dockerfile"]);
    sample.write(".dockerignore", "a\n");
    sample.write("docker/prod.Dockerfile.dockerignore", "b\n");
    let tree = Tree { dockerfile: Some(sample.root().join("docker/prod.Dockerfile")), ..sample.tree() };
    let walked = walk(&tree, 1).unwrap();
    assert_eq!(walked.dockerfile, "docker/prod.Dockerfile");
    let expected = [".dockerignore", "a", "docker/prod.Dockerfile", "docker/prod.Dockerfile.dockerignore"];
    assert_eq!(files(&walked), expected);
    assert_eq!(left_out(&walked), [("prod.Dockerfile.dockerignore", 1, 1)]);
}

#[test]
fn a_dockerfile_from_elsewhere_is_sent_beside_the_context() {
    let sample = Sample::new(&["app/main.c", "build/Dockerfile.prod"]);
    sample.write("build/Dockerfile.prod.dockerignore", "*.md\n");
    sample.write("app/notes.md", "");
    // A `.kiln` of the tree's own cannot be mistaken for it.
    sample.write("app/.kiln/Dockerfile.prod", "FROM evil\n");
    let tree = Tree {
        root: sample.root().join("app"),
        dockerfile: Some(sample.root().join("app/../build/Dockerfile.prod")),
        ..sample.tree()
    };
    let walked = walk(&tree, 1).unwrap();
    assert_eq!(walked.dockerfile, ".kiln/Dockerfile.prod");
    assert_eq!(files(&walked), [".kiln/Dockerfile.prod", ".kiln/Dockerfile.prod.dockerignore", "main.c"]);
    let FoundKind::File { elsewhere: Some(path), .. } = &walked.found[1].kind else { panic!() };
    assert_eq!(fs::read_to_string(path).unwrap(), "build/Dockerfile.prod");
    assert!(left_out(&walked).contains(&(".kiln (reserved)", 1, 0)));

    // One that is a link may lead anywhere, so it is sent as if it was elsewhere.
    symlink("../build/Dockerfile.prod", sample.root().join("app/Dockerfile")).unwrap();
    let walked = walk(&Tree { root: sample.root().join("app"), ..sample.tree() }, 1).unwrap();
    assert_eq!(walked.dockerfile, ".kiln/Dockerfile");
}

#[test]
fn a_missing_dockerfile_says_what_was_looked_for() {
    let sample = Sample::new(&["a"]);
    fs::remove_file(sample.root().join("Dockerfile")).unwrap();
    let error = walk(&sample.tree(), 1).unwrap_err().to_string();
    let root = fs::canonicalize(sample.root()).unwrap();
    let root = root.display();
    assert_eq!(
        error,
        format!("no Dockerfile: looked for {root}/Dockerfile and {root}/dockerfile; name another one with -f")
    );
    fs::rename(sample.root().join("a"), sample.root().join("dockerfile")).unwrap();
    assert_eq!(sample.walk().dockerfile, "dockerfile");
}

#[test]
fn git_comes_along_when_asked_for() {
    let sample = Sample::new(&[".git/HEAD", "sub/.git"]);
    assert_eq!(sample.files(), Vec::<String>::new());
    let tree = Tree { include_git: true, ..sample.tree() };
    assert_eq!(files(&walk(&tree, 1).unwrap()), [".git/HEAD", "sub/.git"]);
}

#[test]
fn what_is_no_file_directory_or_link_is_skipped_with_a_warning() {
    let sample = Sample::new(&["a"]);
    nix::unistd::mkfifo(&sample.root().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(sample.root().join("socket")).unwrap();
    symlink("pipe", sample.root().join("link")).unwrap();
    let walked = sample.walk();
    assert_eq!(paths(&walked), ["Dockerfile", "a", "link"]);
    assert_eq!(walked.warnings, ["pipe is skipped: it is a named pipe", "socket is skipped: it is a socket"]);
}

#[test]
fn ignore_files_that_cannot_be_used_are_told_of() {
    let sample = Sample::new(&["a.o"]);
    sample.write(".gitignore", "*.o\na{b\n");
    fs::create_dir(sample.root().join(".kilnignore")).unwrap();
    let walked = sample.walk();
    assert_eq!(files(&walked), [".gitignore"]);
    assert_eq!(walked.warnings.len(), 2, "{:?}", walked.warnings);
    sample.write(".dockerignore", "[a\n");
    let error = walk(&sample.tree(), 1).unwrap_err().to_string();
    assert!(error.contains(".dockerignore") && error.contains("\"[a\""), "{error}");
}

#[test]
fn a_git_index_that_cannot_be_read_is_told_of() {
    let sample = Sample::new(&["a.o"]);
    sample.write(".git/index", "no index");
    sample.write(".gitignore", "*.o\n");
    let walked = sample.walk();
    assert_eq!(files(&walked), [".gitignore"]);
    assert!(walked.warnings[0].contains("is not an index"), "{:?}", walked.warnings);
}

#[test]
fn times_before_1970_and_far_away_are_brought_into_range() {
    assert_eq!((canonical_time(-5), canonical_time(7), canonical_time(i64::MAX)), (0, 7, (1 << 33) - 1));
}

#[test]
fn an_ignore_file_that_is_a_directory_is_named() {
    for name in [".dockerignore", "Dockerfile.dockerignore"] {
        let sample = Sample::new(&[&format!("{name}/x")]);
        let error = walk(&sample.tree(), 1).unwrap_err();
        assert!(matches!(&error, TreeError::Unreadable { path, .. } if path.ends_with(name)), "{error}");
    }
}
