//! Settings of every role: defaults, `kiln.toml`, `KILN_*`, flags, in this order; resolved once into typed values.
//! Temporal's own client configuration says what these leave open of Temporal's address and namespace.
//!
//! `kiln dev` writes a complete `kiln.toml` for its children; a real installation writes its own. A variable's name is the key's path
//! in capitals, joined by underscores: `temporal.address` is `KILN_TEMPORAL_ADDRESS`.
//!
//! This module reads files and variables and decides nothing else; what a setting does is documented at its field and known to the
//! part that uses it. [`resolve()`] is called once, in `main`.

mod error;
mod layers;
mod logins;
mod parts;
mod resolve;
mod rules;
mod secret;
#[cfg(test)]
mod tests;
mod wires;

use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};
use workflows::contract::CellClocks;
use workflows::policy::RegistryPolicy;

pub use error::SettingsError;
pub use layers::{Layers, Origin};
pub use logins::{LoginError, Logins};
pub use parts::resolver;
pub use resolve::{Overrides, Resolved, of_file, resolve};
pub use rules::network;
pub use secret::Secret;
pub use wires::{Wire, is_loopback};

/// The variable that filters logs and spans; the only one of these that is no setting.
pub const LOG_FILTER: &str = "KILN_LOG";

/// Keeps this process's own settings from a child that gets all of its settings from files.
pub fn forget_variables(child: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        child.env_remove(name);
    }
}

fn is_setting(variable: &str) -> bool {
    (variable.starts_with("KILN_") && variable != LOG_FILTER) || variable.starts_with("TEMPORAL_")
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub temporal: Temporal,
    pub tls: Tls,
    pub api: Api,
    pub s3: S3,
    pub registry: Registry,
    pub egress: Egress,
    pub store: StoreSettings,
    pub seal: Seal,
    pub logs: Logs,
    pub attempts: Attempts,
    pub cell: Cell,
    pub dns: Dns,
    pub clock: Clock,
    pub host: Host,
    pub guest: Guest,
    pub snapshots: Snapshots,
    pub telemetry: Telemetry,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Temporal {
    /// `host:port` of the frontend. Where it is not set, that of Temporal's own client configuration.
    pub address: String,
    /// Where it is not set, that of Temporal's own client configuration.
    pub namespace: String,
    /// Read Temporal's own client configuration (`TEMPORAL_*` variables, `temporal.toml`): TLS, client
    /// certificate, API key and headers come from nowhere else.
    pub client_config: bool,
    /// The `temporal.toml` to read; empty: the one that `TEMPORAL_CONFIG_FILE` names, or the user's.
    pub config_file: PathBuf,
    /// The profile in it; empty: the one that `TEMPORAL_PROFILE` names, or `default`.
    pub profile: String,
}

impl Default for Temporal {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:7233".into(),
            namespace: "default".into(),
            client_config: true,
            config_file: PathBuf::new(),
            profile: String::new(),
        }
    }
}

