//! Cells that are microVMs: `kiln dev --driver qemu`, as a user runs it. Part of `make test-vm`: each boot takes seconds of both
//! processors of a small machine, and several times that where QEMU has to emulate them.

mod network;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::Digest as _;

use network::Neighbour;

use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::spine::{Ran, kiln, tree};

/// A guest that hangs in its boot is killed after a minute and started again, twice.
const BOOT: Duration = Duration::from_secs(300);
const DOCKERFILE: &str = "\
    FROM busybox\n\
    COPY a.txt /a.txt\n\
    RUN cat /a.txt > /b.txt && echo said: $(cat /b.txt)\n\
    RUN echo signals: $(grep SigBlk /proc/self/status)\n";

/// The image with the `kiln` under test.
fn image() -> PathBuf {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/guest/build");
    let output = Command::new(build).arg(env!("CARGO_BIN_EXE_kiln")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn up(dev: &Dev, dir: &Path) -> Ran {
    let dir = dir.to_str().unwrap();
    Ran::of(&mut kiln(&dev.data, &["up", dir, "--project", "guest", "--output", "json", "--progress", "plain"]))
}

/// The first cell's QEMU.
fn qemu(dev: &Dev) -> Option<u32> {
    let socket = dev.data.join("cells/dev-1/vm/qmp.sock");
    let all = processes_with(&format!("qmp unix:{}", socket.display()));
    // Its guard has the same words behind its own.
    all.into_iter().find(|pid| processes_with("__guard").iter().all(|guard| guard != pid))
}

/// What cell and guest say, for an assertion's message.
fn said(dev: &Dev) -> String {
    let dir = dev.data.join("cells/dev-1/vm");
    let read = |file: PathBuf| String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
    let files =
        [dir.join("console.log"), dir.join("daemons.log"), dir.join("qemu.log"), dev.data.join("logs/host.log")];
    files.into_iter().map(|file| format!("--- {}\n{}\n", file.display(), read(file.clone()))).collect()
}

fn figure(what: &str, since: Instant) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "figure: {what} {:.1} s (load {})",
        since.elapsed().as_secs_f64(),
        load.split(' ').next().unwrap_or_default()
    );
}

#[test]
#[ignore = "boots virtual machines: make test-vm"]
fn a_build_in_a_guest_and_the_cache_that_outlives_it() {
    let image = image();
    let disks = Reflinks::mount();
    let data = disks.0.join("guests");
    std::fs::create_dir(&data).unwrap();
    let image = image.to_str().unwrap();
    let accel = if std::env::var_os("KILN_TEST_KVM").is_some() { "kvm" } else { "tcg" };
    let args =
        ["--driver", "qemu", "--guest-image", image, "--guest-accel", accel, "--cells", "1", "--seed", "busybox"];
    let neighbour = Neighbour::new();
    let more = ["--slots", "2", "--guest-memory", "1536", "--guest-reach", &neighbour.named.to_string()];
    let begun = Instant::now();
    let dev = Dev::start(&data, &[&args[..], &more[..]].concat());
    figure("kiln dev with a guest, ready after", begun);

    let dir = tree(&[("Dockerfile", DOCKERFILE), ("a.txt", "from a guest")]);
    let begun = Instant::now();
    let first = up(&dev, dir.path());
    assert_eq!(first.code, 0, "{}\n{}", first.all(), said(&dev));
    figure("first build in the guest", begun);
    assert!(first.stderr.contains("said: from a guest"), "{}", first.all());
    assert!(first.stderr.contains("signals: SigBlk: 0000000000000000"), "{}", first.all());
    let digest = first.json()["digest"].clone();
    assert!(digest.as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{}", first.all());
    let begun = Instant::now();
    assert_eq!(up(&dev, dir.path()).code, 0);
    figure("the same build again", begun);

    network::steps_reach_nothing_of_the_installation(&dev);
    network::the_policy_for_steps_holds(&dev);
    network::steps_reach_the_private_network_that_is_named(&dev, &neighbour);
    network::steps_ask_their_guest_for_names(&dev);
    network::a_rule_that_is_taken_away_stands_again(&tap(&data.join("cells/dev-1")));
    the_agent_tells_of_its_guests(&dev);
    cloned_by_order(&dev, dir.path(), &digest);

    let former = qemu(&dev).expect("the guest runs");
    kill(Pid::from_raw(former.cast_signed()), Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    eventually("the agent starts the guest again", BOOT, || qemu(&dev).filter(|pid| *pid != former));
    let again = up(&dev, dir.path());
    assert_eq!(again.code, 0, "{}\n{}", again.all(), said(&dev));
    figure("from a power cut to a cached build", begun);
    let again = again.json();
    assert_eq!((&again["digest"], &again["cached_steps"]), (&digest, &again["total_steps"]), "{again}");

    updated(&dev, &data, Path::new(image));
    let again = up(&dev, dir.path()).ok().json();
    assert_eq!(again["cached_steps"], again["total_steps"], "{again}");

    let tap = tap(&data.join("cells/dev-1"));
    assert!(Path::new("/sys/class/net").join(&tap).exists(), "{tap}");
    let (status, took) = dev.terminate();
    assert!(status.success() && took < Duration::from_secs(15), "{status} after {took:?}");
    eventually("nothing is left", Duration::from_secs(15), || {
        let processes = processes_with(&format!("{}/cells", data.display()));
        (processes.is_empty() && !Path::new("/sys/class/net").join(&tap).exists()).then_some(())
    });
}

/// A second cell on a copy of the first one's disk: what was built there is cached here, and it goes with its disk.
fn cloned_by_order(dev: &Dev, context: &Path, digest: &serde_json::Value) {
    let order = |args: &[&str]| -> Ran {
        let ran = Ran::of(&mut kiln(&dev.data, &[&["cells"], args].concat()));
        assert_eq!(ran.code, 0, "{args:?}: {}\n{}", ran.all(), said(dev));
        ran
    };
    let begun = Instant::now();
    order(&["clone", "dev-1", "--as", "dev-1-b", "--wait"]);
    figure("from the order to a clone that takes builds", begun);
    order(&["drain", "dev-1", "--wait"]);
    let built = up(dev, context).ok().json();
    assert_eq!(built["cell"], "dev-1-b", "{built}");
    assert_eq!((&built["digest"], &built["cached_steps"]), (digest, &built["total_steps"]), "{built}");
    network::steps_do_not_reach_the_other_cell(dev, &order);
    order(&["undrain", "dev-1", "--wait"]);
    let clone = dev.data.join("cells/dev-1-b");
    assert!(clone.exists());
    order(&["delete", "dev-1-b", "--wait"]);
    assert!(!clone.exists(), "its disk is still there");
    assert!(processes_with(&format!("qmp unix:{}", clone.display())).is_empty(), "it still runs");
}

/// The ports of `kiln dev` by their names.
fn ports(dev: &Dev) -> BTreeMap<String, u16> {
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dev.data.join("state.json")).unwrap()).unwrap();
    serde_json::from_value(state["ports"].clone()).unwrap()
}

