//! What a step in a guest reaches, tried from inside a step.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{ports, ran, said, up};
use crate::harness::conformance;
use crate::harness::dev::{Dev, eventually};
use crate::harness::spine::{Ran, tree};

/// Every port of the installation, at every address by which a step could try it: none is open, and most are refused at once.
pub fn steps_reach_nothing_of_the_installation(dev: &Dev) {
    let ports: Vec<_> = ports(dev).values().map(ToString::to_string).collect();
    let own = "own=$(ip -4 addr show eth0 | sed -n 's/.* inet \\([0-9.]*\\)[/ ].*/\\1/p'); net=${own%.*}; echo own address $own";
    let addresses = format!("$net.1 $net.2 127.0.0.1 {}", this_machine());
    let attempts = format!(
        "for a in {addresses}; do for p in 22 53001 {}; do (nc -w 9 $a $p </dev/null 2>&1 && echo OPEN $a:$p) & done; wait; done",
        ports.join(" ")
    );
    let metadata = "(nc -w 3 169.254.169.254 80 </dev/null && echo OPEN metadata); echo all tried";
    let dockerfile = format!("FROM busybox\nRUN {own}; {attempts}; {metadata}\n");
    let dir = tree(&[("Dockerfile", &dockerfile)]);
    let ran = up(dev, dir.path());
    assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
    let output = plain_output(&ran.stderr);
    assert!(output.contains("own address 10.") && output.contains("all tried"), "{output}");
    let (_, own) = output.split_once("own address ").unwrap();
    let (net, _) = own.split_whitespace().next().unwrap().rsplit_once('.').unwrap();
    for address in [format!("{net}.1"), this_machine().to_string()] {
        assert!(
            output.contains(&format!("({address}): Connection refused")),
            "the host says no at {address}: {output}"
        );
    }
    assert!(!output.contains("OPEN"), "{output}");
}

/// The probes that steps of every kind of cell are put to.
pub fn the_policy_for_steps_holds(dev: &Dev) {
    let ports: Vec<_> = ports(dev).values().copied().collect();
    let dir = tree(&[("Dockerfile", &conformance::probe(&[this_machine()], &ports))]);
    let ran = up(dev, dir.path());
    assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
    conformance::holds(&plain_output(&ran.stderr));
}

/// By somebody on the host: without it steps reach whatever listens there, and no build would ever show it.
pub fn a_rule_that_is_taken_away_stands_again(tap: &str) {
    let rule = format!("INPUT -i {tap} -j REJECT");
    let iptables = |args: &str| Command::new("iptables").arg("-w").args(args.split(' ')).output().unwrap();
    let stands = || iptables(&format!("-C {rule}")).status.success();
    assert!(stands());
    ran(Command::new("iptables").arg("-w").args(format!("-D {rule}").split(' ')));
    eventually("the agent puts the rule up again", Duration::from_secs(30), || stands().then_some(()));
}

/// Two private networks on a wire of this machine, and behind it a server with an address in each.
pub struct Neighbour {
    namespace: String,
    /// The network that steps are to reach.
    pub named: Network,
    other: Network,
    server: Child,
}

/// Of two hosts: this machine is the first, the server the second.
#[derive(Clone, Copy)]
pub struct Network(Ipv4Addr);

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/30", self.0)
    }
}

impl Network {
    fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.to_bits() + number)
    }
}

const PORT: u16 = 8000;

impl Neighbour {
    pub fn new() -> Self {
        let own = std::process::id() & 0xfff;
        // Networks of a size and place that nobody else has here: 192.168.128.0/17 in pieces of eight addresses.
        let named = Network(Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 128, 0).to_bits() + 8 * own));
        let other = Network(named.host(4));
        let (namespace, wire) = (format!("neighbour{own}"), format!("nb{own}"));
        let ip = |args: &str| ran(Command::new("ip").args(args.split(' ')));
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {wire} type veth peer name eth0 netns {namespace}"));
        for network in [named, other] {
            ip(&format!("addr add {}/30 dev {wire}", network.host(1)));
            ip(&format!("-n {namespace} addr add {}/30 dev eth0", network.host(2)));
        }
        ip(&format!("link set {wire} up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        let mut serve = Command::new("ip");
        serve.args([
            "netns",
            "exec",
            &namespace,
            "busybox",
            "nc",
            "-ll",
            "-p",
            &PORT.to_string(),
            "-e",
            "echo",
            "neighbour",
        ]);
        let server = serve.stdin(Stdio::null()).spawn().unwrap();
        let neighbour = Self { namespace, named, other, server };
        [named, other].into_iter().for_each(answers);
        neighbour
    }
}

