//! Steps that take all they can get: each fails by itself, the daemons do not notice, the next build works.

use std::time::{Duration, Instant};

use buildkit::{Client, FailureKind, Frontend, Solve};
use tokio::time::sleep;
use vm::End;

use crate::harness::{ANSWER, Cell, Context, STOP, Vm, eventually, reference, say};

/// Between two heartbeats: a daemon that is slower than that to answer would hold them up. The figures say how far from it they stay.
const HEARTBEAT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_step_that_takes_everything_fails_alone() {
    let mut cell = Cell::new().await;
    // Where the host has two, what it does for the guest does not wait for the steps then: only what the guest does is measured.
    cell.machine.vcpus = 1;
    cell.config.step.memory_max = Some(160 << 20);
    cell.config.step.pids_max = Some(200);
    let (mut vm, hello) = cell.boot().await;
    let idle = slowest_info(&vm, sleep(Duration::from_secs(6))).await.0;
    assert!(idle.len() > 5, "it was answered");
    let idle = told("Info, idle", &idle, None);

    processor_hogs(&vm, idle).await;
    memory_hog(&mut vm, idle).await;
    fork_bomb(&vm, idle).await;
    page_cache(&vm, idle).await;
    full_disk(&vm, idle).await;
    a_step_cannot_choose_its_slice(&mut vm).await;

    let after = vm.guest.control().await.unwrap().hello(ANSWER).await.unwrap();
    assert_eq!(after.buildkitd, hello.buildkitd, "buildkitd lived through it all: {}", cell.console());
    restart_with_a_full_disk(&cell, vm).await;
}