/// Its metrics have what the guest says of itself.
fn the_agent_tells_of_its_guests(dev: &Dev) {
    let address = ("127.0.0.1", ports(dev)["host_metrics"]);
    eventually("the pressure in the guest is among the metrics", Duration::from_secs(120), || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let pressure = r#"kiln_guest_pressure{cell="dev-1",resource="memory",slice="builds"}"#;
        (text.contains(pressure) && text.contains(r#"kiln_guest_memory_available_bytes{cell="dev-1"}"#)).then_some(())
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /cells/dev-1/metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains(r#"kiln_info{role="builder""#), "the guest's builder answers through its host: {text}");
}

/// Drained, stopped and started from another version of the image, its cache kept.
fn updated(dev: &Dev, data: &Path, image: &Path) {
    let second = data.join("images/second");
    std::fs::create_dir_all(&second).unwrap();
    for file in ["vmlinux", "initrd.zst", "root.erofs"] {
        std::fs::copy(image.join(file), second.join(file)).unwrap();
    }
    let manifest = std::fs::read_to_string(image.join("manifest.json")).unwrap();
    let manifest = manifest.replacen("\"version\":\"", "\"version\":\"second-", 1);
    std::fs::write(second.join("manifest.json"), &manifest).unwrap();
    let digest: String = sha2::Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();

    let begun = Instant::now();
    let named = format!("second@sha256:{digest}");
    let ran = Ran::of(&mut kiln(data, &["cells", "update", "dev-1", "--image", &named, "--force", "--wait"]));
    assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
    figure("drain, stop, another image, start, ready", begun);
    let runs = processes_with(&format!("-kernel {}", second.join("vmlinux").display()));
    assert!(!runs.is_empty(), "{}", said(dev));
    assert!(said(dev).contains("asked to stop"), "the builder was killed: {}", said(dev));
}

/// A file system whose files can share their content, as clones need it.
struct Reflinks(PathBuf);

impl Reflinks {
    fn mount() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap().keep();
        let image = dir.join("xfs.img");
        std::fs::File::create(&image).unwrap().set_len(16 << 30).unwrap();
        let at = dir.join("disks");
        std::fs::create_dir(&at).unwrap();
        ran(Command::new("/sbin/mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self(at)
    }
}

impl Drop for Reflinks {
    /// Guests that were killed a moment ago still hold their files.
    fn drop(&mut self) {
        ran(Command::new("umount").arg("--lazy").arg(&self.0));
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The host's end of a cell's wire.
fn tap(cell: &Path) -> String {
    format!("kiln{}", &blake3::hash(cell.as_os_str().as_encoded_bytes()).to_hex()[..8])
}