/// What all wires of a process have in common.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with certificate authorities to trust for the api, the log receiver and object storage,
    /// beside those of the system.
    pub ca: PathBuf,
    /// Talk and listen without TLS beyond the loopback too. Otherwise a role refuses to start with such a wire.
    pub allow_plaintext: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where `kiln api` listens.
    pub listen: String,
    /// Where clients and cells reach it.
    pub url: String,
    /// The bearer token that this process sends; for `kiln api`, the operator's token, which it compares and does not keep.
    pub token: Secret,
    /// A file that holds the token, in place of `token`. The credential of a cell that a host keeps lies in its directory.
    pub token_file: PathBuf,
    /// What tokens of CI systems are made for: what commands ask for, and trust rules want unless they say otherwise.
    pub audience: String,
    /// Create a project on first use (`kiln dev`); otherwise an unknown project is refused.
    pub create_projects: bool,
    /// PEM files with the listener's certificate chain and private key, read again when they change; empty: plain
    /// HTTP.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// The most connections at a time; more wait to be accepted.
    pub max_connections: usize,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7080".into(),
            url: "http://127.0.0.1:7080".into(),
            token: Secret::default(),
            token_file: PathBuf::new(),
            audience: "kiln".into(),
            create_projects: false,
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            max_connections: 4096,
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// For example `https://<account>.r2.cloudflarestorage.com`; empty: AWS.
    pub endpoint: String,
    /// `auto` for R2. On AWS empty or `auto`: the bucket's own region, which S3 is asked for.
    pub region: String,
    pub bucket: String,
    /// Empty, with `secret_key`: the credentials that AWS's chain finds (`AWS_*` variables, profile, web identity, container and
    /// instance roles, SSO).
    pub access_key: String,
    pub secret_key: Secret,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// `host:port` of the registry that images without a tag of their own go to.
    pub address: String,
    /// Hosts (`host[:port]`) that publishing speaks to over plain HTTP; loopback always is. What buildkitd pulls and pushes over
    /// plain HTTP stands in its own configuration: `plain_http` of a cell's `cell.json`, `buildkitd.toml` of a plain machine;
    /// guests get these hosts.
    pub plain_http: Vec<String>,
    /// `host:port` of a registry that has images of docker.io and is asked for them first, as buildkitd does.
    pub mirror: String,
    /// Paths in this registry that every project may read and no build may write, for example `library/*`.
    pub shared: Vec<String>,
    /// Other registries (`host[:port]`, `*` as a wildcard) that builds may publish to without sending credentials.
    pub open: Vec<String>,
}

impl Registry {
    /// The rules of who may use which repository.
    pub fn policy(&self) -> RegistryPolicy {
        RegistryPolicy { address: self.address.clone(), shared: self.shared.clone(), open: self.open.clone() }
    }
}

/// Where requests may lead whose URL a build or a registry has chosen: registries of tags, their token servers, redirects. Public
/// addresses, `registry.address`, the hosts of `registry.plain_http`, and these.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// Networks (`10.1.0.0/16`), addresses and hosts, the latter two with or without a port (`registry.internal:5000`).
    pub allow: Vec<String>,
    /// Builds may name registries on the loopback of this machine, as with docker; `kiln dev` sets it. Token servers on other ports of
    /// the loopback are not reached by it.
    pub loopback_registries: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// `sqlite:///path/kiln.db` or `postgres://…`.
    pub url: Secret,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seal {
    /// The fleet's public key (`age1…`); the api seals with it.
    pub recipient: String,
    /// File with the fleet's private key; cells and control open with it.
    pub identity_file: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logs {
    /// Where the log receiver listens (`kiln api`).
    pub listen: String,
    /// Where builders reach it.
    pub address: String,
    /// Builders speak TLS to `address`.
    pub tls: bool,
    /// PEM files with the receiver's certificate chain and private key, read again when they change; empty: no TLS.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// The most connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Where the receiver keeps logs of running builds.
    pub dir: PathBuf,
    /// The most one build's log may grow to, bytes.
    pub build_cap: u64,
    /// The most a builder spools while the receiver is away, bytes.
    pub spool_cap: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7081".into(),
            address: "127.0.0.1:7081".into(),
            tls: false,
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            max_connections: 4096,
            dir: PathBuf::new(),
            build_cap: 1 << 30,
            spool_cap: 1 << 30,
        }
    }
}

