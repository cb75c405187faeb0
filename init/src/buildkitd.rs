//! buildkitd's configuration file and command line. Its keys: <https://github.com/moby/buildkit/blob/v0.33.1/docs/buildkitd.toml.md>.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use crate::settings::{Buildkitd, Network};
use crate::{cgroups, steps};

pub const SOCKET: &str = "/run/buildkit/buildkitd.sock";
pub const ROOT: &str = "/data/buildkit";
const CONFIG: &str = "/run/buildkit/buildkitd.toml";
/// What the network of steps is, where they have one of their own; and this binary by the names that are called for it.
const NETWORK: &str = "/run/buildkit/network.conflist";
const PLUGINS: &str = "/usr/lib/kiln/cni";
/// This binary by its other name.
const RUNC_WRAPPER: &str = "/usr/lib/kiln/runc";
const HOUR: u64 = 3600;

pub fn command() -> Command {
    let mut command = Command::new("/usr/bin/buildkitd");
    command.args(["--config", CONFIG]);
    command.env_clear().env("PATH", "/usr/bin:/sbin").env("HOME", "/root").env("TMPDIR", "/tmp");
    command.env("GOMAXPROCS", goroutines_at_once().to_string());
    // Kiln caps logs itself, per build, and says where it cut.
    command.env("BUILDKIT_STEP_LOG_MAX_SIZE", "-1").env("BUILDKIT_STEP_LOG_MAX_SPEED", "-1");
    command
}

/// As many as there are processors, which is Go's own choice, but on a small machine more: with one, what answers a question waits until what
/// computes has had its turn, 10 ms each; with four the kernel lets it go first.
fn goroutines_at_once() -> usize {
    const LEAST: usize = 4;
    std::thread::available_parallelism().map_or(LEAST, |processors| processors.get().max(LEAST))
}

/// `disk` is the size of the cache disk in bytes.
pub fn write_config(settings: &Buildkitd, network: &Network, disk: u64) -> io::Result<()> {
    fs::create_dir_all("/run/buildkit")?;
    if let Some(own) = &network.steps {
        fs::write(NETWORK, steps::configuration(own, network.address))?;
    }
    fs::write(CONFIG, config(settings, network, disk))
}

fn config(settings: &Buildkitd, network: &Network, disk: u64) -> String {
    let addresses: Vec<_> = [Some(format!("unix://{SOCKET}")), settings.listen.clone()].into_iter().flatten().collect();
    let addresses: Vec<_> = addresses.iter().map(|address| quoted(address)).collect();
    let mut text = format!(
        "root = {root}\n[log]\nformat = \"json\"\nlevel = \"info\"\n[grpc]\naddress = [{addresses}]\n\
         [history]\nmaxAge = {age}\nmaxEntries = 200\n[cdi]\ndisabled = true\n[worker.containerd]\nenabled = false\n\
         [worker.oci]\nenabled = true\nsnapshotter = \"overlayfs\"\nbinary = {RUNC_WRAPPER:?}\n{network}\
         max-parallelism = {parallel}\ndefaultCgroupParent = \"/{builds}\"\ngc = true\n",
        root = quoted(ROOT),
        network =
            if network.steps.is_some() { own(settings.parallel_steps) } else { "networkMode = \"host\"\n".to_owned() },
        addresses = addresses.join(", "),
        age = 48 * HOUR,
        parallel = settings.parallel_steps,
        builds = cgroups::BUILDS,
    );
    policies(&mut text, settings.cache_max.unwrap_or(disk / 10 * 9), disk / 20);
    registries(&mut text, settings);
    if network.forwarder {
        name_servers(&mut text, &network.name_servers());
    }
    text
}

/// For steps. Without it they are given what this machine's own resolv.conf says.
fn name_servers(text: &mut String, servers: &[Ipv4Addr]) {
    let servers: Vec<_> = servers.iter().map(|server| quoted(&server.to_string())).collect();
    let _ = write!(text, "[dns]\nnameservers = [{}]\n", servers.join(", "));
}

