//! The network of a guest: a tap of its own, and around it the rules of every cell ([`super::policy`]). Steps ask their guest for names.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use activities::dns::resolvers::for_guests;
use anyhow::Context as _;

use super::owners::{self, Claim, TAPS};
use super::policy::{Daemons, Wire, resolvers};
use super::{LOCK, LOCK_PATIENCE, Subnet, locked, rules, subnet, tap};

/// In the cell's directory: the subnet of its last start, and the rules around it. Settings and resolvers may be others meanwhile.
const SUBNET: &str = "subnet";
const RULES: &str = "rules";
/// Where the guest's builder serves its metrics: the host asks, and only answers are let in.
pub const METRICS: u16 = 9464;
/// A guest's network, as its start needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    pub tap: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// The addresses of its steps, by the first one and their prefix.
    pub steps: (Ipv4Addr, u8),
}

impl GuestNetwork {
    /// Removes what a former guest of the cell left, and makes tap and rules; they are this process's for as long as it keeps the claim,
    /// and then the guest's. `services` are on the host's loopback, `reach` the private networks that steps may reach.
    ///
    /// # Errors
    /// When there are no taps on this machine, iptables is missing or refuses a rule, or no subnet is free.
    pub fn set_up(cell: &Path, services: &BTreeSet<SocketAddr>, reach: &[String]) -> anyhow::Result<(Self, Claim)> {
        let (tap, taps) = (name(cell), Path::new(TAPS));
        let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
        remove(taps, &tap);
        super::sweep();
        let subnet = subnet::choose(&tap, None, &subnet::routes()?)?;
        let claim =
            owners::claim(taps, &tap, subnet).with_context(|| format!("cannot claim the tap {tap} in {TAPS}"))?;
        tap::add(&tap, subnet).with_context(|| format!("cannot make the tap {tap}"))?;
        allow(&tap).with_context(|| format!("cannot set up the tap {tap}"))?;
        let (script, dns) = script(&tap, subnet, services, reach);
        rules::restore(&script).context("cannot set the firewall's rules")?;
        for (record, text) in [(SUBNET, &subnet.to_string()), (RULES, &script)] {
            let file = cell.join(record);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let (address, gateway, steps) = (subnet.guest(), subnet.gateway(), subnet.steps());
        Ok((Self { tap, address, gateway, dns, steps }, claim))
    }

    /// Puts up again what has come down since [`Self::set_up`], while the guest runs; what that was. Asked again, nothing is.
    ///
    /// # Errors
    /// When the tap is gone, or it is not known what it had: only another start of the guest brings another one.
    pub fn mend(cell: &Path) -> anyhow::Result<Vec<String>> {
        let tap = name(cell);
        let _lock = locked(Path::new(LOCK), LOCK_PATIENCE)?;
        let (subnet, script): (Subnet, _) = (recorded(cell, SUBNET)?.trim().parse()?, recorded(cell, RULES)?);
        let stand = rules::stand(&tap, &script)?;
        if !stand {
            // The guest is not on the wire while its rules are not.
            tap::take_down(&tap).with_context(|| format!("cannot take down the tap {tap}"))?;
            rules::remove(&tap, None)
                .and_then(|()| rules::restore(&script))
                .context("cannot set the firewall's rules")?;
        }
        let mut mended = tap::mend(&tap, subnet).with_context(|| format!("cannot put up the tap {tap}"))?;
        allow(&tap).with_context(|| format!("cannot set up the tap {tap}"))?;
        if !stand {
            mended = vec![format!("rules of the tap {tap} were missing")];
        }
        Ok(mended)
    }

    /// As [`Self::mend`], where rules are missing and the tap is there. Unlike a tap that is down nobody inside would notice: whoever flushes
    /// the firewall opens the host to steps.
    ///
    /// # Errors
    /// As there.
    pub fn guard(cell: &Path) -> anyhow::Result<Vec<String>> {
        let tap = name(cell);
        if !tap::is_there(&tap) || rules::stand(&tap, &recorded(cell, RULES)?)? {
            return Ok(Vec::new());
        }
        Self::mend(cell)
    }

    /// The guest's own address at its last start; `None` when it never was.
    pub fn address_of(cell: &Path) -> Option<Ipv4Addr> {
        recorded(cell, SUBNET).ok()?.trim().parse().ok().map(Subnet::guest)
    }

    /// Removes the cell's tap and rules. Failures are for the next start to mend.
    pub fn tear_down(cell: &Path) {
        let tap = name(cell);
        match locked(Path::new(LOCK), LOCK_PATIENCE) {
            Ok(_lock) => remove(Path::new(TAPS), &tap),
            Err(error) => tracing::warn!(error = format!("{error:#}"), tap, "the guest's tap and rules stay"),
        }
    }
}

fn recorded(cell: &Path, record: &str) -> anyhow::Result<String> {
    let file = cell.join(record);
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

/// All rules of a guest, and the resolvers that it is told of.
fn script(tap: &str, subnet: Subnet, services: &BTreeSet<SocketAddr>, reach: &[String]) -> (String, Vec<Ipv4Addr>) {
    let (dns, local_resolver) = resolvers(&for_guests().unwrap_or_default(), subnet.gateway());
    let (steps_reach, daemons) = (reach, Daemons::WithBuilder);
    let wire = Wire { device: tap, subnet, services, dns: &dns, local_resolver, steps_reach, daemons };
    (wire.script(), dns)
}

/// Removes the taps that no guest has and no agent is about to give to one.
pub(super) fn sweep(taps: &Path) {
    for (orphan, _) in owners::orphans(taps) {
        if tap::is_free(&orphan) {
            remove(taps, &orphan);
        }
    }
}

fn remove(taps: &Path, tap: &str) {
    tap::remove(tap);
    match rules::remove(tap, None) {
        Ok(()) => owners::forget(taps, tap),
        Err(error) => tracing::warn!(error = format!("{error:#}"), tap, "the firewall's rules stay"),
    }
}

/// Unlike that of any other cell on the host: it follows from the directory's path. Rules for all cells say `kiln+`.
fn name(cell: &Path) -> String {
    format!("kiln{}", &blake3::hash(cell.as_os_str().as_encoded_bytes()).to_hex()[..8])
}

/// Packets may be passed on, and come in for addresses of the loopback: the rules say which.
pub(super) fn allow(tap: &str) -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write(format!("/proc/sys/net/ipv4/conf/{tap}/route_localnet"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET: &str = "10.64.3.0/24";

    /// In a network namespace of the thread's own: nothing of the machine's network is touched.
    #[test]
    fn a_tap_that_nobody_has_is_swept_with_its_rules() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        let dir = tempfile::tempdir().unwrap();
        let (taps, subnet): (_, Subnet) = (dir.path(), SUBNET.parse().unwrap());
        let claim = owners::claim(taps, "kiln0a", subnet).unwrap();
        tap::add("kiln0a", subnet).unwrap();
        let (script, _) = script("kiln0a", subnet, &BTreeSet::new(), &[]);
        rules::restore(&script).unwrap();
        let is_there = || fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("kiln0a");
        sweep(taps);
        assert!(is_there(), "its agent is about to give it to a guest");
        let guest = tap::open("kiln0a").unwrap();
        drop(claim);
        sweep(taps);
        assert!(is_there(), "its guest has it, whatever became of the agent");
        drop(guest);
        sweep(taps);
        assert!(!is_there() && owners::orphans(taps).is_empty());
        assert!(!rules::stand("kiln0a", &script).unwrap());
        assert!(rules::stand("kiln0a", "").unwrap(), "no rule is left");
    }
}
