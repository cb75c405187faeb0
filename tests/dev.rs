//! `kiln dev`: what it starts, how it ends, what it leaves, what it keeps, and what its steps can reach.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::dev::{self, Dev, eventually, processes_with};

const ONE_CELL: &[&str] = &["--cells", "1"];
const SEEDED: &[&str] = &["--cells", "1", "--seed", "busybox"];

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_ready_file_answers_and_ends_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, &["--cells", "2"]);
    let footprint = dev.footprint();

    assert_eq!(dev::mode(&dev.ready_file), 0o600);
    let answers = |url: String| async move { reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success()) };
    assert!(answers(format!("{}/healthz", dev.ready.api)).await);
    assert!(answers(format!("http://{}/v2/", dev.ready.registry)).await);
    assert!(answers(dev.ready.temporal_ui.clone()).await);
    // The store wants a signature.
    let bare = reqwest::get(format!("{}/{}", dev.ready.s3.endpoint, dev.ready.s3.bucket)).await.unwrap();
    assert_eq!(bare.status(), 403);
    let queues: Vec<_> = dev.ready.cells.iter().map(|cell| (cell.id.as_str(), cell.task_queue.as_str())).collect();
    assert_eq!(queues, [("dev-1", "cell-dev-1"), ("dev-2", "cell-dev-2")]);

    refused_while_in_use(&dev);
    let (status, took) = dev.terminate();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    footprint.is_gone();
    for link in &footprint.links {
        assert!(rules_with(link).is_empty(), "an orderly end removes the rules as well");
    }
}

fn refused_while_in_use(dev: &Dev) {
    let second = dev::command(&dev.data, ONE_CELL).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("process {}", dev.pid())), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(dev.ready_file.exists(), "the running one is not disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_mid_build_leaves_nothing_and_the_cache_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, SEEDED);
    let (first, api) = (dev.ready.clone(), dev.ready.api.clone());
    let kept = "FROM busybox\nRUN echo kept > /kept\n";
    dev.solve(kept).await.result.unwrap();

    // A process id makes the command line unlike any other on the machine.
    let sleep = format!("sleep 7{}", std::process::id());
    let socket = dev.ready.cells[0].buildkit_socket.clone();
    let dockerfile = format!("{kept}RUN {sleep}\n");
    let running = tokio::spawn(async move { dev::solve(&socket, &dockerfile, None).await });
    eventually("the step runs", Duration::from_secs(60), || (!processes_with(&sleep).is_empty()).then_some(()));
    let footprint = dev.footprint();
    assert_eq!(footprint.links.len(), dev.ready.cells.len(), "{footprint:?}");
    dev.kill_9();

    footprint.is_gone();
    assert!(processes_with(&sleep).is_empty());
    assert!(running.await.unwrap().result.is_err());

    let again = Dev::start(&data, SEEDED);
    assert_eq!(again.ready, first, "addresses, keys and cells are kept");
    assert!(reqwest::get(format!("{api}/healthz")).await.is_ok());
    let built = again.solve(kept).await;
    built.result.unwrap();
    assert!(built.cached.iter().any(|step| step.contains("echo kept")), "{:?}", built.cached);
}

/// The kernel goes through all rules for each packet: those of the dead must not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_cell_left_on_the_host_goes_with_the_next_start_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (dead, other) = (dir.path().join("dead"), dir.path().join("other"));
    let dev = Dev::start(&dead, SEEDED);
    dev.solve("FROM busybox\nRUN true\n").await.result.unwrap();
    let footprint = dev.footprint();
    let (wire, subnet) = dev::wire(&dead.join("cells/dev-1")).expect("the cell has a wire of its own");
    let addresses = subnet.strip_suffix("0/24").unwrap();
    assert!(!rules_with(&wire).is_empty() && !rules_with(addresses).is_empty());
    dev.kill_9();
    footprint.is_gone();

    let _other = Dev::start(&other, ONE_CELL);
    assert_eq!((rules_with(&wire), rules_with(addresses)), (vec![], vec![]));
}

fn rules_with(word: &str) -> Vec<String> {
    let listing = |table: &&str| Command::new("iptables").args(["-w", "-t", table, "-S"]).output().unwrap().stdout;
    let listings: Vec<_> = ["filter", "nat", "mangle"].iter().map(listing).collect();
    let text = String::from_utf8(listings.concat()).unwrap();
    text.lines().filter(|rule| rule.contains(word)).map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_cell_comes_back_whichever_of_its_processes_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, SEEDED);
    dev.solve("FROM busybox\nRUN echo one\n").await.result.unwrap();

    for role in ["__guard --namespaces", "__cell-init", "buildkitd --config"] {
        let before = dev.footprint();
        let found = processes_of(&data, role);
        // The guard's command line has its ward's in it; the ward is the younger one.
        let pid = if role == "__guard --namespaces" { found[0] } else { found[found.len() - 1] };
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
        let new = eventually("another one runs", Duration::from_secs(30), || {
            processes_of(&data, role).into_iter().find(|now| !found.contains(now))
        });
        assert_ne!(new, pid);
        eventually("its interfaces are gone", Duration::from_secs(15), || {
            let gone = |link: &&String| !link.starts_with("veth") || !Path::new("/sys/class/net").join(link).exists();
            before.links.iter().all(|link| gone(&link)).then_some(())
        });
        let built = rebuilt(&dev).await;
        assert!(built.cached.iter().any(|step| step.contains("echo one")), "after {role}: {:?}", built.cached);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_and_no_step_is_deaf_to_signals() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, SEEDED);
    for role in [" api --config", " control --config", " host --config", " builder --config"] {
        let of_role = dev::processes_with(role).into_iter().filter(|pid| dev::processes_of(&data).contains(pid));
        // The guard's command line has its ward's in it; the ward is the younger one.
        let pid = of_role.max().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{role}: {status}");
    }
    let built = dev.solve("FROM busybox\nRUN grep SigBlk /proc/self/status\n").await;
    assert!(built.output.contains("SigBlk:\t0000000000000000"), "{}", built.output);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, ONE_CELL);
    let footprint = dev.footprint();
    // The orderly end waits for this one, as long as it lets it.
    let builder = processes_of(&data, " builder --config").pop().unwrap();
    kill(Pid::from_raw(builder.cast_signed()), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(dev.pid().cast_signed()), Signal::SIGTERM).unwrap();
    eventually("it is ending", Duration::from_secs(5), || (!dev.ready_file.exists()).then_some(()));
    let (status, _) = dev.terminate();
    assert_eq!(status.code(), Some(130), "{status}");
    footprint.is_gone();
}

