//! `kiln __machine-network up|down --config FILE`: the network of a machine that is one cell, for `deploy/systemd/kiln-network.service`.
//! The same namespace, cards and rules as around buildkitd in a cell of processes, left in place for buildkitd's own unit.
//!
//! ```text
//! /run/netns/kiln             the namespace that kiln-buildkitd.service enters (NetworkNamespacePath=)
//! /run/kiln/network.conflist  what buildkitd is told of the network of steps
//! /run/kiln/resolv.conf       the resolvers of buildkitd, mounted over /etc/resolv.conf of its unit
//! /run/kiln/builder.env       where the builder answers for names
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Asked, Made, Network, link, make, remove};
use crate::cell::SettingsOf;

pub const ROLE: &str = "__machine-network";

/// The host's end of the wire: rules of all cells say `kiln+`.
const DEVICE: &str = "kiln-machine";
const NAMESPACES: &str = "/run/netns";
const NAMESPACE: &str = "/run/netns/kiln";
const FILES: &str = "/run/kiln";

/// Makes the network, or removes it.
///
/// # Errors
/// When the command line is another one, the settings cannot be read, or the network cannot be made: buildkitd's unit does not start then.
pub fn run(args: Vec<OsString>, settings_of: SettingsOf) -> anyhow::Result<ExitCode> {
    let usage = format!("usage: kiln {ROLE} up|down --config FILE");
    let [what, flag, file] = args.as_slice() else { anyhow::bail!(usage) };
    anyhow::ensure!(flag == "--config", usage);
    match what.to_str() {
        Some("up") => {
            let line = ["kiln", "builder", "--config"].map(str::to_owned).into_iter();
            let line: Vec<String> = line.chain([file.to_string_lossy().into_owned()]).collect();
            let settings = settings_of(&line).with_context(|| format!("{} has no usable settings", file.display()))?;
            down();
            up(&settings.network_asked())?;
        }
        Some("down") => down(),
        _ => anyhow::bail!(usage),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(asked: &Asked) -> anyhow::Result<()> {
    let Made { network, namespace, dns, claim: _ } = make(DEVICE, None, asked)?;
    let namespace = namespace.context("no namespace was made")?;
    keep(&namespace).with_context(|| format!("cannot keep the network namespace in {NAMESPACE}"))?;
    let Network::Own { subnet, forwarder, .. } = network else { anyhow::bail!("no network was made") };
    let resolvers: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    let listen = forwarder.map_or_else(String::new, |at| format!("KILN_DNS_LISTEN={at}\n"));
    fs::create_dir_all(FILES).with_context(|| format!("cannot make {FILES}"))?;
    let files =
        [("network.conflist", link::configuration(subnet)), ("resolv.conf", resolvers), ("builder.env", listen)];
    for (file, text) in files {
        let file = Path::new(FILES).join(file);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// A mount of the namespace's file keeps it when no process is in it.
fn keep(namespace: &File) -> anyhow::Result<()> {
    fs::create_dir_all(NAMESPACES)?;
    File::create(NAMESPACE)?;
    let mounted = link::inside(namespace, || {
        mount(Some("/proc/thread-self/ns/net"), NAMESPACE, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    Ok(mounted??)
}

/// Removes what is there; nothing is no failure.
fn down() {
    remove(DEVICE, None);
    let _ = umount2(NAMESPACE, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(NAMESPACE);
}
