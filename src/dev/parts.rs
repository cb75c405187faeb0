//! The parts of a development installation: their settings files and their command lines.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::statvfs::statvfs;
use serde_json::json;
use workflows::contract::{CellId, HostId, cell_task_queue, host_task_queue};

use super::DevArgs;
use super::children::{Spec, Turn};
use super::data::{CHILDREN_LOCK, DataDir};
use super::files;
use super::guests;
use super::keys::{Keys, SealKeys};
use super::ports::Ports;
use super::temporal;
use super::tools::Tools;
use crate::cell;
use crate::host;
use crate::settings::{self, Resolved, Secret, Settings};

/// The one host.
pub const HOST: &str = "dev";
/// How long the builder may drain at the end, and after it buildkitd; with what the agent adds it fits into [`Turn::Cells`].
const DRAIN_MS: u64 = 2000;
const STOP_MS: u64 = 1500;
/// What the builder's own end takes after its builds were given up: goodbye to Temporal and to the api.
const FAREWELL_MS: u64 = 1000;
/// Where the seeder puts base images, see [`super::seed`].
const SEEDED: &str = "library/*";
/// The longest path a Unix socket can have, with its final NUL.
const SOCKET_PATH_MAX: usize = 108;

/// Everything that is settled before the first part starts.
pub struct Installation {
    pub data: PathBuf,
    pub ports: Ports,
    /// What all roles share; written to `<data>/kiln.toml`.
    pub settings: Settings,
    pub cells: Vec<CellParts>,
    /// Where cells are guests: what they are made of.
    pub guests: Option<settings::Guest>,
    tools: Tools,
    keys: Keys,
}

/// One cell: `<data>/cells/<id>/`.
pub struct CellParts {
    pub id: CellId,
    pub dir: PathBuf,
    /// Its buildkitd's, where the cell is no guest.
    pub socket: PathBuf,
}

impl CellParts {
    pub fn task_queue(&self) -> String {
        cell_task_queue(&self.id)
    }

    /// The network the cell's steps got at its last start.
    pub fn network(&self) -> Option<cell::Network> {
        cell::Network::recorded(&self.dir.join(cell::NETWORK_FILE))
    }
}

impl Installation {
    /// Chooses ports, makes keys where there are none and writes the settings files.
    ///
    /// # Errors
    /// When a port asked for is taken or a file cannot be read or written.
    pub fn prepare(data: &DataDir, args: &DevArgs, tools: Tools, resolved: &Resolved) -> anyhow::Result<Self> {
        let data = data.path().to_owned();
        let ports = Ports::choose(&data, &args.ports, args.cells)?;
        let keys = Keys::of(&data)?;
        let settings = shared_settings(&data, &ports, &keys, &SealKeys::of(&data)?);
        let cells = (1..=args.cells).map(|n| cell_parts(&data, n)).collect::<anyhow::Result<_>>()?;
        let guests = args.guests.settings(&settings.registry.address)?;
        let installation = Self { data, ports, settings, cells, guests, tools, keys };
        installation.write(args, resolved)?;
        Ok(installation)
    }

    fn write(&self, args: &DevArgs, resolved: &Resolved) -> anyhow::Result<()> {
        let write_toml = |file: &Path, settings: &Settings| write_toml(file, &resolved.flags_over(settings)?);
        let mut control = without_token(&self.settings);
        control.telemetry.metrics_listen = loopback(self.ports.control_metrics);
        write_toml(&self.data.join("kiln.toml"), &self.settings)?;
        write_toml(&self.data.join("control.toml"), &control)?;
        files::write_json(&self.data.join("registry.yml"), &self.registry_config())?;
        write_toml(&self.data.join("host.toml"), &self.host_settings())?;
        for (cell, metrics) in self.cells.iter().zip(&self.ports.cell_metrics) {
            write_toml(
                &cell.dir.join("kiln.toml"),
                &self.cell_settings(cell, (args.slots, &args.guests.steps_reach), *metrics),
            )?;
            files::write_json(&cell.dir.join("cell.json"), &self.cell_plan(cell, args)?)?;
        }
        Ok(())
    }

