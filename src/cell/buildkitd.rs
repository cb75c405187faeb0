//! buildkitd's configuration file, with every setting that matters said: its defaults are made for a developer's own daemon.
//!
//! Keys: <https://github.com/moby/buildkit/blob/v0.33.1/docs/buildkitd.toml.md>.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use super::network::Network;
use super::plan::Plan;
use super::steps;

const HOUR: u64 = 3600;
/// Of the 126 addresses that a cell has for steps; some are for steps that BuildKit gives one of their own for a build.
const STEPS_MAX: u32 = 96;

/// The daemon's command line and environment.
pub fn command(plan: &Plan) -> Command {
    let mut command = Command::new(&plan.tools.buildkitd);
    command.arg("--config").arg(config_file(plan));
    // Kiln caps logs itself, per build, and says where it cut.
    command.env("BUILDKIT_STEP_LOG_MAX_SIZE", "-1").env("BUILDKIT_STEP_LOG_MAX_SPEED", "-1");
    command
}

/// What the network of steps is.
pub fn network_config(plan: &Plan) -> PathBuf {
    plan.dir.join("network.conflist")
}

/// The resolvers that the daemon asks.
pub fn resolv_conf(plan: &Plan) -> PathBuf {
    plan.dir.join("resolv.conf")
}

pub fn config_file(plan: &Plan) -> PathBuf {
    plan.dir.join("buildkitd.toml")
}

/// The file's text. Steps ask `forwarder` for names, where there is one; else what the host's resolv.conf says.
///
/// # Errors
/// When a path is not UTF-8: TOML cannot say it.
pub fn config(plan: &Plan, network: &Network, forwarder: Option<SocketAddr>) -> anyhow::Result<String> {
    let config = Config {
        root: plan.buildkit_root(),
        log: Log { format: "json", level: "info" },
        grpc: Grpc { address: vec![format!("unix://{}", plan.socket.display())] },
        worker: Worker { oci: oci(plan, network), containerd: Disabled { enabled: false } },
        history: History { max_age: 48 * HOUR, max_entries: 200 },
        cdi: Cdi { disabled: true },
        dns: forwarder.map(|forwarder| Dns { nameservers: vec![forwarder.ip().to_string()] }),
        registry: registries(plan),
    };
    Ok(toml::to_string(&config)?)
}

fn oci(plan: &Plan, network: &Network) -> Oci {
    // Each step has an address of its own.
    let parallel_steps = plan.limits.parallel_steps.min(STEPS_MAX);
    let own = match network {
        Network::Own { .. } => Some(OwnNetwork {
            cni_config_path: network_config(plan),
            cni_binary_path: steps::programs(plan),
            cni_pool_size: parallel_steps,
        }),
        Network::Host { .. } => None,
    };
    Oci {
        enabled: true,
        snapshotter: "overlayfs",
        binary: steps::programs(plan).join(kiln_init::runc::NAME),
        max_parallelism: parallel_steps,
        default_cgroup_parent: plan.cgroup(),
        network_mode: if own.is_some() { "cni" } else { "host" },
        own,
        gc: true,
        gcpolicy: policies(plan.cache.max_bytes, plan.cache.min_free_bytes),
    }
}

/// The policies are applied in order; each deletes, oldest first, what its filter lets it while the cache *as a whole* is above its
/// limit. So what costs nothing to make again goes first, cache mounts go late and slowly, and only the last resort takes them while
/// they are in use.
fn policies(max: u64, free: u64) -> Vec<Policy> {
    let reserved = max / 10;
    let policy = |filters: &[&'static str], hours: u64, max_used_space: u64| Policy {
        all: false,
        filters: filters.to_vec(),
        keep_duration: hours * HOUR,
        reserved_space: reserved,
        max_used_space,
        min_free_space: free,
    };
    vec![
        policy(&["type==source.local", "type==source.git.checkout"], 48, max / 2),
        policy(&["type==exec.cachemount"], 14 * 24, max / 4 * 3),
        policy(&["type!=exec.cachemount"], 0, max),
        Policy { all: true, ..policy(&[], 0, max) },
    ]
}

