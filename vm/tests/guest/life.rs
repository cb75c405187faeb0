//! A guest from power-on to power-off, and everything the host may ask of it in between.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::sleep;
use vm::{BuilderConfig, End, Guest, Phase, disk};

use crate::harness::{ANSWER, Cell, Context, STOP, Vm, breakdown, eventually, reference, say};

const TWO_STEPS: &str = "RUN echo one > /one\nRUN cat /one && echo two\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_cell_boots_builds_stops_and_is_warm_again() {
    let cell = Cell::new().await;
    let context = Context::new(TWO_STEPS);

    let switched_on = Instant::now();
    let (mut vm, hello) = cell.boot().await;
    say(&format!("power-on to buildkitd answers {:.1} s: {}", switched_on.elapsed().as_secs_f64(), breakdown(&hello)));
    assert_eq!((hello.phase, hello.id.as_str(), hello.warm, hello.checked), (Phase::Running, "cell-1", false, false));
    let stats = vm.guest.control().await.unwrap().stats(ANSWER).await.unwrap();
    let used = (stats["mem_total_kb"] - stats["mem_available_kb"]) / 1024.0;
    say(&format!("idle guest uses {used:.0} MB, kiln-init {:.1} MB", stats["init_rss_kb"] / 1024.0));
    assert!(used <= 250.0 && stats["init_rss_kb"] <= 4096.0, "{stats:?}");

    let built = vm.builds.build(&context).await;
    built.result.as_ref().unwrap_or_else(|error| panic!("{error}"));
    assert!(built.output().contains("two"));
    assert_eq!(built.ran().len(), 4, "{:?}", built.ran());
    let since = Instant::now();
    assert!(vm.builds.build(&context).await.ran().is_empty());
    say(&format!("cached build in the guest {:.2} s", since.elapsed().as_secs_f64()));

    let since = Instant::now();
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly, "{}", cell.console());
    say(&format!("stop, idle {:.1} s", since.elapsed().as_secs_f64()));

    let (mut vm, hello) = cell.boot().await;
    say(&format!("stop, start with the disk kept, ready: {:.1} s", since.elapsed().as_secs_f64()));
    assert!(hello.warm && !hello.checked, "{hello:?}");
    let again = vm.builds.build(&context).await;
    assert!(again.result.is_ok() && again.ran().is_empty(), "{:?}", again.ran());
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn what_the_host_asks_of_a_running_guest() {
    let mut cell = Cell::new().await;
    cell.config.builder = Some(BuilderConfig::new("[cell]\nno_such_key = 1\n", Duration::from_secs(2)));
    let (mut vm, _) = cell.boot().await;
    adopted_after_a_restart(&cell, &mut vm).await;
    each_new_client_is_answered(&mut vm).await;
    the_clock_is_right_after_a_pause(&mut vm).await;
    a_clock_that_is_an_hour_behind_is_right_at_once(&cell, &mut vm).await;
    a_frozen_disk_holds_still_and_thaws(&mut vm).await;
    nobody_thaws_and_the_watchdog_does(&cell, &mut vm).await;
    the_disk_grows(&cell, &mut vm).await;
    a_step_sees_nothing_of_the_guest(&vm).await;
    a_builder_that_ends_is_started_again(&cell, &mut vm).await;
    let refused = vm.guest.control().await.unwrap().freeze(Duration::from_secs(600), ANSWER).await.unwrap_err();
    assert!(refused.to_string().contains("1 to 60 seconds"), "{refused}");
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

/// Whoever comes next finds the guest by its files, asks it, and starts no second one.
async fn adopted_after_a_restart(cell: &Cell, vm: &mut Vm) {
    let mut adopted = Guest::adopt(&cell.machine.dir).expect("it runs");
    assert_eq!(adopted.process(), vm.guest.process());
    let second = Guest::start(&cell.machine, &cell.config).await.unwrap_err();
    assert!(second.to_string().contains("runs from"), "{second}");
    // One client at a time: the first one's connection ends, as with its process.
    let former = std::mem::replace(&mut vm.guest, Guest::adopt(&cell.machine.dir).unwrap());
    drop(former);
    assert_eq!(adopted.control().await.unwrap().hello(ANSWER).await.unwrap().id, "cell-1");
}

/// Also one that asks before the guest's kernel has taken notice of it: what is asked, and that somebody is there, arrive by different ways.
async fn each_new_client_is_answered(vm: &mut Vm) {
    let mut took = Vec::new();
    for client in 0..200 {
        vm.guest.release();
        let since = Instant::now();
        let answered = vm.guest.control().await.unwrap().hello(ANSWER).await;
        assert!(answered.is_ok(), "client {client}: {answered:?}");
        took.push(since.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    say(&format!("a new client's first answer: median {:.1} ms, slowest {:.1} ms", took[100], took[199]));
}

async fn the_clock_is_right_after_a_pause(vm: &mut Vm) {
    vm.guest.pause().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    let behind = vm.guest.resume().await.unwrap();
    assert!((2000..60_000).contains(&behind), "{behind} ms");
    let off = clock_off(vm).await;
    say(&format!("clock behind after a 3 s pause: {behind} ms, after resume off by {off} ms"));
    assert!(off.abs() < 2_000, "{off} ms");
}

/// As of a machine that slept for so long: nobody waits an hour here, so its clock is put back.
async fn a_clock_that_is_an_hour_behind_is_right_at_once(cell: &Cell, vm: &mut Vm) {
    const HOUR: Duration = Duration::from_secs(3600);
    // The port takes one client at a time.
    drop(std::mem::replace(&mut vm.guest, Guest::adopt(&cell.machine.dir).unwrap()));
    let ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - HOUR;
    let mut port = BufReader::new(UnixStream::connect(cell.machine.dir.join("control.sock")).unwrap());
    port.get_ref().set_read_timeout(Some(ANSWER)).unwrap();
    port.get_mut().write_all(format!("\nback time {}\n", ago.as_nanos()).as_bytes()).unwrap();
    let mut answer = String::new();
    while !answer.contains("back ok") {
        assert!(port.read_line(&mut answer).unwrap() > 0, "{answer}");
    }
    drop(port);
    let off = clock_off(vm).await;
    assert!((-3_660_000..-3_540_000).contains(&off), "{off} ms");

    vm.guest.pause().await.unwrap();
    let since = Instant::now();
    let behind = vm.guest.resume().await.unwrap();
    let took = since.elapsed();
    let off = clock_off(vm).await;
    say(&format!("clock {behind} ms behind at a resume, off by {off} ms {} ms later", took.as_millis()));
    assert!(behind > 3_540_000 && off.abs() < 2_000, "{behind} ms behind, then {off} ms");
}

/// Milliseconds by which the guest's clock is ahead of the host's.
async fn clock_off(vm: &mut Vm) -> i64 {
    let hello = vm.guest.control().await.unwrap().hello(ANSWER).await.unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    i64::try_from((i128::from(hello.clock_ns) - i128::try_from(now).unwrap()) / 1_000_000).unwrap()
}

async fn a_frozen_disk_holds_still_and_thaws(vm: &mut Vm) {
    let control = vm.guest.control().await.unwrap();
    let since = Instant::now();
    control.freeze(Duration::from_secs(20), ANSWER).await.unwrap();
    say(&format!("freeze {} ms", since.elapsed().as_millis()));
    let twice = control.freeze(Duration::from_secs(20), ANSWER).await.unwrap_err();
    assert!(twice.to_string().contains("frozen already"), "{twice}");
    control.thaw(ANSWER).await.unwrap();
    let built = vm.builds.build(&Context::new("RUN echo thawed\n")).await;
    assert!(built.result.is_ok());
}

/// A build needs the disk: it comes through only because the guest thaws by itself.
async fn nobody_thaws_and_the_watchdog_does(cell: &Cell, vm: &mut Vm) {
    vm.guest.control().await.unwrap().freeze(Duration::from_secs(2), ANSWER).await.unwrap();
    let built = vm.builds.build(&Context::new("RUN echo by itself\n")).await;
    assert!(built.result.is_ok());
    assert!(cell.console().contains("thawing the cache disk: nobody did in time"), "{}", cell.console());
}

async fn the_disk_grows(cell: &Cell, vm: &mut Vm) {
    let before = disk_megabytes(vm).await;
    disk::grow(&cell.machine.cache_disk, 2 << 30).await.unwrap();
    vm.guest.grow_disk(&cell.machine.cache_disk, 2 << 30, ANSWER).await.unwrap();
    let after = disk_megabytes(vm).await;
    assert!(after > before + 800, "{before} MB before, {after} MB after");
}

/// As a step sees it.
async fn disk_megabytes(vm: &Vm) -> u64 {
    let context = Context::new(&format!("RUN df -m / | tail -1 && : {}\n", reference()));
    let output = vm.builds.build(&context).await.output();
    let line = output.lines().rfind(|line| line.contains('%')).unwrap_or_else(|| panic!("no size in {output}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the guest was given to run as its builder cannot use its settings.
async fn a_builder_that_ends_is_started_again(cell: &Cell, vm: &mut Vm) {
    eventually("the builder was started three times", Duration::from_secs(60), async || {
        (cell.console().matches("builder ended (exit code").count() >= 2).then_some(())
    })
    .await;
    let console = cell.console();
    assert!(
        console.contains("starting it again in 200ms") && console.contains("starting it again in 400ms"),
        "{console}"
    );
    let said = std::fs::read_to_string(vm.guest.files().log()).unwrap();
    assert!(said.contains("there is no such setting"), "{said}");
}

/// A step sees its own processes and cgroup only, and not the daemons' sockets and files.
async fn a_step_sees_nothing_of_the_guest(vm: &Vm) {
    let context = Context::new(
        "RUN ps | grep -c buildkitd || true; cat /proc/self/cgroup; ls /run /data /run/kiln 2>&1; \
         mkdir /sys/fs/cgroup/x 2>&1; kill -9 -1 2>/dev/null; echo end\n",
    );
    let said = vm.builds.build(&context).await.output();
    assert!(said.contains("0::/\n") && said.contains("Read-only file system"), "{said}");
    assert!(!said.contains("kiln.toml") && !said.contains("buildkitd.sock"), "{said}");
}
