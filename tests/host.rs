//! The host's agent on real processes: what it starts and stops, what it finds again, what it refuses.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::dev::{self, Built, eventually, processes_with};
use crate::harness::host::{Orders, OwnHost, programs};
use crate::harness::spine::{self, Spine};

const PATIENCE: Duration = Duration::from_secs(60);

/// One `kiln dev` for the services; the hosts are the tests' own.
fn installation() -> &'static Spine {
    static INSTALLATION: OnceLock<Spine> = OnceLock::new();
    INSTALLATION.get_or_init(|| spine::start("host", &["--cells", "1", "--seed", "busybox"]))
}

fn orders() -> &'static Orders {
    static ORDERS: OnceLock<Orders> = OnceLock::new();
    ORDERS.get_or_init(|| Orders::through(&installation().ready))
}

fn own(id: &str, cell: &str, bound: bool) -> OwnHost {
    OwnHost::new(&installation().data, id, cell, bound)
}

/// A build on a cell's own daemon.
fn solve(socket: &Path, dockerfile: &str) -> Built {
    tokio::runtime::Runtime::new().unwrap().block_on(dev::solve(socket, dockerfile, None))
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

/// A step whose command line is unlike any other on the machine.
fn long_step(seconds: u32) -> String {
    format!("sleep {seconds}; : host test {}", std::process::id())
}

#[test]
fn each_order_is_carried_out_once() {
    let host = own("h-orders", "orders-1", true);
    let agent = host.agent();
    let give = |what: &str, operation: &str| orders().give(&host.id, what, &host.order(operation, None));

    let started = give("start", "one").unwrap();
    assert!(started.running && started.generation == 1, "{started:?}");
    assert_eq!(started.pid, host.guard(), "the guard holds the cell");
    host.until_builder_is_up(1);

    let begun = Instant::now();
    let stopped = give("stop", "two").unwrap();
    assert_eq!((stopped.running, stopped.pid), (false, None));
    assert!(host.processes("__cell-init").is_empty() && host.processes("buildkitd").is_empty());
    assert_eq!(give("stop", "two").unwrap(), stopped);
    assert_eq!(give("start", "one").unwrap(), started, "a repeated id gives the first answer");
    assert_eq!(give("inspect", "any").unwrap(), stopped, "and does nothing");

    let again = give("start", "three").unwrap();
    assert!(again.running && again.generation == 2 && again.pid != started.pid, "{again:?}");
    host.until_builder_is_up(2);
    eprintln!("stop, start and a builder that is up took {:?}", begun.elapsed());
    assert_eq!(give("start", "four").unwrap().pid, again.pid, "it runs already");
    assert_eq!(give("inspect", "any").unwrap(), again);

    let reused = give("stop", "three").unwrap_err();
    assert!(reused.contains("was a start before"), "{reused}");
    agent.terminate();
    assert!(host.processes("__cell-init").is_empty(), "a bound cell ends with its agent");
}

#[test]
fn what_cannot_be_carried_out_is_refused() {
    let host = own("h-refusals", "refusals-1", true);
    let _agent = host.agent();
    let before = orders().give(&host.id, "start", &host.order("one", None)).unwrap();

    let mut unknown = host.order("two", None);
    unknown.cell = "somebody-elses".parse().unwrap();
    let said = orders().give_up_to(3, &host.id, "start", &unknown).unwrap_err();
    assert!(said.contains("host h-refusals has no cell somebody-elses; its cells are refusals-1"), "{said}");

    // A directory with programs of its own, as a RUN step could write it below the snapshotter.
    let path = host.dir.join("buildkit/snapshots/7/fs/image");
    let named = programs(&path);
    let digest = named.split_once('@').unwrap().1;
    let paths = [path.display().to_string(), format!("{}@{digest}", path.display()), format!("../../{named}")];
    for (n, image) in paths.iter().enumerate() {
        let order = host.order(&format!("three-{n}"), Some(image));
        let said = orders().give_up_to(3, &host.id, "start", &order).unwrap_err();
        assert!(said.contains("no path is taken"), "{said}");
    }
    let absent = orders().give_up_to(3, &host.id, "start", &host.order("absent", Some(&named))).unwrap_err();
    assert!(absent.contains("there is no "), "{absent}");
    let other = host.image("v2").replacen("sha256:", "sha256:0", 1);
    let other = &other[..other.len() - 1];
    let said = orders().give_up_to(3, &host.id, "start", &host.order("other", Some(other))).unwrap_err();
    assert!(said.contains("the image in "), "{said}");

    let said = orders().give_up_to(3, &host.id, "clone", &host.order("four", None)).unwrap_err();
    assert!(said.contains("only guests are cloned"), "{said}");
    assert!(!host.dir.with_file_name("copy").exists());
    let said = orders().give_up_to(3, &host.id, "delete", &host.order("five", None)).unwrap_err();
    assert!(said.contains("cell refusals-1 is no clone"), "{said}");
    assert!(!orders().give(&host.id, "delete", &unknown).unwrap().running, "what is not there is deleted");
    assert_eq!(orders().give(&host.id, "inspect", &host.order("six", None)).unwrap(), before, "nothing was touched");
}

#[test]
fn an_agent_that_cannot_have_its_cells_says_so_and_ends() {
    let ended = |host: &OwnHost, more: &[&str]| {
        let output = host.command().args(more).stdin(Stdio::null()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let host = own("h-nothing", "nothing-1", false);
    let (code, said) = ended(&host, &["--set", "host.driver=xen"]);
    assert!(
        code == 2 && said.contains("host.driver = \"xen\" (from --set): must be process or qemu or firecracker"),
        "{code}: {said}"
    );
    let (code, said) = ended(&host, &["--set", "host.cells="]);
    assert!(code == 2 && said.contains("kiln host needs it"), "{code}: {said}");
    let (code, said) = ended(&host, &["--set", "host.cells=/nowhere/nothing-1"]);
    assert!(code == 75 && said.contains("/nowhere/nothing-1 is not there"), "{code}: {said}");

    let first = host.agent();
    eventually("the first agent has the cell", PATIENCE, || host.guard());
    let (code, said) = ended(&host, &[]);
    let holder = format!("is held by host h-nothing, process {}", first.child.id());
    assert!(code == 75 && said.contains(&holder), "{code}: {said}");
}

#[test]
fn a_cell_outlives_its_agent_and_the_next_one_adopts_it() {
    let host = own("h-adopts", "adopts-1", false);
    let first = host.agent();
    let started = orders().give(&host.id, "start", &host.order("one", None)).unwrap();
    let step = long_step(10);
    let (socket, dockerfile) = (host.socket.clone(), format!("FROM busybox\nRUN {step}\n"));
    let building = std::thread::spawn(move || solve(&socket, &dockerfile));
    eventually("the step runs", PATIENCE, || processes_with(&step).pop());

    first.kill_9();
    assert_eq!(host.guard(), started.pid, "nobody is there and the cell runs");
    let second = host.agent();
    let adopted = orders().give(&host.id, "inspect", &host.order("any", None)).unwrap();
    assert_eq!(adopted, started, "the same life of the cell");
    assert!(host.said().contains("adopted"), "{}", host.said());
    building.join().unwrap().result.expect("the build went on");

    second.terminate();
    assert_eq!(host.guard(), started.pid, "nor does an orderly end of the agent end its cells");
    let _third = host.agent();
    assert!(
        !orders().give(&host.id, "stop", &host.order("two", None)).unwrap().running,
        "what was adopted can be stopped"
    );
    assert_eq!(host.guard(), None);
}

#[test]
fn a_cell_whose_guard_died_is_seen_as_not_running() {
    let host = own("h-guard", "guard-1", false);
    let agent = host.agent();
    let started = orders().give(&host.id, "start", &host.order("one", None)).unwrap();
    agent.kill_9();
    // So that it is not started again at once.
    let (plan, aside) = (host.dir.join("cell.json"), host.dir.join("aside"));
    fs::rename(&plan, &aside).unwrap();
    kill_9(host.guard().unwrap());
    eventually("PID 1 went with its guard", PATIENCE, || host.processes("__cell-init").is_empty().then_some(()));

    let _agent = host.agent();
    let seen = orders().give(&host.id, "inspect", &host.order("any", None)).unwrap();
    assert_eq!((seen.running, seen.pid, seen.started_ms), (false, None, None), "{seen:?}");
    eventually("it says why it cannot start it", PATIENCE, || {
        host.said().contains("guard-1 cannot be started: ").then_some(())
    });
    fs::rename(&aside, &plan).unwrap();
    let guard = eventually("it comes back by itself", PATIENCE, || host.guard());
    assert_ne!(Some(guard), started.pid);
}

#[test]
fn an_update_to_other_programs_keeps_the_cache() {
    let host = own("h-updates", "updates-1", true);
    let _agent = host.agent();
    orders().give(&host.id, "start", &host.order("one", None)).unwrap();
    let dockerfile = "FROM busybox\nRUN echo kept for the next image\n";
    solve(&host.socket, dockerfile).result.unwrap();

    let image = host.image("v2");
    let listed = host.command().args(["images"]).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().trim_end(), image, "the host lists it so");
    let updated = orders().give(&host.id, "start", &host.order("two", Some(&image))).unwrap();
    assert_eq!((updated.running, updated.generation), (true, 2));
    assert_eq!(updated.image.as_deref(), Some(image.as_str()));
    let programs = host.processes(host.dir.join("images/v2/buildkitd").to_str().unwrap());
    assert!(!programs.is_empty(), "its buildkitd is the image's");
    let built = solve(&host.socket, dockerfile);
    built.result.unwrap();
    assert!(built.cached.iter().any(|step| step.contains("kept for the next image")), "{:?}", built.cached);

    kill_9(updated.pid.unwrap());
    let back = eventually("it comes back", PATIENCE, || {
        let seen = orders().give(&host.id, "inspect", &host.order("any", None)).unwrap();
        (seen.running && seen.generation == 3).then_some(seen)
    });
    assert_eq!(back.image, updated.image, "with what it ran last");
}

#[test]
fn of_two_hosts_with_one_cell_id_the_second_is_refused() {
    let (first, second) = (own("h-first", "twice-1", true), own("h-second", "twice-1", true));
    let _agent = first.agent();
    first.until_builder_is_up(1);

    let _other = second.agent();
    let said = "cell twice-1 belongs to host h-first";
    eventually("the second says so", PATIENCE, || second.said().contains(said).then_some(()));
    eventually("and runs nothing", PATIENCE, || second.guard().is_none().then_some(()));
    let refused = orders().give(&second.id, "start", &second.order("one", None)).unwrap_err();
    assert!(refused.contains(said), "{refused}");
    assert!(orders().give(&first.id, "inspect", &first.order("any", None)).unwrap().running);
}

#[test]
fn the_units_for_a_plain_machine_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    for program in ["kiln", "buildkitd", "runc"] {
        symlink("/bin/true", dir.path().join(program)).unwrap();
    }
    let units = dir.path().join("units");
    fs::create_dir(&units).unwrap();
    let mut files = Vec::new();
    for unit in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd")).unwrap() {
        let unit = unit.unwrap().path();
        if !["service", "slice"].contains(&unit.extension().unwrap().to_str().unwrap()) {
            continue;
        }
        // They name programs that are installed, which they are not here.
        let programs = format!("{}/", dir.path().display());
        let text = fs::read_to_string(&unit).unwrap().replace("/usr/local/lib/kiln/", &programs);
        files.push(units.join(unit.file_name().unwrap()));
        fs::write(files.last().unwrap(), text).unwrap();
    }
    assert_eq!(files.len(), 7);
    let Some(said) = verified(&files) else {
        eprintln!("systemd-analyze is not here: the units were not checked");
        return;
    };
    assert_eq!(said, "");
    let spoilt = fs::read_to_string(&files[0]).unwrap().replace("Description=", "Descriptoin=");
    fs::write(&files[0], spoilt).unwrap();
    assert!(verified(&files).unwrap().contains("Descriptoin"), "the check finds mistakes");
}

/// The kernel keeps memory for a slice only as far as it keeps it for all slices above it.
#[test]
fn the_daemons_floor_is_kept_by_the_slice_above_them() {
    let floor = |unit: &str| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(unit);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let floor = text.lines().find_map(|line| line.strip_prefix("MemoryMin=")?.strip_suffix('G'));
        floor.map_or(0, |gib| gib.parse::<u64>().unwrap())
    };
    assert!(floor("kiln-daemons.slice") > 0);
    assert!(floor("kiln.slice") >= floor("kiln-daemons.slice") + floor("kiln-builds.slice"));
}

/// What `systemd-analyze verify` has to say; `None` where it is not installed.
fn verified(files: &[PathBuf]) -> Option<String> {
    let units = format!("{}:", files[0].parent().unwrap().display());
    let output = Command::new("systemd-analyze").arg("verify").args(files).env("SYSTEMD_UNIT_PATH", units).output();
    let output = output.ok()?;
    Some(String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap())
}
