//! Source trees: `kiln up` as a whole command, beside `tar c | zstd -3 -T0` of the same tree.
//!
//! The tree is made of the machine's own Go sources, so that it compresses as source code does: 25,000 files and about 300 MB.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::dev::Dev;
use super::harness::spine::{Ran, kiln};
use super::report::{Sample, row, timed};

/// What the tree is made of, at most.
const FILES: usize = 25_000;
const BYTES: u64 = 300_000_000;
/// Rounds of each row.
const ROUNDS: usize = 5;

pub fn run(dev: &Dev, dir: &Path) {
    let tree = dir.join("tree");
    let (files, bytes) = make(&tree);
    println!("source tree: {files} files, {} MB", bytes / 1_000_000);
    let mut tar_times = Vec::new();
    let (mut first, mut unchanged) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        tar_times.push(timed(&mut tar(&tree)).0);
        // A project of its own has no base: everything is packed and uploaded.
        let project = format!("tree-{n}");
        first.push(up(dev, &tree, &project, "first").snapshot);
        unchanged.push(up(dev, &tree, &project, "unchanged").whole);
    }
    let theirs = Sample::new(tar_times);
    row("first snapshot, packed and uploaded", &Sample::new(first), &theirs, "tar | zstd -3 -T0");
    row("kiln up of the unchanged tree, to result", &Sample::new(unchanged), &theirs, "tar | zstd -3 -T0");
    edited(dev, &tree);
}

/// Milliseconds of the whole command, and of its snapshot alone.
struct Up {
    whole: f64,
    snapshot: f64,
    /// Bytes of packs that the cell fetched.
    fetched: u64,
}

/// One `kiln up`, to its result.
fn up(dev: &Dev, tree: &Path, project: &str, what: &str) -> Up {
    let mut command = kiln(
        &dev.data,
        &["up", tree.to_str().unwrap(), "--project", project, "--output", "json", "--progress", "plain"],
    );
    let begun = std::time::Instant::now();
    let ran: Ran = command.output().unwrap().into();
    let whole = super::report::milliseconds(begun);
    let ran = ran.ok();
    let timings = &ran.json()["timings_ms"];
    println!("  kiln up, {what}: {whole:.0} ms; {timings}");
    let summary = ran.stderr.lines().filter(|line| line.contains("snapshot") || line.contains("upload"));
    summary.for_each(|line| println!("    {line}"));
    let id = ran.json()["build_id"].as_str().unwrap().to_owned();
    let show: Ran = kiln(&dev.data, &["builds", "show", &id, "--output", "json"]).output().unwrap().into();
    let fetched = show.ok().json()["result"]["cache"]["fetched_bytes"].as_u64().unwrap();
    Up { whole, snapshot: timings["upload"].as_f64().unwrap(), fetched }
}

/// A line more in every hundredth file: what travels then.
fn edited(dev: &Dev, tree: &Path) {
    let mut files = Vec::new();
    list(tree, &mut files);
    files.sort();
    for path in files.iter().step_by(100).filter(|path| !path.ends_with("Dockerfile")) {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, b"\n").unwrap();
    }
    let before = stored(dev);
    let build = up(dev, tree, "tree-0", "1 % of the files edited");
    let after = stored(dev);
    let packed = tar(tree).stdout(Stdio::piped()).output().unwrap();
    println!(
        "1 % of the files edited: {} bytes of packs and {} of manifest uploaded, {} bytes of packs fetched by the cell; the tree's compressed size is {}",
        after.0 - before.0,
        after.1 - before.1,
        build.fetched,
        packed.stdout.len()
    );
}

/// Bytes of all packs and of all manifests in object storage.
fn stored(dev: &Dev) -> (u64, u64) {
    let mut files = Vec::new();
    list(&dev.data.join("s3"), &mut files);
    let of = |part: &str| {
        let named = files.iter().filter(|path| path.to_string_lossy().contains(part));
        named.map(|path| std::fs::metadata(path).unwrap().len()).sum()
    };
    (of("/packs/"), of("/snapshots/"))
}

fn tar(tree: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg("tar c -C \"$0\" . | zstd -3 -T0 -q -c").arg(tree).stdout(Stdio::null());
    command
}

/// Copies of the Go sources, one after the other in folders of their own, until there are enough.
fn make(tree: &Path) -> (usize, u64) {
    let goroot = Command::new("go").args(["env", "GOROOT"]).output().unwrap();
    let source = PathBuf::from(String::from_utf8(goroot.stdout).unwrap().trim()).join("src");
    let mut sources = Vec::new();
    list(&source, &mut sources);
    sources.sort();
    let (mut files, mut bytes) = (0, 0);
    for (copy, path) in (0..9).flat_map(|copy| sources.iter().map(move |path| (copy, path))) {
        if files == FILES || bytes > BYTES {
            break;
        }
        let target = tree.join(format!("copy-{copy}")).join(path.strip_prefix(&source).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let text = std::fs::read(path).unwrap();
        // No two copies have the same content, or they would be stored once.
        let text = [format!("// copy {copy}\n").as_bytes(), &text].concat();
        bytes += text.len() as u64;
        files += 1;
        std::fs::write(target, text).unwrap();
    }
    std::fs::write(tree.join("Dockerfile"), "FROM busybox\nCOPY . /src\n").unwrap();
    (files, bytes)
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => list(&entry.path(), files),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}