/// To this machine itself.
fn answers(network: Network) {
    eventually("the neighbour answers", Duration::from_secs(10), || {
        let mut said = String::new();
        let mut stream = TcpStream::connect((network.host(2), PORT)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.read_to_string(&mut said).ok()?;
        (said == "neighbour\n").then_some(())
    });
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

pub fn steps_reach_the_private_network_that_is_named(dev: &Dev, neighbour: &Neighbour) {
    let [named, other] = [neighbour.named, neighbour.other].map(|network| network.host(2));
    let run = format!("nc -w 9 {named} {PORT} </dev/null; nc -w 9 {other} {PORT} </dev/null; echo tried");
    let dir = tree(&[("Dockerfile", &format!("FROM busybox\nRUN {run}\n"))]);
    let ran = up(dev, dir.path());
    assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
    let output = plain_output(&ran.stderr);
    assert_eq!(output.matches("neighbour").count(), 1, "only what is named answers: {output}");
    assert!(output.contains(&format!("({other}): Connection refused")), "{output}");
    answers(neighbour.other);
}

/// The clone has been drained to and says where it is; then a step of its main cell looks for it, at its forwarder above all, which
/// answers its own steps.
pub fn steps_do_not_reach_the_other_cell(dev: &Dev, order: &dyn Fn(&[&str]) -> Ran) {
    let step = |run: &str| {
        let dir = tree(&[("Dockerfile", &format!("FROM busybox\nRUN {run}\n"))]);
        let ran = up(dev, dir.path());
        assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
        (ran.json()["cell"].clone(), plain_output(&ran.stderr))
    };
    let (cell, output) = step("nslookup kiln.invalid; echo asked; cat /etc/resolv.conf");
    assert_eq!(cell, "dev-1-b");
    assert!(output.contains("can't find kiln.invalid: "), "its own steps are answered: {output}");
    let line = output.lines().find(|line| line.contains("nameserver ")).unwrap();
    let (_, clone) = line.rsplit_once(' ').unwrap();
    order(&["undrain", "dev-1", "--wait"]);
    order(&["drain", "dev-1-b", "--wait"]);
    let (net, _) = clone.rsplit_once('.').unwrap();
    let (cell, output) = step(&format!(
        "for a in {net}.1 {clone} {net}.129 {net}.130; do for p in 53 1234; do \
         (nc -w 5 $a $p </dev/null && echo OPEN $a:$p) & done; done; \
         nslookup kiln.invalid {clone} && echo OPEN; wait; echo tried"
    ));
    assert_eq!(cell, "dev-1");
    assert!(output.contains("tried") && !output.contains("OPEN"), "{output}");
    assert!(!output.contains("can't find"), "its forwarder answers: {output}");
}

/// The guest's builder answers, whatever the host's own resolvers know.
pub fn steps_ask_their_guest_for_names(dev: &Dev) {
    let dir = tree(&[("Dockerfile", "FROM busybox\nRUN cat /etc/resolv.conf; nslookup kiln.invalid; echo asked\n")]);
    let ran = up(dev, dir.path());
    assert_eq!(ran.code, 0, "{}\n{}", ran.all(), said(dev));
    let output = plain_output(&ran.stderr);
    let servers: Vec<_> = output.lines().filter(|line| line.contains("nameserver ")).collect();
    assert!(matches!(servers[..], [one] if one.ends_with(".2")), "the guest's own address: {output}");
    assert!(output.contains("can't find kiln.invalid: "), "an answer, not silence: {output}");
}

/// What steps printed, without the commands themselves.
fn plain_output(shown: &str) -> String {
    shown.lines().filter(|line| !line.contains("RUN ")).map(|line| format!("{line}\n")).collect()
}

/// The address by which this machine would speak to others.
fn this_machine() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the kernel only chooses a route.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}