fn processes_of(data: &Path, role: &str) -> Vec<u32> {
    let cell = dev::processes_with(data.join("cells/dev-1").to_str().unwrap());
    let mut found: Vec<_> = dev::processes_with(role).into_iter().filter(|pid| cell.contains(pid)).collect();
    found.sort_unstable();
    found
}

/// Builds on a daemon that may not listen yet.
async fn rebuilt(dev: &Dev) -> dev::Built {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let socket = &dev.ready.cells[0].buildkit_socket;
        if let Ok(client) = buildkit::Client::connect_unix(socket).await
            && client.workers().await.is_ok()
        {
            let built = dev.solve("FROM busybox\nRUN echo one\n").await;
            assert!(built.result.is_ok(), "{:?}", built.result);
            return built;
        }
        assert!(tokio::time::Instant::now() < deadline, "buildkitd does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_reaches_neither_the_services_nor_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), SEEDED);
    let (wire, _) = dev::wire(&dev.data.join("cells/dev-1")).expect("the cell has a wire of its own");

    // A service on all of the host's addresses, to be reached from the host but not from a step.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = subnet_gateway(&dev);
    let mut targets: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, port).into(), (gateway, port).into()];
    targets.extend(own_address().map(|address| SocketAddr::from((address, port))));
    targets.extend([&dev.ready.temporal, &dev.ready.registry].map(|address| address.parse::<SocketAddr>().unwrap()));
    for url in [&dev.ready.api, &dev.ready.s3.endpoint, &dev.ready.temporal_ui] {
        targets.push(url.strip_prefix("http://").unwrap().parse().unwrap());
    }
    for target in &targets {
        assert!(TcpStream::connect(target).is_ok(), "{target} is there, seen from the host");
    }
    // The services listen on loopback; try their ports at the host's end of the wire as well.
    let ports: Vec<u16> = targets.iter().map(SocketAddr::port).collect();
    targets.extend(ports.iter().map(|port| SocketAddr::from((gateway, *port))));

    let built = dev.solve(&probe(&targets)).await;
    built.result.unwrap_or_else(|error| panic!("{error}: {}", built.output));
    assert!(built.output.contains("own loopback: reached"), "the probe sees what can be reached: {}", built.output);
    assert_eq!(built.output.matches("kept out").count(), targets.len(), "{}", built.output);
    assert!(!built.output.contains(&wire), "the step has an interface of its own: {}", built.output);
}

/// A Dockerfile whose step says of each address whether it can be reached. To see that it could tell, it first connects to itself.
fn probe(targets: &[SocketAddr]) -> String {
    let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
    format!(
        r#"FROM busybox
RUN ip addr show && ip route show default | grep -q via
RUN try() {{ out=$(timeout 5 nc -w 2 "${{1%:*}}" "${{1##*:}}" </dev/null 2>&1); \
      case "$out" in *"can't connect"*|*"timed out"*) echo "$1: kept out" ;; *) return 1 ;; esac; }}; \
    (echo hi | nc -l -p 5555 >/dev/null) & \
    n=0; while try 127.0.0.1:5555 >/dev/null; do n=$((n+1)); [ $n -lt 500 ] || exit 9; done; echo "own loopback: reached"; \
    for target in {}; do try "$target" || {{ echo "$target: REACHED"; exit 1; }}; done
"#,
        targets.join(" ")
    )
}

fn subnet_gateway(dev: &Dev) -> Ipv4Addr {
    let file = std::fs::read(dev.data.join("cells/dev-1/network.json")).unwrap();
    let network: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let [a, b, c, _] =
        network["subnet"].as_str().unwrap().trim_end_matches("/24").parse::<Ipv4Addr>().unwrap().octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// The host's address towards the world, if it has one. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

/// Without iptables there are no rules, and so no network of the steps' own: one line says so, and builds work.
#[tokio::test(flavor = "multi_thread")]
async fn without_iptables_steps_run_in_the_hosts_network_and_one_line_says_so() {
    let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let path = std::env::var_os("PATH").unwrap();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("docker-registry"));
    let registry = places.find(|program| program.is_file()).expect("the package docker-registry");
    std::os::unix::fs::symlink(registry, empty.path().join("docker-registry")).unwrap();
    let dev = Dev::start_with(&data, &["--cells", "2", "--seed", "busybox"], &[("PATH", empty.path())]);
    let built = dev.solve("FROM busybox\nRUN echo built\n").await;
    assert!(built.result.is_ok(), "{:?}", built.result);
    let said = std::fs::read_to_string(data.with_extension("stderr")).unwrap();
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("the steps of dev-1, dev-2 run in the host's network"), "{said}");
    assert!(warnings[0].contains("package iptables"), "{said}");
}
