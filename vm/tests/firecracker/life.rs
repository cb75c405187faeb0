//! A guest's life as with QEMU, as far as Firecracker's part goes.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vm::{
    BuildkitdConfig, End, Guest, GuestConfig, GuestNetwork, HostNetwork, Image, Machine, Patience, Phase, Slices,
    StepLimits, VmError, Vmm, disk,
};

use crate::stand_in::{But, asked, program};

const PATIENCE: Patience = Patience { hello: Duration::from_secs(30), ready: Duration::from_secs(30), attempts: 1 };
const ANSWER: Duration = Duration::from_secs(30);

struct Cell {
    machine: Machine,
    _dir: tempfile::TempDir,
}

fn cell(but: &But) -> Cell {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    let image = Image {
        version: "1".into(),
        digest: "sha256:1".into(),
        kernel: file("vmlinux"),
        initrd: file("initrd.zst"),
        root: file("root.erofs"),
        bytes: 1,
    };
    let machine = Machine {
        dir: dir.path().join("vm"),
        image,
        cache_disk: file("cache.img"),
        swap_disk: Some(file("swap.img")),
        vcpus: 2,
        memory_mib: 1024,
        huge_pages: true,
        pinned_to: vec![0],
        network: HostNetwork::Tap { name: "kiln-test".into() },
        vmm: Vmm::Firecracker(program(dir.path(), but)),
        supervisor: None,
    };
    Cell { machine, _dir: dir }
}

impl Drop for Cell {
    /// Whatever the test did, nothing of it goes on.
    fn drop(&mut self) {
        if let Some(guest) = Guest::adopt(&self.machine.dir) {
            guest.process().signal(9);
        }
    }
}

fn config() -> GuestConfig {
    GuestConfig {
        id: "c1".into(),
        network: GuestNetwork {
            address: Ipv4Addr::new(10, 64, 0, 2),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 64, 0, 1),
            dns: vec![],
            forwarder: false,
            mtu: None,
            steps: None,
        },
        cache_is_copy: false,
        swap: true,
        slices: Slices::default(),
        step: StepLimits::default(),
        buildkitd: BuildkitdConfig::default(),
        builder: None,
    }
}

async fn boot(cell: &Cell) -> Result<Guest, VmError> {
    Guest::boot(&cell.machine, &config(), PATIENCE).await.map(|(guest, hello)| {
        assert_eq!((hello.phase, hello.id.as_str()), (Phase::Running, "c1"));
        guest
    })
}

async fn refused(cell: &Cell) -> String {
    let error = boot(cell).await.unwrap_err();
    assert!(Guest::adopt(&cell.machine.dir).is_none(), "nothing runs");
    error.to_string()
}

fn console(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("console.log")).unwrap()
}

#[tokio::test]
async fn it_is_told_what_the_guest_is_made_of_and_stops_in_order() {
    let cell = cell(&But::Works);
    let mut guest = boot(&cell).await.unwrap();
    let asked = asked(&cell.machine.dir);
    let paths: Vec<_> = asked.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(
        paths,
        [
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/root",
            "PUT /drives/config",
            "PUT /drives/cache",
            "PUT /drives/swap",
            "PUT /network-interfaces/eth0",
            "PUT /vsock",
            "PUT /entropy",
            "PUT /actions",
        ]
    );
    let body = |path: &str| -> Value { asked.iter().find(|(what, _)| what == path).unwrap().1.clone() };
    assert_eq!(body("PUT /machine-config"), json!({"vcpu_count": 2, "mem_size_mib": 1024, "huge_pages": "2M"}));
    assert_eq!(body("PUT /drives/cache")["path_on_host"], json!(cell.machine.cache_disk));
    assert!(pinned_to_the_first(guest.process().pid));
    assert_eq!(guest.stop(ANSWER).await.unwrap(), End::Orderly);
    assert!(!guest.is_alive());
    // The console is kept from start to start.
    let mut again = boot(&cell).await.unwrap();
    assert_eq!(console(&cell.machine.dir).matches("the cache is cold").count(), 2);
    again.stop(ANSWER).await.unwrap();
}

fn pinned_to_the_first(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().any(|line| line == "Cpus_allowed_list:\t0")
}