/// Networks are made before they are needed, as many as steps run at once, and used again.
fn own(parallel_steps: u64) -> String {
    format!(
        "networkMode = \"cni\"\ncniConfigPath = {NETWORK:?}\ncniBinaryPath = {PLUGINS:?}\ncniPoolSize = {parallel_steps}\n"
    )
}

/// Applied in order; each deletes, oldest first, what its filter lets it while the cache as a whole is above its limit. What costs
/// nothing to make again goes first, cache mounts late, and only the last resort takes them while they are in use.
fn policies(text: &mut String, max: u64, free: u64) {
    let table: [(&[&str], u64, u64, bool); 4] = [
        (&["type==source.local", "type==source.git.checkout"], 48, max / 2, false),
        (&["type==exec.cachemount"], 14 * 24, max / 4 * 3, false),
        (&["type!=exec.cachemount"], 0, max, false),
        (&[], 0, max, true),
    ];
    for (filters, hours, used, all) in table {
        let filters: Vec<_> = filters.iter().map(|filter| quoted(filter)).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[worker.oci.gcpolicy]]\nall = {all}\nfilters = [{}]\nkeepDuration = {}\nreservedSpace = {}\nmaxUsedSpace = {used}\n\
             minFreeSpace = {free}\n",
            filters.join(", "),
            hours * HOUR,
            max / 10,
        );
    }
}

/// A mirror's own host needs a block of its own to be spoken to without TLS.
fn registries(text: &mut String, settings: &Buildkitd) {
    if let Some(mirror) = &settings.mirror {
        let _ = write!(text, "[registry.\"docker.io\"]\nmirrors = [{}]\n", quoted(mirror));
    }
    let mut plain: Vec<_> = settings.mirror.iter().chain(&settings.plain_http).collect();
    plain.sort_unstable();
    plain.dedup();
    for host in plain {
        let _ = write!(text, "[registry.{}]\nhttp = true\n", quoted(host));
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::StepNetwork;

    fn settings() -> Buildkitd {
        Buildkitd {
            parallel_steps: 3,
            cache_max: None,
            listen: None,
            mirror: Some("10.0.2.2:5000".into()),
            plain_http: vec!["10.0.2.2:5000".into(), "10.0.2.2:6000".into()],
        }
    }

    fn network(forwarder: bool) -> Network {
        let first = Ipv4Addr::new(10, 0, 2, 128);
        Network {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: vec![Ipv4Addr::new(10, 0, 2, 3)],
            forwarder,
            mtu: None,
            steps: Some(StepNetwork { first, prefix: 25 }),
        }
    }

    #[test]
    fn steps_ask_the_guest_for_names_where_it_answers() {
        let text = config(&settings(), &network(true), 20_000_000_000);
        assert!(text.ends_with("[dns]\nnameservers = [\"10.0.2.15\"]\n"), "{text}");
        assert!(!config(&settings(), &network(false), 20_000_000_000).contains("[dns]"));
    }

    #[test]
    fn steps_run_in_the_builds_slice_through_the_wrapper() {
        let text = config(&settings(), &network(true), 20_000_000_000);
        for line in [
            "root = \"/data/buildkit\"",
            "address = [\"unix:///run/buildkit/buildkitd.sock\"]",
            "binary = \"/usr/lib/kiln/runc\"",
            "defaultCgroupParent = \"/kiln-builds.slice\"",
            "max-parallelism = 3",
            "networkMode = \"cni\"",
            "cniPoolSize = 3",
            "maxUsedSpace = 18000000000",
            "minFreeSpace = 1000000000",
            "mirrors = [\"10.0.2.2:5000\"]",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("[registry.\"10.0.2.2:5000\"]").count(), 1, "{text}");
    }

    #[test]
    fn what_the_host_says_cannot_leave_its_string() {
        assert_eq!(quoted("a\"]\nx = \\"), "\"a\\\"]\\u000Ax = \\\\\"");
    }
}