/// The mirror is asked first, docker.io itself after it. A host that is spoken to without TLS needs a block of its own, the
/// mirror's too.
fn registries(plan: &Plan) -> BTreeMap<String, RegistryHost> {
    let plain = plan.mirror.iter().chain(&plan.plain_http);
    let plain = plain.map(|host| (host.clone(), RegistryHost { mirrors: vec![], http: Some(true) }));
    let hub = plan.mirror.iter().map(|mirror| RegistryHost { mirrors: vec![mirror.clone()], http: None });
    plain.chain(hub.map(|hub| ("docker.io".to_owned(), hub))).collect()
}

#[derive(Serialize)]
struct Config {
    root: PathBuf,
    log: Log,
    grpc: Grpc,
    worker: Worker,
    history: History,
    cdi: Cdi,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
    registry: BTreeMap<String, RegistryHost>,
}

#[derive(Serialize)]
struct Log {
    format: &'static str,
    level: &'static str,
}

#[derive(Serialize)]
struct Grpc {
    address: Vec<String>,
}

#[derive(Serialize)]
struct Worker {
    oci: Oci,
    containerd: Disabled,
}

#[derive(Serialize)]
struct Disabled {
    enabled: bool,
}

#[derive(Serialize)]
struct Oci {
    enabled: bool,
    snapshotter: &'static str,
    binary: PathBuf,
    #[serde(rename = "max-parallelism")]
    max_parallelism: u32,
    #[serde(rename = "defaultCgroupParent")]
    default_cgroup_parent: String,
    #[serde(rename = "networkMode")]
    network_mode: &'static str,
    #[serde(flatten)]
    own: Option<OwnNetwork>,
    gc: bool,
    gcpolicy: Vec<Policy>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnNetwork {
    cni_config_path: PathBuf,
    cni_binary_path: PathBuf,
    cni_pool_size: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    all: bool,
    filters: Vec<&'static str>,
    /// Seconds.
    keep_duration: u64,
    /// Bytes, as the following.
    reserved_space: u64,
    max_used_space: u64,
    min_free_space: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct History {
    /// Seconds.
    max_age: u64,
    max_entries: u64,
}

#[derive(Serialize)]
struct Cdi {
    disabled: bool,
}

#[derive(Serialize)]
struct Dns {
    nameservers: Vec<String>,
}

#[derive(Serialize)]
struct RegistryHost {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_network_configuration() {
        let subnet = "10.90.7.0/24".parse().unwrap();
        let network = Network::Own { device: "kiln01234567".into(), subnet, forwarder: None };
        insta::assert_snapshot!(config(&Plan::example(), &network, None).unwrap());
    }

    #[test]
    fn steps_ask_the_cells_own_forwarder() {
        let network = Network::Host { why: "no plugins".into() };
        let text = config(&Plan::example(), &network, Some("10.90.7.1:53".parse().unwrap())).unwrap();
        assert!(text.contains("[dns]\nnameservers = [\"10.90.7.1\"]\n"), "{text}");
    }

    #[test]
    fn only_the_listed_registries_are_spoken_to_without_tls() {
        let plan = Plan { mirror: None, plain_http: vec!["plain.example:5000".into()], ..Plan::example() };
        let hosts = registries(&plan);
        assert_eq!(hosts.keys().collect::<Vec<_>>(), ["plain.example:5000"]);
        assert_eq!(hosts["plain.example:5000"].http, Some(true));
    }

    #[test]
    fn host_configuration_has_no_plugin() {
        let network = Network::Host { why: "no plugins".into() };
        let text = config(&Plan { mirror: None, ..Plan::example() }, &network, None).unwrap();
        assert!(text.contains("networkMode = \"host\""));
        assert!(!text.contains("cni") && !text.contains("docker.io"));
    }
}