/// What fills the disk may still be there when the cell comes up again: only buildkitd can make room.
async fn restart_with_a_full_disk(cell: &Cell, mut vm: Vm) {
    let filling = Context::new("RUN dd if=/dev/zero of=/full bs=1M; echo to the brim; sleep 600\n");
    let building = vm.builds.begin(filling, "to the brim").await;
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
    building.abort();
    let (mut vm, _) = cell.boot().await;
    let console = cell.console();
    assert!(console.contains("the cache disk is full"), "{console}");
    room_is_made(&vm, "after a start with a full disk").await;
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

/// Eight at once, on one processor.
async fn processor_hogs(vm: &Vm, idle: Duration) {
    let hog = |number| {
        format!("FROM base AS hog{number}\nRUN timeout 6 sh -c 'while :; do :; done' || touch /done{number}\n")
    };
    let copy = |number| format!("COPY --from=hog{number} /done{number} /\n");
    let hogs: String = (0..8).map(hog).chain(["FROM base\n".to_owned()]).chain((0..8).map(copy)).collect();
    let context = Context::new(&hogs);
    let (times, built) = slowest_info(vm, vm.builds.build(&context)).await;
    built.result.unwrap_or_else(|error| panic!("{error}"));
    assert!(times.len() > 5);
    told("Info beside eight busy steps", &times, Some(idle));
}

async fn memory_hog(vm: &mut Vm, idle: Duration) {
    let context = Context::new("RUN tail /dev/zero\n");
    let (times, built) = slowest_info(vm, vm.builds.build(&context)).await;
    let said = built.output();
    let error = built.result.map(drop).unwrap_err();
    assert!(matches!(error.kind, FailureKind::Exit { out_of_memory: true, .. }), "{error:?}");
    assert!(said.contains("out of memory: it used 160 MiB at most, its limit is 160 MiB"), "{said}");
    told("Info beside a step that eats memory", &times, Some(idle));
    let stats = vm.guest.control().await.unwrap().stats(ANSWER).await.unwrap();
    assert!(stats["builds.oom_kills"] >= 1.0 && stats["daemons.oom_kills"] == 0.0, "{stats:?}");
    works(vm, "after memory").await;
}

async fn fork_bomb(vm: &Vm, idle: Duration) {
    let context = Context::new("RUN while :; do sleep 300 & done\n");
    let (times, built) = slowest_info(vm, vm.builds.build(&context)).await;
    let error = built.result.map(drop).unwrap_err();
    assert!(matches!(error.kind, FailureKind::Exit { out_of_memory: false, .. }), "{error:?}");
    told("Info beside a fork bomb", &times, Some(idle));
    works(vm, "after forks").await;
}

/// More than the step may keep in memory, and it stays dirty for as long as the kernel lets it.
async fn page_cache(vm: &Vm, idle: Duration) {
    let context = Context::new("RUN dd if=/dev/zero of=/dirty bs=1M count=320 && rm /dirty && echo written\n");
    let (times, built) = slowest_info(vm, vm.builds.build(&context)).await;
    assert!(built.output().contains("written"), "{}", built.output());
    built.result.unwrap_or_else(|error| panic!("{error}"));
    told("Info beside a step that dirties the page cache", &times, Some(idle));
}

/// Nobody else needs the disk in the meantime, and what the step wrote is given back at once when it is asked for.
async fn full_disk(vm: &Vm, idle: Duration) {
    let context = Context::new("RUN dd if=/dev/zero of=/full bs=1M\n");
    let (times, built) = slowest_info(vm, vm.builds.build(&context)).await;
    let said = built.output();
    let error = built.result.map(drop).unwrap_err();
    assert!(said.contains("No space left on device"), "{error}: {said}");
    told("Info beside a step that fills the disk", &times, Some(idle));
    room_is_made(vm, "after a full disk").await;
}

/// A client may ask BuildKit for another cgroup parent; the processes are below the builds slice all the same.
async fn a_step_cannot_choose_its_slice(vm: &mut Vm) {
    let context = Context::new("RUN for i in $(seq 60); do sleep 4 & done; wait\n");
    let solve = Solve::new(reference(), Frontend::BuiltIn).attr("cgroup-parent", "/kiln-daemons.slice/buildkitd");
    let control = vm.guest.control().await.unwrap();
    let before = control.stats(ANSWER).await.unwrap();
    let (mut in_builds, mut in_daemons) = (0.0_f64, 0.0_f64);
    let watching = async {
        loop {
            let stats = control.stats(ANSWER).await.unwrap();
            in_builds = in_builds.max(stats["builds.pids"]);
            in_daemons = in_daemons.max(stats["daemons.pids"] - before["daemons.pids"]);
            sleep(Duration::from_millis(100)).await;
        }
    };
    let solved = tokio::select! {
        () = watching => unreachable!("it watches for ever"),
        solved = vm.builds.solve(&context, solve) => solved,
    };
    solved.result.unwrap_or_else(|error| panic!("{error}"));
    assert!(in_builds >= 60.0 && in_daemons < 60.0, "{in_builds} below builds, {in_daemons} more below daemons");
}

async fn works(vm: &Vm, what: &str) {
    let built = vm.builds.build(&Context::new(&format!("RUN echo {what}\n"))).await;
    built.result.unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// As soon as what the daemon may be collecting by itself is removed: it does so at its start and every two minutes.
async fn room_is_made(vm: &Vm, what: &str) {
    vm.builds.client().await.collect_garbage().await.unwrap();
    eventually(what, Duration::from_secs(20), async || {
        let built = vm.builds.build(&Context::new(&format!("RUN echo {what}\n"))).await;
        match built.result {
            Err(error) if error.kind == FailureKind::DiskFull => None,
            result => Some(result.unwrap_or_else(|error| panic!("{what}: {error}"))),
        }
    })
    .await;
}

/// How long `Info` takes again and again while something runs.
async fn slowest_info<T>(vm: &Vm, meanwhile: impl Future<Output = T>) -> (Vec<Duration>, T) {
    let client = vm.builds.client().await;
    // Its connection is there, as a heartbeat's is.
    info(&client).await;
    let mut times = Vec::new();
    let asking = async {
        loop {
            times.push(info(&client).await);
            sleep(Duration::from_millis(100)).await;
        }
    };
    let ended = tokio::select! {
        () = asking => unreachable!("it is asked for ever"),
        ended = meanwhile => ended,
    };
    (times, ended)
}

async fn info(client: &Client) -> Duration {
    let since = Instant::now();
    client.info().await.unwrap();
    since.elapsed()
}

/// Says how long `Info` took, beside the idle median where there is one; gives the median.
fn told(what: &str, times: &[Duration], idle: Option<Duration>) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied();
    let [median, most, slowest] = [50, 95, 100].map(|part| at(part).unwrap_or_default());
    let ratio = |time: Duration| match idle {
        Some(idle) => format!(" ({:.1} x)", time.as_secs_f64() / idle.as_secs_f64()),
        None => String::new(),
    };
    let line = [("median", median), ("95 %", most), ("slowest", slowest)]
        .map(|(name, time)| format!("{name} {} ms{}", time.as_millis(), ratio(time)));
    say(&format!("{what}, {} times: {}", times.len(), line.join(", ")));
    assert!(slowest < HEARTBEAT, "{what}: {slowest:?}");
    median
}