    /// Cells are bound to this `kiln dev`: they end with it, whatever becomes of the agent between them.
    fn host_settings(&self) -> Settings {
        let mut settings = without_token(&self.settings);
        settings.api.token_file = self.host_token();
        settings.telemetry.metrics_listen = loopback(self.ports.host_metrics);
        settings.host = settings::Host {
            id: HOST.into(),
            cells: self.cells.iter().map(|cell| cell.dir.clone()).collect(),
            image_dir: self.data.join("images"),
            bound: self.data.join(CHILDREN_LOCK),
            ..settings::Host::default()
        };
        if let Some(guests) = &self.guests {
            settings.host.driver = "qemu".into();
            settings.guest = guests.clone();
        }
        settings
    }

    /// Where the host's agent has its credential.
    pub fn host_token(&self) -> PathBuf {
        self.data.join("host.token")
    }

    pub fn host_queue(&self) -> anyhow::Result<String> {
        Ok(host_task_queue(&HOST.parse::<HostId>()?))
    }

    fn cell_settings(&self, cell: &CellParts, (slots, steps_reach): (u32, &[String]), metrics: u16) -> Settings {
        let mut settings = without_token(&self.settings);
        // The host's agent puts it there before each start of the cell.
        settings.api.token_file = cell.dir.join(host::CREDENTIAL);
        settings.telemetry.metrics_listen = loopback(metrics);
        settings.cell = settings::Cell {
            id: cell.id.to_string(),
            host: HOST.into(),
            drain_grace_ms: DRAIN_MS - FAREWELL_MS,
            slots,
            buildkit_socket: cell.socket.clone(),
            dir: cell.dir.join("builder"),
            steps_reach: steps_reach.to_vec(),
            ..settings::Cell::default()
        };
        if self.guests.is_some() {
            settings.cell.clocks = guests::clocks();
        }
        settings
    }

    fn cell_plan(&self, cell: &CellParts, args: &DevArgs) -> anyhow::Result<cell::Plan> {
        let log = |process: &str| self.data.join(format!("logs/{}{process}.log", cell.id));
        let toml = cell.dir.join("kiln.toml");
        let builder = [self.tools.kiln.as_path(), Path::new("builder"), Path::new("--config"), &toml];
        let parallelism = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(cell::Plan {
            id: cell.id.to_string(),
            dir: cell.dir.clone(),
            socket: cell.socket.clone(),
            cgroup_parent: String::new(),
            tools: cell::Tools { buildkitd: self.tools.buildkitd.clone(), runc: self.tools.runc.clone() },
            builder: builder.into_iter().map(text).collect::<anyhow::Result<_>>()?,
            logs: cell::Logs { cell: log(""), buildkitd: log("-buildkitd"), builder: log("-builder") },
            mirror: Some(self.settings.registry.address.clone()),
            plain_http: self.settings.registry.plain_http.clone(),
            cache: share_of_disk(&self.data, args.cells)?,
            limits: cell::Limits {
                parallel_steps: u32::try_from(parallelism.max(2) * 2)?.max(args.slots),
                drain_ms: DRAIN_MS,
                stop_ms: STOP_MS,
            },
            steps: cell::StepShare::default(),
            shares_network: true,
        })
    }

    /// The registry's configuration; it is YAML, of which JSON is a part.
    fn registry_config(&self) -> serde_json::Value {
        json!({
            "version": "0.1",
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": {
                "filesystem": { "rootdirectory": self.data.join("registry") },
                "delete": { "enabled": true },
                "cache": { "blobdescriptor": "inmemory" },
            },
            "http": { "addr": self.settings.registry.address, "secret": self.keys.registry_secret },
        })
    }

    pub fn temporal(&self) -> Spec {
        let args = temporal::arguments(&self.data, &self.ports);
        Spec {
            name: "temporal".into(),
            program: self.tools.temporal.clone(),
            args,
            supervises: false,
            turn: Turn::Services,
        }
    }

    pub fn registry(&self) -> Spec {
        Spec {
            name: "registry".into(),
            program: self.tools.registry.clone(),
            args: vec!["serve".into(), self.data.join("registry.yml").into()],
            supervises: false,
            turn: Turn::Services,
        }
    }

    pub fn api(&self) -> Spec {
        self.role("api", &self.data.join("kiln.toml"))
    }

    pub fn control(&self) -> Spec {
        self.role("control", &self.data.join("control.toml"))
    }

    fn role(&self, role: &str, config: &Path) -> Spec {
        Spec {
            name: role.into(),
            program: self.tools.kiln.clone(),
            args: config_args(role, config),
            supervises: false,
            turn: Turn::Roles,
        }
    }

    /// The agent that starts and keeps the cells.
    pub fn host(&self) -> Spec {
        Spec { supervises: true, turn: Turn::Cells, ..self.role("host", &self.data.join("host.toml")) }
    }
}

