//! The network of a RUN step: this binary as a CNI plugin (<https://github.com/containernetworking/cni/blob/main/SPEC.md>), which
//! buildkitd calls for each network namespace that it keeps for steps.
//!
//! ```text
//! step: eth0 .130 ══ step130 ─┬► table of the steps: only out of eth0 ─► the host's rules for these addresses
//!       lo                     │  (not to the guest itself, not to other steps)
//!                              └► port 53 of the guest, where it answers for names
//! ```
//!
//! No translation of addresses: the guest answers on its wire for the steps it has, so the host sees who asks, and what a step may reach
//! is the host's to say. A pair of cards goes with its namespace; an address is taken as long as there is a card named after it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::process::ExitCode;

use crate::cards::{CARD, Cards};
use crate::json::Value;
use crate::netlink::{Netlink, Rule};
use crate::settings::{Network, StepNetwork};
use crate::sys;

/// The names by which buildkitd calls this binary.
pub const PLUGIN: &str = "kiln-step";
pub const LOOPBACK: &str = "loopback";
/// The routing table of what comes from steps.
const TABLE: u8 = 100;
/// DNS.
const NAMES: u16 = 53;
const CARD_OF_STEP: &str = "eth0";

/// The guest's half, once for all steps: what they send goes out of the card and nowhere else, but for queries for names where the
/// guest answers them.
pub fn set_up(network: &Network) -> io::Result<()> {
    for (key, value) in [
        (format!("ipv4/conf/{CARD}/proxy_arp"), "1"),
        // Answers for others are delayed at random, unless it is said.
        (format!("ipv4/neigh/{CARD}/proxy_delay"), "0"),
    ] {
        fs::write(format!("/proc/sys/net/{key}"), value)?;
    }
    // Cards that are made later take it over. Network namespaces but the first one have no such default.
    match fs::write("/proc/sys/net/ipv4/neigh/default/proxy_delay", "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    lead_out(network, Cards::new()?.index_of(CARD)?)
}

/// The routing of what steps send: out of the card of this index.
fn lead_out(network: &Network, card: u32) -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.add_default_route(TABLE, network.gateway, card)?;
    rules(network).iter().try_for_each(|rule| netlink.add_rule(rule))?;
    netlink.remove_rule(&Rule { table: libc::RT_TABLE_LOCAL, ..Rule::default() })
}

/// The table of local addresses comes first of all by default: then steps would reach whatever listens in the guest.
fn rules(network: &Network) -> Vec<Rule> {
    let from = network.steps.map(|steps| (steps.first, steps.prefix));
    let local = Rule { table: libc::RT_TABLE_LOCAL, ..Rule::default() };
    let names = |priority, protocol: libc::c_int| Rule {
        from,
        to: Some(network.address),
        port: u8::try_from(protocol).ok().map(|protocol| (protocol, NAMES)),
        priority,
        ..local
    };
    let names = [names(5, libc::IPPROTO_UDP), names(6, libc::IPPROTO_TCP)].into_iter().filter(|_| network.forwarder);
    names
        .chain([Rule { from, table: TABLE, priority: 10, ..Rule::default() }, Rule { priority: 20, ..local }])
        .collect()
}

/// buildkitd's configuration of the plugin.
pub fn configuration(network: &StepNetwork, guest: Ipv4Addr) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"kiln","plugins":[{{"type":"{PLUGIN}","guest":"{guest}","first":"{}","prefix":{}}}]}}"#,
        network.first, network.prefix
    )
}

/// One call of the plugin, by the name it was called.
pub fn run(name: &str) -> ExitCode {
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let done = match (command.as_str(), name) {
        ("ADD", PLUGIN) => connect(),
        ("ADD", _) => loopback(),
        ("VERSION", _) => Ok(r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}"#.to_owned()),
        // Cards go with their namespace.
        _ => Ok(String::new()),
    };
    match done {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            let why = Value::text(&why.replace(['"', '\\', '\n'], " "));
            println!(r#"{{"cniVersion":"1.0.0","code":100,"msg":{why}}}"#);
            ExitCode::FAILURE
        }
    }
}

/// What the call says.
struct Call {
    version: String,
    namespace: File,
    path: String,
    configuration: Value,
}

