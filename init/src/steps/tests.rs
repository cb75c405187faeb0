//! The plugin's words, and the rules as a kernel takes them: in network namespaces of the test's own.

use std::ffi::CString;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

/// Nothing that is waited for takes so long.
const PATIENCE: Duration = Duration::from_secs(20);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 64, 3, 2);
const STEP: Ipv4Addr = Ipv4Addr::new(10, 64, 3, 129);

fn network(forwarder: bool) -> Network {
    Network {
        address: GUEST,
        prefix: 24,
        gateway: Ipv4Addr::new(10, 64, 3, 1),
        dns: vec![Ipv4Addr::new(10, 0, 0, 2)],
        forwarder,
        mtu: None,
        steps: Some(StepNetwork { first: Ipv4Addr::new(10, 64, 3, 128), prefix: 25 }),
    }
}

#[test]
fn steps_reach_the_guest_for_names_alone_and_only_where_it_answers() {
    let first = Ipv4Addr::new(10, 64, 3, 128);
    let steps = Rule { from: Some((first, 25)), table: TABLE, priority: 10, ..Rule::default() };
    let rest = [steps, Rule { table: libc::RT_TABLE_LOCAL, priority: 20, ..Rule::default() }];
    assert_eq!(rules(&network(false)), rest);
    let rules = rules(&network(true));
    assert_eq!(rules[2..], rest);
    for (rule, protocol) in rules.iter().zip([17, 6]) {
        assert_eq!((rule.from, rule.to), (Some((first, 25)), Some(GUEST)));
        assert_eq!((rule.port, rule.table), (Some((protocol, 53)), libc::RT_TABLE_LOCAL));
        assert!(rule.priority < 10, "before the rule that leads out");
    }
}

#[test]
fn the_plugin_understands_its_own_configuration() {
    let network = StepNetwork { first: Ipv4Addr::new(10, 64, 3, 128), prefix: 25 };
    let mut whole = Value::parse(&configuration(&network, Ipv4Addr::new(10, 64, 3, 2))).unwrap();
    let Some(Value::Array(plugins)) = whole.member("plugins").cloned() else { panic!("no plugins") };
    let mut plugin = plugins[0].clone();
    assert_eq!(text_of(&mut plugin, "guest").unwrap(), "10.64.3.2");
    assert_eq!(text_of(&mut plugin, "first").unwrap(), "10.64.3.128");
    assert_eq!(plugin.member("prefix").unwrap().as_number(), Some(25));
    assert!(text_of(&mut plugin, "no such").is_err());
}

/// Gives this thread a network namespace of its own; `None` where it may not have one.
fn own_namespace() -> Option<File> {
    // SAFETY: a number; what it changes is this thread's alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        eprintln!("skipped: {}, root may make network namespaces", io::Error::last_os_error());
        return None;
    }
    Some(File::open("/proc/thread-self/ns/net").unwrap())
}

/// A guest with a card that leads nowhere, and the pair of a step in another namespace, as the plugin makes them.
fn furnish_guest(own: &File, step: &File, network: &Network) {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let (netlink, cards) = (Netlink::open().unwrap(), Cards::new().unwrap());
    netlink.add_pair(CARD, "host0", own.as_raw_fd(), 1500).unwrap();
    ["lo", "host0"].iter().for_each(|card| cards.up(card).unwrap());
    cards.address(CARD, libc::SIOCSIFADDR, network.address).unwrap();
    cards.address(CARD, libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0)).unwrap();
    let name = CString::new(CARD).unwrap();
    // SAFETY: a NUL-terminated string that outlives the call.
    let card = unsafe { libc::if_nametoindex(name.as_ptr()) };
    lead_out(network, card).unwrap();
    netlink.add_pair("step129", CARD_OF_STEP, step.as_raw_fd(), 1500).unwrap();
    guard("step129", STEP).unwrap();
}

/// What a step tries at its guest: sends to a port that is none of its business, then asks for a name over UDP and TCP.
fn try_guest() -> io::Result<()> {
    let socket = UdpSocket::bind((STEP, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"no", (GUEST, 54))?;
    socket.send_to(b"query", (GUEST, NAMES))?;
    let mut answer = [0; 16];
    let (length, from) = socket.recv_from(&mut answer)?;
    assert_eq!((&answer[..length], from), (&b"answer"[..], (GUEST, NAMES).into()));
    TcpStream::connect_timeout(&(GUEST, NAMES).into(), PATIENCE).map(drop)
}

/// The guest's half: what arrives of all that.
fn meet(step: &mpsc::Receiver<File>, furnished: &mpsc::Sender<()>, done: &mpsc::Receiver<()>) {
    let Some(own) = own_namespace() else { return };
    let Ok(step) = step.recv() else { return };
    furnish_guest(&own, &step, &network(true));
    let [names, other] = [NAMES, 54].map(|port| UdpSocket::bind((GUEST, port)).unwrap());
    let _listener = TcpListener::bind((GUEST, NAMES)).unwrap();
    furnished.send(()).unwrap();
    names.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut query = [0; 16];
    let (length, from) = names.recv_from(&mut query).unwrap();
    assert_eq!((&query[..length], from.ip()), (&b"query"[..], STEP.into()));
    names.send_to(b"answer", from).unwrap();
    done.recv_timeout(PATIENCE).unwrap();
    // What was sent before the query would be here before it.
    other.set_nonblocking(true).unwrap();
    assert_eq!(other.recv(&mut query).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_kernel_lets_a_steps_queries_through_to_the_guest_and_nothing_else() {
    let (namespace, step) = mpsc::channel();
    let (furnished, ready) = mpsc::channel();
    let (done, tried) = mpsc::channel();
    let guest = thread::spawn(move || meet(&step, &furnished, &tried));
    let step = thread::spawn(move || {
        let Some(own) = own_namespace() else { return };
        namespace.send(own).unwrap();
        // Closed when the guest's end failed, which says why.
        if ready.recv_timeout(PATIENCE).is_ok() {
            furnish(STEP, GUEST).unwrap();
            try_guest().unwrap();
            done.send(()).unwrap();
        }
    });
    guest.join().unwrap();
    step.join().unwrap();
}
