//! A cell that is a microVM beside one that is a process, by the same commands in the same run; and how long the guest's buildkitd takes to
//! answer while steps take all they can get.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::harness::dev::Dev;
use super::harness::spine::{Ran, kiln, tree};
use super::report::{Sample, milliseconds, row};

const CACHED_RUNS: usize = 20;
const RESTARTS: usize = 5;
const COMMON: [&str; 6] = ["--cells", "1", "--slots", "2", "--seed", "busybox"];

pub fn run(dir: &Path) {
    let image = image();
    // Cache disks are opened past the page cache, which memory file systems do not know.
    let disk = tempfile::Builder::new().prefix("kiln-bench-").tempdir_in("/var/tmp").unwrap();
    let (process, process_ready) = started(&dir.join("process"), &[]);
    let microvm = ["--driver", "qemu", "--guest-accel", accel(), "--guest-image", image.to_str().unwrap()];
    let (guest, guest_ready) = started(&disk.path().join("guest"), &microvm);
    println!("software emulation or KVM: {}", accel());
    beside("kiln dev, ready", vec![guest_ready], vec![process_ready]);
    let context = tree(&[("Dockerfile", "FROM busybox\nCOPY a.txt /\nRUN cat /a.txt > /b.txt\n"), ("a.txt", "x")]);
    let up = |dev: &Dev| timed(dev, &["up", context.path().to_str().unwrap(), "--project", "bench"]);
    beside("first kiln up of a copy and a step", vec![up(&guest)], vec![up(&process)]);
    in_turns("kiln up, fully cached", CACHED_RUNS, || up(&guest), || up(&process));
    let restart = |dev: &Dev| timed(dev, &["cells", "restart", "dev-1", "--wait"]);
    in_turns("kiln cells restart --wait, idle", RESTARTS, || restart(&guest), || restart(&process));
    drop((guest, process));
    starvation();
}

fn accel() -> &'static str {
    if std::env::var_os("KILN_TEST_KVM").is_some() { "kvm" } else { "tcg" }
}

fn image() -> PathBuf {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/guest/build");
    let output = Command::new(build).arg(env!("CARGO_BIN_EXE_kiln")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn started(data: &Path, more: &[&str]) -> (Dev, f64) {
    let begun = Instant::now();
    let dev = Dev::start(data, &[&COMMON[..], more].concat());
    (dev, milliseconds(begun))
}

fn timed(dev: &Dev, args: &[&str]) -> f64 {
    let begun = Instant::now();
    let ran: Ran = kiln(&dev.data, args).output().unwrap().into();
    ran.ok();
    milliseconds(begun)
}

fn in_turns(what: &str, runs: usize, guest: impl Fn() -> f64, process: impl Fn() -> f64) {
    let (guests, processes) = (0..runs).map(|_| (guest(), process())).unzip();
    beside(what, guests, processes);
}

fn beside(what: &str, guest: Vec<f64>, process: Vec<f64>) {
    row(&format!("{what}, in a guest"), &Sample::new(guest), &Sample::new(process), "in a cell of processes");
}

/// The guests' own test, which has the steps for it, prints the milliseconds.
fn starvation() {
    let mut test = Command::new(env!("CARGO"));
    test.current_dir(env!("CARGO_MANIFEST_DIR")).args(["test", "--locked", "--workspace", "--test", "guest", "--"]);
    let output = test.args(["--ignored", "--test-threads=1", "--nocapture", "limits::"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().filter_map(|line| line.split_once("figure: ")).for_each(|(_, figure)| println!("{figure}"));
}
