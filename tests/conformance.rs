//! What a step may reach and take in a cell of processes; `guests` has the same probes for a guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::conformance;
use crate::harness::dev::{self, Dev, eventually, processes_with};
use crate::harness::running::run;

const TWO_CELLS: &[&str] = &["--cells", "2", "--seed", "busybox"];
/// Where a step listens that others must not reach.
const MEETING: u16 = 7777;

fn address_of(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap_or(url).parse().unwrap()
}

/// The host's address towards the world, if it has one. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

fn cell(dev: &Dev, id: &str) -> PathBuf {
    dev.data.join("cells").join(id)
}

/// The first three numbers of a cell's addresses.
fn net(dev: &Dev, id: &str) -> String {
    let (_, subnet) = dev::wire(&cell(dev, id)).expect("the cell has a wire of its own");
    subnet.trim_end_matches(".0/24").to_owned()
}

fn services(dev: &Dev) -> Vec<SocketAddr> {
    let ready = &dev.ready;
    [&ready.api, &ready.temporal, &ready.temporal_ui, &ready.s3.endpoint].map(|url| address_of(url)).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_for_steps_holds_in_a_cell_of_processes() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    // On all of the host's addresses.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let everywhere = listener.local_addr().unwrap().port();
    let mut ports: Vec<_> = services(&dev).iter().map(SocketAddr::port).collect();
    ports.extend([everywhere, address_of(&dev.ready.registry).port()]);
    let other: IpAddr = format!("{}.1", net(&dev, "dev-2")).parse().unwrap();
    let addresses: Vec<_> = own_address().into_iter().chain([other]).collect();
    for address in &addresses {
        assert!(TcpStream::connect((*address, everywhere)).is_ok(), "{address} is there, seen from the host");
    }
    let built = dev.solve(&conformance::probe(&addresses, &ports)).await;
    built.result.unwrap_or_else(|error| panic!("{error}: {}", built.output));
    conformance::holds(&built.output);
    drop(listener);

    daemons_fetch_nothing_of_the_installation(&dev).await;
    steps_do_not_reach_each_other(&dev).await;
    limits_are_set_or_said_to_be_missing(&dev);
}

/// What a Dockerfile has BuildKit fetch: it would read the console of Temporal, whose histories are all projects'.
async fn daemons_fetch_nothing_of_the_installation(dev: &Dev) {
    let gateway: Ipv4Addr = format!("{}.1", net(dev, "dev-1")).parse().unwrap();
    for service in services(dev) {
        assert!(TcpStream::connect(service).is_ok(), "{service} is there, seen from the host");
        for address in [service.ip(), gateway.into()] {
            let url = format!("http://{}/", SocketAddr::new(address, service.port()));
            let built = dev.solve(&format!("FROM busybox\nADD {url} /stolen\n")).await;
            let error = format!("{:?}", built.result.expect_err(&url));
            assert!(error.contains("connection refused"), "{url}: {error}");
        }
    }
}

/// A step that listens, and steps of the same cell and of another one that look for it at every address it can have.
async fn steps_do_not_reach_each_other(dev: &Dev) {
    let unique = format!("4{}", std::process::id());
    let listens = format!(
        "FROM busybox\nRUN (while true; do echo there | nc -l -p {MEETING}; done) & sleep 1; \
         nc -w 2 127.0.0.1 {MEETING} </dev/null | grep there && timeout 90 sleep {unique}; true\n"
    );
    let socket = dev.ready.cells[0].buildkit_socket.clone();
    let listening = tokio::spawn(async move { dev::solve(&socket, &listens, None).await });
    eventually("the step listens", Duration::from_secs(60), || {
        (!processes_with(&format!("sleep {unique}")).is_empty()).then_some(())
    });
    let nets = format!("{} {}", net(dev, "dev-1"), net(dev, "dev-2"));
    let looks = format!(
        "FROM busybox\nRUN own=$(ip -4 addr show eth0 | sed -n 's/.* inet \\([0-9.]*\\)[/ ].*/\\1/p'); \
         for net in {nets}; do for n in $(seq 129 150); do [ $net.$n = $own ] || \
         (nc -w 3 $net.$n {MEETING} </dev/null 2>&1 | grep -q there && echo $net.$n met) & done; wait; done; echo looked\n"
    );
    for ready in &dev.ready.cells[..2] {
        let built = dev::solve(&ready.buildkit_socket, &looks, None).await;
        built.result.unwrap_or_else(|error| panic!("{error}: {}", built.output));
        assert!(built.output.contains("looked") && !built.output.contains("met"), "{}", built.output);
    }
    assert!(!processes_with(&format!("sleep {unique}")).is_empty(), "it listened all the while");
    listening.abort();
}

/// The cgroup of all steps of a cell, in whichever version of cgroups this machine has.
fn limits_are_set_or_said_to_be_missing(dev: &Dev) {
    let tag = &blake3::hash(cell(dev, "dev-1").as_os_str().as_encoded_bytes()).to_hex()[..8];
    let read = |files: [String; 2]| {
        files.iter().find_map(|file| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok())
    };
    let processes = read([format!("kiln-{tag}/pids.max"), format!("pids/kiln-{tag}/pids.max")]);
    let memory = read([format!("kiln-{tag}/memory.max"), format!("memory/kiln-{tag}/memory.limit_in_bytes")]);
    let shown = run(dev, &["cells", "show", "dev-1", "--output", "json"]).ok().json();
    let unlimited: Vec<String> = serde_json::from_value(shown["facts"]["unlimited"].clone()).unwrap_or_default();
    let is_said = |what: &str| unlimited.iter().any(|said| said.contains(what));
    match processes {
        Some(most) => assert_eq!(most.trim(), "16384"),
        None => assert!(is_said("processes"), "{shown}"),
    }
    match memory {
        Some(most) => assert!(most.trim().parse::<u64>().is_ok_and(|bytes| bytes < 1 << 50), "{most}"),
        None => assert!(is_said("memory"), "{shown}"),
    }
    let counts_swap = read([format!("kiln-{tag}/memory.swap.max"), "memory/memory.memsw.limit_in_bytes".into()]);
    assert_eq!(counts_swap.is_none(), is_said("swap"), "{shown}");
}