#[tokio::test]
async fn whoever_comes_next_adopts_it_and_rules_it_over_the_api() {
    let cell = cell(&But::Works);
    let first = boot(&cell).await.unwrap();
    let mut guest = Guest::adopt(&cell.machine.dir).unwrap();
    assert_eq!(guest.process(), first.process());
    assert!(matches!(boot(&cell).await, Err(VmError::Running { .. })), "no second one");
    drop(first);
    guest.pause().await.unwrap();
    let silent = guest.control().await.unwrap().hello(Duration::from_millis(100)).await.unwrap_err();
    assert!(silent.to_string().contains("did not answer hello"), "{silent}");
    assert_eq!(guest.resume().await.unwrap(), 1000, "its clock was set");
    disk::grow(&cell.machine.cache_disk, 1 << 20).await.unwrap();
    guest.grow_disk(&cell.machine.cache_disk, 1 << 20, ANSWER).await.unwrap();
    let asked = asked(&cell.machine.dir);
    let last: Vec<_> = asked.iter().rev().take(3).map(|(what, _)| what.as_str()).collect();
    assert_eq!(last, ["PATCH /drives/cache", "PATCH /vm", "PATCH /vm"]);
    // Two at once: whoever asks for figures does not stand in the way of whoever stops.
    let mut other = vm::Control::connect(&guest.control_line()).await.unwrap();
    other.stats(ANSWER).await.unwrap();
    guest.kill().await.unwrap();
    assert!(!guest.is_alive() && Guest::adopt(&cell.machine.dir).is_none());
    assert_eq!(guest.ended(ANSWER).await.unwrap(), Some(End::Silent));
}

#[tokio::test]
async fn what_it_refuses_is_told_in_its_words_and_nothing_runs() {
    let said = refused(&cell(&But::Refuses("/drives/cache"))).await;
    assert_eq!(said, "Firecracker refused PUT /drives/cache (400 Bad Request): it does not want to");
    let missing = cell(&But::Works);
    std::fs::remove_file(&missing.machine.image.kernel).unwrap();
    assert!(refused(&missing).await.contains("Firecracker refused PUT /boot-source"));
    let said = refused(&cell(&But::Version("1.9.1"))).await;
    assert!(said.starts_with("this is Firecracker \"1.9.1\"; 1.17 and later"), "{said}");
}

#[tokio::test]
async fn why_it_ended_is_told() {
    let said = refused(&cell(&But::Dies("config disk: field id is missing"))).await;
    assert_eq!(said, "the guest ended: config disk: field id is missing");
    let said = refused(&cell(&But::Breaks("Vcpu error: no more KVM"))).await;
    assert!(
        said.starts_with("the guest ended: without a word; its program said: ") && said.ends_with("no more KVM"),
        "{said}"
    );
}

#[tokio::test]
async fn a_console_that_has_grown_too_long_is_begun_anew_and_the_former_one_kept() {
    let cell = cell(&But::Works);
    std::fs::create_dir(&cell.machine.dir).unwrap();
    let log = cell.machine.dir.join("console.log");
    std::fs::write(&log, "kiln-init 2.100 fatal: a former life\n".repeat(1 << 18)).unwrap();
    let mut guest = boot(&cell).await.unwrap();
    assert!(console(&cell.machine.dir).contains("the cache is cold"));
    assert!(!console(&cell.machine.dir).contains("a former life"));
    let former = std::fs::read_to_string(cell.machine.dir.join("console.log.1")).unwrap();
    assert!(former.ends_with("a former life\n") && former.len() <= 8 << 20, "{}", former.len());
    // And while the guest writes to it.
    let text = "x".repeat(9 << 20);
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&log).unwrap(), text.as_bytes()).unwrap();
    guest.shorten_logs().await;
    assert_eq!(console(&cell.machine.dir), "");
    assert_eq!(guest.stop(ANSWER).await.unwrap(), End::Orderly);
    assert!(console(&cell.machine.dir).starts_with("kiln-init 9.000 the cell has stopped\n"));
}

#[tokio::test]
async fn a_guest_that_never_answers_is_killed_and_started_again() {
    let cell = cell(&But::Hangs);
    let patience = Patience { hello: Duration::from_millis(300), attempts: 2, ..PATIENCE };
    let error = Guest::boot(&cell.machine, &config(), patience).await.unwrap_err();
    assert!(matches!(error, VmError::Hung { attempts: 2, .. }), "{error}");
    assert!(Guest::adopt(&cell.machine.dir).is_none());
    assert_eq!(console(&cell.machine.dir).matches("the cache is cold").count(), 2);
}

#[tokio::test]
async fn what_firecracker_never_runs_is_refused_before_it_is_started() {
    let mut cell = cell(&But::Works);
    cell.machine.vcpus = 64;
    assert!(refused(&cell).await.contains("at most 32 processors, not 64"));
    cell.machine.vcpus = 2;
    cell.machine.network = HostNetwork::User { forwards: vec![], restricted: false };
    assert!(refused(&cell).await.contains("needs a tap device"));
    cell.machine.network = HostNetwork::Tap { name: "kiln-test".into() };
    cell.machine.vmm = Vmm::Firecracker("/nowhere/firecracker".into());
    let said = refused(&cell).await;
    assert!(said.starts_with("cannot run /nowhere/firecracker (from https://github.com/"), "{said}");
}