fn config_args(role: &str, config: &Path) -> Vec<OsString> {
    vec![role.into(), "--config".into(), config.into()]
}

fn shared_settings(data: &Path, ports: &Ports, keys: &Keys, seal: &SealKeys) -> Settings {
    let mut settings = Settings::default();
    settings.temporal.address = loopback(ports.temporal);
    // The dev server has no TLS, whatever this user's other servers have.
    settings.temporal.client_config = false;
    settings.api = settings::Api {
        listen: loopback(ports.api),
        url: format!("http://{}", loopback(ports.api)),
        token: keys.api_token.clone(),
        token_file: PathBuf::new(),
        create_projects: true,
        ..settings::Api::default()
    };
    settings.s3 = settings::S3 {
        endpoint: format!("http://{}", loopback(ports.s3)),
        region: "us-east-1".into(),
        bucket: "kiln".into(),
        access_key: keys.s3_access_key.clone(),
        secret_key: keys.s3_secret_key.clone(),
    };
    settings.registry = settings::Registry {
        address: loopback(ports.registry),
        plain_http: Vec::new(),
        mirror: loopback(ports.registry),
        shared: vec![SEEDED.into()],
        // This machine's own: whoever runs `kiln dev` may push there as well.
        open: ["127.0.0.1:*", "localhost:*", "[::1]:*"].map(str::to_owned).into(),
    };
    settings.egress.loopback_registries = true;
    settings.store.url = Secret::new(format!("sqlite://{}", data.join("kiln.db").display()));
    settings.seal = settings::Seal { recipient: seal.recipient.clone(), identity_file: seal.identity_file.clone() };
    settings.logs.listen = loopback(ports.logs);
    settings.logs.address = loopback(ports.logs);
    settings.logs.dir = data.join("build-logs");
    settings
}

/// The operator's token is for the api and for clients.
fn without_token(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.api.token = Secret::default();
    settings
}

fn cell_parts(data: &Path, n: u32) -> anyhow::Result<CellParts> {
    let id: CellId = format!("dev-{n}").parse()?;
    let dir = data.join("cells").join(id.as_str());
    std::fs::create_dir_all(dir.join("builder"))?;
    Ok(CellParts { socket: socket(&dir), id, dir })
}

/// In the cell's directory, or where that is too deep for a socket's path, in /run under a name made of it.
fn socket(dir: &Path) -> PathBuf {
    let socket = dir.join("buildkitd.sock");
    if socket.as_os_str().len() < SOCKET_PATH_MAX {
        return socket;
    }
    let digest = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
    PathBuf::from(format!("/run/kiln-buildkitd-{}.sock", &digest[..16]))
}

/// Half of the disk for all cells' caches; a tenth stays free whatever fills it.
fn share_of_disk(data: &Path, cells: u32) -> anyhow::Result<cell::Cache> {
    let disk = statvfs(data).with_context(|| format!("cannot measure the disk of {}", data.display()))?;
    let bytes = disk.blocks() * disk.fragment_size();
    Ok(cell::Cache { max_bytes: bytes / 2 / u64::from(cells), min_free_bytes: bytes / 10 })
}

fn write_toml(file: &Path, settings: &Settings) -> anyhow::Result<()> {
    let text = toml::to_string(settings)?;
    files::write(file, text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_directory_gets_its_socket_elsewhere() {
        let shallow = Path::new("/data/cells/dev-1");
        assert_eq!(socket(shallow), shallow.join("buildkitd.sock"));
        let deep = PathBuf::from(format!("/{}/cells/dev-1", "x".repeat(90)));
        assert!(socket(&deep).starts_with("/run"));
    }
}