/// When an attempt that is not heard of is over. Control and builders are given the same.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attempts {
    /// Between two heartbeats of an attempt, milliseconds.
    pub heartbeat_ms: u64,
    /// The builder stops an attempt by itself when no heartbeat was acknowledged for so long, milliseconds.
    pub cut_off_after_ms: u64,
    /// The server gives an attempt up after this silence, milliseconds; its build goes to another cell.
    pub lost_after_ms: u64,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { heartbeat_ms: 5_000, cut_off_after_ms: 75_000, lost_after_ms: 90_000 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cell {
    pub id: String,
    /// The host whose agent starts and stops the cell; empty: none does.
    pub host: String,
    /// The cell that this one was copied from; its host's agent says so.
    pub clone_of: String,
    pub pool: String,
    /// The only project whose builds the cell takes; empty: those of all. Pools of tenancy `project` have such cells only.
    pub project: String,
    /// What the cell builds for; empty: what its buildkitd reports as its own. Control and api take it for builds that name none, there
    /// empty is `linux/amd64`.
    pub platform: String,
    pub slots: u32,
    pub buildkit_socket: PathBuf,
    /// The cache disk: snapshot cache, spool, epoch, task tokens.
    pub dir: PathBuf,
    /// The most the snapshot file cache may take, bytes.
    pub file_cache_cap: u64,
    /// An attempt without progress for so long is stuck, seconds.
    pub stuck_after_s: u64,
    /// How long running builds may go on once the builder is told to end, milliseconds; then they are tried again elsewhere.
    pub drain_grace_ms: u64,
    /// Frontend images that builds may ask for instead of the built-in one: `repository[:tag]@sha256:…`, Docker Hub's without a host.
    /// An entry without a tag stands for every tag that a `# syntax=` line names.
    pub frontends: Vec<String>,
    /// The private networks that RUN steps may reach in a cell of processes or a machine that is one cell, like `10.1.0.0/16`; of private
    /// ones they reach no other. Guests have `guest.steps_reach`.
    pub steps_reach: Vec<String>,
    /// The same for buildkitd itself, which pulls, pushes and fetches what a Dockerfile's `ADD` names: registries at private addresses.
    pub daemon_reach: Vec<String>,
    /// What this machine cannot limit for steps; the cell's PID 1 sets it.
    pub unlimited: Vec<String>,
    /// Where the services are whose addresses in the settings are on the loopback: in a guest, its host. The builder listens on those
    /// addresses itself and passes connections on. Empty: they are here.
    pub services_at: String,
    /// The times of the cell's life; the Cell learns them from its builder.
    pub clocks: CellClocks,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            id: String::new(),
            host: String::new(),
            clone_of: String::new(),
            pool: "default".into(),
            project: String::new(),
            platform: String::new(),
            slots: 4,
            buildkit_socket: PathBuf::new(),
            dir: PathBuf::new(),
            file_cache_cap: 4 << 30,
            stuck_after_s: 20 * 60,
            drain_grace_ms: 8000,
            frontends: Vec::new(),
            steps_reach: Vec::new(),
            daemon_reach: Vec::new(),
            unlimited: Vec::new(),
            services_at: String::new(),
            clocks: CellClocks::default(),
        }
    }
}

/// The forwarder of names in a builder, which its cell's daemons and steps ask. In a guest the agent sets where it listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// `address:port`, over UDP and TCP; there is no forwarder when empty.
    pub listen: String,
    /// The resolvers it asks, in this order: addresses, with a port where it is not 53. Empty: those of the machine's resolv.conf, in a
    /// guest its host's.
    pub upstreams: Vec<String>,
    /// How long one of them may take for an answer, milliseconds; then the next one is asked.
    pub timeout_ms: u64,
    /// How long an answer is of use after its time to live, when no upstream answers, seconds; 0: not at all.
    pub stale_s: u64,
}

impl Default for Dns {
    fn default() -> Self {
        Self { listen: String::new(), upstreams: Vec::new(), timeout_ms: 1500, stale_s: 24 * 3600 }
    }
}

/// How a builder checks its machine's clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clock {
    /// Time servers (SNTP): `host`, or `host:port` where it is not 123. The middle one of their answers counts. Empty: no checks.
    pub servers: Vec<String>,
    /// Between two checks, seconds.
    pub check_every_s: u64,
    /// Off by more, the cell takes no build: certificates cannot be checked by it. Milliseconds.
    pub limit_ms: u64,
    /// Whether the builder sets the clock, which takes the right to (CAP_SYS_TIME). In a guest it always does.
    pub adjust: bool,
    /// A clock that is off by less is slewed, one that is off by more is set at once, milliseconds; at most `limit_ms`.
    pub step_ms: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { servers: Vec::new(), check_every_s: 300, limit_ms: 60_000, adjust: false, step_ms: 500 }
    }
}