impl Call {
    fn read() -> Result<Self, String> {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
        let mut configuration = Value::parse(&text).map_err(|error| error.to_string())?;
        let path = std::env::var("CNI_NETNS").map_err(|_| "CNI_NETNS is not set".to_owned())?;
        let namespace = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { version: text_of(&mut configuration, "cniVersion")?, namespace, path, configuration })
    }

    /// The answer of a plugin that has given a card an address.
    fn answer(&self, card: &str, address: &str) -> String {
        let Self { version, path, .. } = self;
        format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"{card}","sandbox":"{path}"}}],"ips":[{{"version":"4","interface":0,"address":"{address}"}}]}}"#
        )
    }
}

fn text_of(value: &mut Value, name: &str) -> Result<String, String> {
    let text = value.member(name).and_then(|member| member.as_plain_text().map(str::to_owned));
    text.ok_or_else(|| format!("the configuration has no {name}"))
}

fn loopback() -> Result<String, String> {
    let call = Call::read()?;
    let up = || {
        sys::enter_network(&call.namespace)?;
        Cards::new()?.up("lo")
    };
    up().map_err(|error| format!("lo: {error}"))?;
    Ok(call.answer("lo", "127.0.0.1/8"))
}

fn connect() -> Result<String, String> {
    let mut call = Call::read()?;
    let address = |text: String| text.parse::<Ipv4Addr>().map_err(|error| format!("'{text}': {error}"));
    let guest = address(text_of(&mut call.configuration, "guest")?)?;
    let first = address(text_of(&mut call.configuration, "first")?)?;
    let prefix = call.configuration.member("prefix").and_then(|prefix| prefix.as_number());
    let prefix = prefix.and_then(|prefix| u8::try_from(prefix).ok()).ok_or("the configuration has no prefix")?;
    let network = StepNetwork { first, prefix };
    let step = add_cards(&network, call.namespace.as_raw_fd()).map_err(|error| format!("a pair of cards: {error}"))?;
    let inside = sys::enter_network(&call.namespace).and_then(|()| furnish(step, guest));
    inside.map_err(|error| format!("the step's end: {error}"))?;
    Ok(call.answer(CARD_OF_STEP, &format!("{step}/32")))
}

/// The step's end, in its own namespace: an address, and the guest as the way to everywhere. No IPv6 but the loopback's: no
/// rule looks at it.
fn furnish(step: Ipv4Addr, guest: Ipv4Addr) -> io::Result<()> {
    no_ipv6(CARD_OF_STEP)?;
    let cards = Cards::new()?;
    cards.address(CARD_OF_STEP, libc::SIOCSIFADDR, step)?;
    cards.address(CARD_OF_STEP, libc::SIOCSIFNETMASK, Ipv4Addr::BROADCAST)?;
    cards.up(CARD_OF_STEP)?;
    cards.route_to(guest, CARD_OF_STEP)?;
    cards.default_route(guest)
}

/// Turns IPv6 off for a card of this network namespace, `all` or `default`, and looks whether it is. A kernel without IPv6 has it off.
pub fn no_ipv6(card: &str) -> io::Result<()> {
    let file = format!("/proc/sys/net/ipv6/conf/{card}/disable_ipv6");
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    fs::write(&file, "1")?;
    match fs::read_to_string(&file)?.trim() {
        "1" => Ok(()),
        other => Err(io::Error::other(format!("{file} stays {other}"))),
    }
}

/// Adds a pair of cards for the first address that no step has.
fn add_cards(network: &StepNetwork, namespace: RawFd) -> io::Result<Ipv4Addr> {
    let netlink = Netlink::open()?;
    let mtu = Cards::new()?.mtu_of(CARD)?;
    for step in network.addresses() {
        let card = format!("step{}", step.octets()[3]);
        match netlink.add_pair(&card, CARD_OF_STEP, namespace, mtu) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
            Ok(()) => return guard(&card, step).map(|()| step),
        }
    }
    Err(io::Error::other("all addresses for steps are taken"))
}

/// The guest's end: answers for all addresses, takes packets from the step's own only, leads to it.
fn guard(card: &str, step: Ipv4Addr) -> io::Result<()> {
    for key in ["proxy_arp", "rp_filter"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{card}/{key}"), "1")?;
    }
    Cards::new()?.route_to(step, card)
}

#[cfg(test)]
mod tests;
