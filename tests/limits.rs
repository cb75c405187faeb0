//! Builds that are too much of something: output, steps, disk.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::dev::Dev;
use crate::harness::roles::Role;
use crate::harness::spine::{Ran, kiln, spine, tree};

fn run(data: &Path, args: &[&str]) -> Ran {
    Ran::of(&mut kiln(data, args))
}

fn up(data: &Path, dir: &Path, project: &str, more: &[&str]) -> Ran {
    let mut args = vec!["up", dir.to_str().unwrap(), "--project", project, "--output", "json", "--progress", "plain"];
    args.extend(more);
    run(data, &args)
}

/// The number that a step printed alone on a line, as plain progress shows it: `#5 0.123 42`.
fn number(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix('#')?.split(' ');
    let (_step, at, said) = (words.next()?, words.next()?, words.next()?);
    let alone = words.next().is_none() && !said.is_empty() && said.bytes().all(|byte| byte.is_ascii_digit());
    (alone && at.parse::<f64>().is_ok()).then_some(said)
}

fn numbers(log: &str) -> Vec<&str> {
    log.lines().filter_map(number).collect()
}

/// Ten million lines, of which the log takes two megabytes: it has every line up to the cut, once and in order, and says where it cut.
#[test]
fn ten_million_lines_are_cut_where_the_log_says_so() {
    const CAP: i64 = 2_000_000;
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--seed", "busybox"]);
    dev.reconfigure(Role::Builder("dev-1"), &[("logs", "build_cap", CAP.into())]);
    let context = tree(&[("Dockerfile", "FROM busybox\nRUN seq 1 10000000\nRUN echo and on\n")]);
    let ran = up(&dev.data, context.path(), "lines", &["--key", "k"]).ok();
    let log = run(&dev.data, &["builds", "logs", "lines/k"]).ok();
    for shown in [&ran.stderr, &log.stdout] {
        let (before, after) = shown.split_once("the log reached its cap of 2000000 bytes; further").expect("the cut");
        let all = numbers(shown);
        let (last, whole) = all.split_last().unwrap();
        for (at, number) in whole.iter().enumerate() {
            assert_eq!(number.parse::<usize>().unwrap(), at + 1, "the lines before the cut are all there, once");
        }
        // The cut may go through a line, whose beginning is shown when the step has ended.
        assert!((whole.len() + 1).to_string().starts_with(last), "{last} after {}", whole.len());
        assert!(numbers(before).len() >= whole.len() && whole.len() > 200_000, "{} lines", whole.len());
        assert!(after.contains("records (") && after.contains("are missing here"), "how much is missing: {after}");
    }
}

/// 5,000 vertices side by side: a file operation each, gathered by one step for a hundred of them.
#[test]
fn a_dockerfile_of_5000_vertices_is_built() {
    let mut dockerfile = String::new();
    for n in 0..5000 {
        dockerfile.push_str(&format!("FROM scratch AS s{n}\nCOPY a.txt /f{n}\n"));
    }
    dockerfile.push_str("FROM busybox\n");
    for step in 0..50 {
        let mounts: String =
            (step * 100..step * 100 + 100).map(|n| format!("--mount=from=s{n},target=/m/{n} ")).collect();
        dockerfile.push_str(&format!("RUN {mounts} test $(ls /m | wc -l) = 100\n"));
    }
    let dir = tree(&[("Dockerfile", &dockerfile), ("a.txt", "x")]);
    let ran = spine().up(dir.path(), "vertices", &[]).ok();
    assert_eq!(ran.json()["total_steps"], 5050, "{}", ran.json());
}

/// A file system of fixed size where a cell's cache lies.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, megabytes: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={megabytes}m,mode=0755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(at.to_owned())
    }

    /// Writes until there is no room, and gives the file.
    fn fill(&self) -> PathBuf {
        let file = self.0.join("filler");
        let mut filler = fs::File::create(&file).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        file
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Something fills the cell's disk, then a step does: both are faults of the cell, told as a full disk. The cell works again when the
/// space is back; what the step wrote is given back with its failure.
#[test]
fn a_full_disk_is_the_cells_fault_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let disk = SmallDisk::mount(&data.join("cells/dev-1"), 256);
    let dev = Dev::start(&data, &["--cells", "1", "--seed", "busybox"]);
    let small = |text: &str| {
        let context = tree(&[("Dockerfile", &format!("FROM busybox\nRUN echo {text} > /file\n"))]);
        up(&dev.data, context.path(), "disk", &[])
    };
    small("before").ok();
    let filler = disk.fill();
    told_as_full(&small("while it is full"));
    fs::remove_file(filler).unwrap();
    small("after the filler").ok();

    let fills = "RUN dd if=/dev/zero of=/big bs=1M count=1000 || { sleep 1; exit 1; }";
    let big = tree(&[("Dockerfile", &format!("FROM busybox\n{fills}\n"))]);
    told_as_full(&up(&dev.data, big.path(), "disk", &[]));
    small("after the step").ok();
    drop(dev);
}

fn told_as_full(ran: &Ran) {
    assert_eq!(ran.code, 75, "{}", ran.all());
    let error = &ran.json()["error"];
    assert_eq!(error["class"], "cell_fault", "{error}");
    let message = error["message"].as_str().unwrap().to_lowercase();
    assert!(message.contains("disk is full"), "{message}");
    assert_eq!(ran.json()["attempts"], 3, "as often as a cell's fault is tried: {}", ran.all());
}