/// A host's agent and its cells.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Host {
    pub id: String,
    /// What kind of machine the cells are: `process`, or guests of `qemu` or `firecracker`.
    pub driver: String,
    /// The cells' directories, each the cache disk of the cell it is named after, with its `cell.json`.
    pub cells: Vec<PathBuf>,
    /// The images that orders may name, each a directory named as the image; only root may be able to change it.
    pub image_dir: PathBuf,
    /// The most cells the host may have, clones among them; 0: any number. Clones lie beside the cells that they were copied from.
    pub max_cells: usize,
    /// Empty: cells outlive the agent. A file: they end with the agent's supervisor (when the pipe that is the agent's standard input
    /// closes) and when the agent is told to end, run at each of its starts, and hold a shared lock on this file while they live.
    pub bound: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            id: String::new(),
            driver: "process".into(),
            cells: Vec::new(),
            image_dir: "/var/lib/kiln/images".into(),
            max_cells: 0,
            bound: PathBuf::new(),
        }
    }
}

/// The guests of a host whose driver is `qemu` or `firecracker`, all alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guest {
    /// The directory of the image that cells run unless an order names another one; `make guest` prints it.
    pub image: PathBuf,
    /// `sha256:…`, the digest that this image must have.
    pub digest: String,
    /// Firecracker's program, by its path or its name; for the driver of that name, which no test here has run a real guest with.
    pub firecracker: PathBuf,
    /// What runs the guests' instructions: `kvm`, `tcg` (software, some five times slower), or `auto`: KVM where it runs the
    /// image, which is tried once. Firecracker has KVM only.
    pub accel: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The size of a cell's cache disk, GiB: it is made so large, and grown to it, never shrunk.
    pub disk_gib: u64,
    /// Swap for the steps, GiB; 0 for none.
    pub swap_gib: u64,
    /// Backs the guests' memory with huge pages that the host has set aside.
    pub huge_pages: bool,
    /// Each cell runs on host processors of its own: the first of `host.cells` on the first `vcpus`, and so on.
    pub pin: bool,
    /// Memory that a guest keeps for its daemons whatever steps do, MiB; 0: 256.
    pub daemons_memory_mib: u64,
    /// The weight of the daemons among those that want the processor; 0: 1000.
    pub daemons_cpu_weight: u64,
    /// The most memory all steps of a guest may take together, MiB; 0: what the daemons' floor leaves.
    pub builds_memory_mib: u64,
    /// The weight of all steps together; 0: they get what the daemons leave.
    pub builds_cpu_weight: u64,
    /// How many processes and threads all steps of a guest may have together; 0: 16384.
    pub builds_processes: u64,
    /// The most memory one step may take, and the most swap beside it, MiB; 0: what the guest has.
    pub step_memory_mib: u64,
    /// How many processes and threads one step may have.
    pub step_processes: u64,
    /// The weight of one step among those that want the processor at the same time.
    pub step_cpu_weight: u64,
    /// `host:port` of a registry that is asked first for images of docker.io, over plain HTTP.
    pub mirror: String,
    /// The private networks that RUN steps may reach, like `10.1.0.0/16`; of private ones they reach no other.
    pub steps_reach: Vec<String>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            image: PathBuf::new(),
            digest: String::new(),
            firecracker: "firecracker".into(),
            accel: "auto".into(),
            vcpus: 2,
            memory_mib: 2048,
            disk_gib: 20,
            swap_gib: 0,
            huge_pages: false,
            pin: false,
            daemons_memory_mib: 0,
            daemons_cpu_weight: 0,
            builds_memory_mib: 0,
            builds_cpu_weight: 0,
            builds_processes: 0,
            step_memory_mib: 0,
            step_processes: 4096,
            step_cpu_weight: 100,
            mirror: String::new(),
            steps_reach: Vec::new(),
        }
    }
}

/// Caps of a snapshot; a manifest that breaks one is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    pub max_entries: u64,
    pub max_bytes: u64,
    pub max_path: usize,
    pub max_depth: usize,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_bytes: 64 << 30, max_path: 4096, max_depth: 128 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where this role serves Prometheus metrics (`/metrics`); none when empty.
    pub metrics_listen: String,
    /// OTLP endpoint (gRPC); none when empty.
    pub otlp_endpoint: String,
    /// `text` or `json`.
    pub log_format: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { metrics_listen: String::new(), otlp_endpoint: String::new(), log_format: "text".into() }
    }
}
