//! What a guest cell is made of on this host: `[guest]` of the agent's settings, and the builder's settings in the cell's directory.
//!
//! ```text
//! <cell dir>/kiln.toml    the builder's settings, as for any cell; what differs in a guest is put in here. A clone has its main cell's
//! <cell dir>/cache.img    the cache disk
//! <cell dir>/swap.img     where the host gives swap
//! <cell dir>/vm/          config disk, sockets, logs, who runs the guest (in /run where the path would be too long for a socket)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use activities::vm::{Clock, DriverError, GuestStart, Guests, find_clones, main_of};
use anyhow::Context as _;
use tokio::sync::OnceCell;
use vm::{
    Accel, BuilderConfig, BuildkitdConfig, GuestConfig, GuestNetwork, HostNetwork, Image, ImageError, Images, Machine,
    Patience, Slices, StepLimits, Supervisor, Vmm, VmmKind, disk, firecracker, qemu,
};

use super::images::ImageDir;
use super::trust;
use crate::cell::{self, GuardOptions};
use crate::settings::{self, Settings};

/// Where things are in a guest, see `init/src`.
const FILES: &str = "/run/kiln";
const CACHE: &str = "/data/builder";
const BUILDKIT: &str = "/run/buildkit/buildkitd.sock";
const SEAL_KEY: &str = "seal.key";
const API_TOKEN: &str = "api.token";
/// Temporal's client configuration and the authorities of `tls.ca`, for a builder that has them.
const TEMPORAL: &str = "temporal.toml";
const TLS_CA: &str = "tls-ca.pem";
const DNS: u16 = 53;
/// In a clone's directory: its place among the host's cells, by which it gets its processors.
const PLACE: &str = "place";
/// What the builder's own end takes after its builds were given up.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long buildkitd may take to end: while the agent's supervisor waits for it, and otherwise.
const STOP_BOUND: Duration = Duration::from_secs(2);
const STOP: Duration = Duration::from_secs(20);
/// The longest path a socket can have, with its final NUL, and the longest name of a guest's sockets with its slash.
const SOCKET_PATH_MAX: usize = 108;
const SOCKET_NAME_MAX: usize = 16;
/// Each step has an address of the 126 that a cell has for them; some are for steps that BuildKit gives one of their own for a build.
const STEPS_MAX: u64 = 96;
const GIB: u64 = 1 << 30;

/// The guests of one host.
pub struct Microvms {
    settings: settings::Guest,
    vmm: VmmKind,
    /// The cells in the order of the settings; processors are shared out in it.
    cells: Vec<PathBuf>,
    supervisor: Option<Supervisor>,
    /// Where ordered images lie.
    named: ImageDir,
    images: Images,
    places: std::sync::Mutex<()>,
    /// The taps of guests that were started here.
    taps: std::sync::Mutex<HashMap<PathBuf, cell::Claim>>,
    /// Whether KVM runs guests here, once it was tried.
    kvm_runs: OnceCell<bool>,
}

impl Microvms {
    /// `pipe` is what ends bound guests, `hold` the file that their guards hold.
    ///
    /// # Errors
    /// When the pipe cannot be duplicated.
    pub fn new(settings: &Settings, kiln: &Path, pipe: OwnedFd, hold: Option<PathBuf>) -> io::Result<Self> {
        let supervisor = match hold {
            None => None,
            Some(_) => {
                let options = GuardOptions { hold, ..GuardOptions::default() };
                Some(Supervisor { command: guard(kiln, &options, &pipe)?, stdin: Arc::new(pipe) })
            }
        };
        Ok(Self {
            settings: settings.guest.clone(),
            vmm: if settings.host.driver == "firecracker" { VmmKind::Firecracker } else { VmmKind::Qemu },
            cells: settings.host.cells.clone(),
            supervisor,
            named: ImageDir::new(&settings.host.image_dir),
            images: Images::default(),
            places: std::sync::Mutex::default(),
            taps: std::sync::Mutex::default(),
            kvm_runs: OnceCell::new(),
        })
    }

    /// The directory of an ordered image, or of the settings' own when none is ordered, and the digest it must have.
    fn image(&self, ordered: Option<&str>) -> Result<(PathBuf, String), DriverError> {
        if let Some(ordered) = ordered {
            return self.named.find(ordered);
        }
        let (dir, digest) = (&self.settings.image, &self.settings.digest);
        let refused = |why: &str| Err(DriverError::Image { image: dir.display().to_string(), why: why.into() });
        if dir.as_os_str().is_empty() {
            return refused("guest.image is not set: build one with make guest");
        }
        if digest.is_empty() {
            return refused("guest.digest is not set: it says which image that directory must hold");
        }
        if !dir.is_absolute() {
            return refused("guest.image must be the absolute path of a guest image's directory");
        }
        Ok((dir.clone(), digest.clone()))
    }

    async fn verified_image(&self, ordered: Option<&str>) -> Result<Image, DriverError> {
        let (dir, wanted) = self.image(ordered)?;
        self.images.open(&dir, Some(&wanted)).await.map_err(|error| unusable(&dir, &error))
    }

    /// What runs the guests is there; Firecracker's program too, and it takes guests of this size.
    fn vmm_is_there(&self) -> Result<(), DriverError> {
        let own = &self.settings;
        let refused = |why: String| Err(DriverError::Machine { why });
        if self.vmm == VmmKind::Firecracker {
            let program = &own.firecracker;
            if !is_program(program) {
                return refused(format!(
                    "guest.firecracker is {} and there is no such program; get it from \
                     https://github.com/firecracker-microvm/firecracker/releases, Debian has no package",
                    program.display()
                ));
            }
            if let Some(why) = firecracker::unfit_size(own.vcpus, own.memory_mib, own.huge_pages) {
                return refused(why);
            }
        }
        let (why_kvm, else_what) = match (self.vmm, own.accel.as_str()) {
            (VmmKind::Firecracker, _) => ("Firecracker has KVM only", ""),
            (VmmKind::Qemu, "kvm") => ("guest.accel is kvm", "; auto or tcg would run guests by software"),
            (VmmKind::Qemu, _) => return Ok(()),
        };
        qemu::kvm_opens()
            .or_else(|error| refused(format!("{why_kvm} and {}{else_what}", activities::failure::with_source(&error))))
    }

    async fn vmm(&self, image: &Image) -> Vmm {
        if self.vmm == VmmKind::Firecracker {
            return Vmm::Firecracker(self.settings.firecracker.clone());
        }
        let kvm = match self.settings.accel.as_str() {
            "tcg" => false,
            "kvm" => true,
            _ => *self.kvm_runs.get_or_init(|| try_kvm(image)).await,
        };
        Vmm::Qemu(if kvm { Accel::Kvm } else { Accel::Tcg })
    }

    fn memory_fits(&self) -> Result<(), DriverError> {
        let wants = self.settings.memory_mib;
        let refused = |why: String| Err(DriverError::Machine { why });
        match (memory_mib("MemTotal", 1), self.settings.huge_pages.then(huge_pages_mib).flatten()) {
            (Some(has), _) if wants > has => refused(format!("guest.memory_mib is {wants} and the host has {has} MiB")),
            (_, Some(has)) if wants > has => refused(format!(
                "guest.memory_mib is {wants} and the host has {has} MiB in huge pages (vm.nr_hugepages); \
                 set more of them aside, or guest.huge_pages to false"
            )),
            _ => Ok(()),
        }
    }

    fn processors_are_there(&self, dir: &Path) -> Result<(), DriverError> {
        let has = std::thread::available_parallelism().map_or(usize::MAX, std::num::NonZero::get);
        let wants = self.processors(dir);
        match (wants.first(), wants.last()) {
            (Some(first), Some(last)) if *last >= has => Err(DriverError::Machine {
                why: format!(
                    "guest.pin gives the cell processors {first} to {last} and the host has {has}, 0 to {}; \
                     name fewer host.cells, or set guest.vcpus lower or guest.pin to false",
                    has - 1
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The processors of a cell where each has its own. A clone has those behind the cells of the settings that no other clone has.
    fn processors(&self, dir: &Path) -> Vec<usize> {
        let place =
            self.cells.iter().position(|cell| cell == dir).or_else(|| place_of(dir)).filter(|_| self.settings.pin);
        let each = self.settings.vcpus as usize;
        place.map(|place| (place * each..(place + 1) * each).collect()).unwrap_or_default()
    }

    /// Gives a clone its place, which it keeps for as long as it is there.
    fn take_place(&self, dir: &Path) -> io::Result<()> {
        if main_of(dir).is_none() || place_of(dir).is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let taken: Vec<_> = find_clones(&self.cells).iter().filter_map(|clone| place_of(clone)).collect();
        let free = (self.cells.len()..).find(|place| !taken.contains(place)).unwrap_or_default();
        std::fs::write(dir.join(PLACE), free.to_string())
    }

    fn taps(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, cell::Claim>> {
        self.taps.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn let_go(&self, dir: &Path) {
        self.taps().remove(dir);
    }

    fn machine(&self, dir: &Path, image: Image, vmm: Vmm, network: &cell::GuestNetwork) -> Machine {
        Machine {
            dir: self.run_dir(dir),
            image,
            cache_disk: self.cache_disk(dir),
            swap_disk: (self.settings.swap_gib > 0).then(|| dir.join("swap.img")),
            vcpus: self.settings.vcpus,
            memory_mib: self.settings.memory_mib,
            huge_pages: self.settings.huge_pages,
            pinned_to: self.processors(dir),
            network: HostNetwork::Tap { name: network.tap.clone() },
            vmm,
            supervisor: self.supervisor.clone(),
        }
    }

    /// What the guest is told. The builder's settings are the cell's, with the guest's own paths in them.
    fn config(&self, dir: &Path, builder: Settings, network: &cell::GuestNetwork) -> anyhow::Result<GuestConfig> {
        let id = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let own = &self.settings;
        let number = |number: u64| (number > 0).then_some(number);
        let mebibytes = |size: u64| number(size << 20);
        let plain = builder.registry.plain_http.iter().chain([&builder.registry.address]).cloned();
        let plain = plain.filter(|host| builder.registry.plain_http.contains(host) || is_loopback(host));
        Ok(GuestConfig {
            id,
            network: GuestNetwork {
                address: network.address,
                prefix: 24,
                gateway: network.gateway,
                dns: network.dns.clone(),
                forwarder: true,
                mtu: None,
                steps: Some(network.steps),
            },
            cache_is_copy: main_of(dir).is_some(),
            swap: own.swap_gib > 0,
            slices: Slices {
                daemons_cpu_weight: number(own.daemons_cpu_weight),
                daemons_memory_min: mebibytes(own.daemons_memory_mib),
                builds_cpu_weight: number(own.builds_cpu_weight),
                builds_memory_max: mebibytes(own.builds_memory_mib),
                builds_pids_max: number(own.builds_processes),
            },
            step: StepLimits {
                memory_max: mebibytes(own.step_memory_mib),
                pids_max: Some(own.step_processes),
                cpu_weight: Some(own.step_cpu_weight),
            },
            buildkitd: BuildkitdConfig {
                parallel_steps: Some(u64::from((own.vcpus * 2).max(builder.cell.slots)).min(STEPS_MAX)),
                mirror: Some(own.mirror.clone()).filter(|mirror| !mirror.is_empty()),
                plain_http: plain.collect(),
                stop: Some(if self.supervisor.is_some() { STOP_BOUND } else { STOP }),
                ..BuildkitdConfig::default()
            },
            builder: Some(builder_config(dir, builder, network)?),
        })
    }
}

impl Guests for Microvms {
    async fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        builder_settings(dir)?;
        // Before a guest that runs is stopped for it.
        self.verified_image(image).await?;
        self.memory_fits()?;
        self.processors_are_there(dir)?;
        self.vmm_is_there()
    }

    fn run_dir(&self, dir: &Path) -> PathBuf {
        let beside = dir.join("vm");
        if beside.as_os_str().len() + SOCKET_NAME_MAX < SOCKET_PATH_MAX {
            return beside;
        }
        let digest = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
        PathBuf::from(format!("/run/kiln-vm-{}", &digest[..16]))
    }

    fn cache_disk(&self, dir: &Path) -> PathBuf {
        dir.join("cache.img")
    }

    async fn prepare(&self, dir: &Path, image: Option<&str>) -> Result<GuestStart, DriverError> {
        self.check(dir, image).await?;
        self.take_place(dir).map_err(DriverError::Spawn)?;
        self.processors_are_there(dir)?;
        let image = self.verified_image(image).await?;
        let vmm = self.vmm(&image).await;
        let mut builder = builder_settings(dir)?;
        builder.guest.mirror.clone_from(&self.settings.mirror);
        if self.settings.swap_gib > 0 {
            disk::make_swap(&dir.join("swap.img"), self.settings.swap_gib * GIB).map_err(DriverError::Spawn)?;
        }
        self.let_go(dir);
        let (cell, services, reach) = (dir.to_owned(), builder.loopback_services(), self.settings.steps_reach.clone());
        let made = tokio::task::spawn_blocking(move || cell::GuestNetwork::set_up(&cell, &services, &reach)).await;
        let network = made.map_err(io::Error::other).map_err(DriverError::Spawn)?;
        let (network, claim) = network.map_err(|error| DriverError::Machine { why: format!("{error:#}") })?;
        self.taps().insert(dir.to_owned(), claim);
        let plan = |error: anyhow::Error| DriverError::Plan { path: dir.join("kiln.toml"), source: error.into() };
        Ok(GuestStart {
            config: self.config(dir, builder, &network).map_err(plan)?,
            machine: self.machine(dir, image, vmm, &network),
            disk_bytes: self.settings.disk_gib * GIB,
            patience: Patience::default(),
        })
    }

    async fn replug(&self, dir: &Path) -> Result<Vec<String>, DriverError> {
        on_network(dir, cell::GuestNetwork::mend).await
    }

    async fn guard(&self, dir: &Path) -> Result<Vec<String>, DriverError> {
        on_network(dir, cell::GuestNetwork::guard).await
    }

    fn clear(&self, dir: &Path) {
        // The lock may have to be waited for: the runtime's other tasks go on.
        tokio::task::block_in_place(|| cell::GuestNetwork::tear_down(dir));
        self.let_go(dir);
    }

    fn clock(&self, dir: &Path) -> Clock {
        let has_servers = builder_settings(dir).is_ok_and(|settings| !settings.clock.servers.is_empty());
        if has_servers { Clock::Servers } else { Clock::Hosts }
    }
}

/// Looks after a guest's network; what was mended.
async fn on_network(dir: &Path, mend: fn(&Path) -> anyhow::Result<Vec<String>>) -> Result<Vec<String>, DriverError> {
    let cell = dir.to_owned();
    let mended = tokio::task::spawn_blocking(move || mend(&cell)).await;
    let mended = mended.map_err(io::Error::other).map_err(DriverError::Spawn)?;
    mended.map_err(|error| DriverError::Machine { why: format!("{error:#}") })
}

async fn try_kvm(image: &Image) -> bool {
    let tried = qemu::kvm_runs(image).await;
    if let Err(error) = &tried {
        let why = activities::failure::with_source(error);
        tracing::warn!(why, "no KVM: guests run by software, some five times slower");
    }
    tried.is_ok()
}

/// The guard's command line, up to what it is to run.
fn guard(kiln: &Path, options: &GuardOptions, pipe: &OwnedFd) -> io::Result<Vec<OsString>> {
    let command = cell::guarded(kiln, options, Path::new(""), pipe)?;
    let mut words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).map(OsString::from).collect();
    // The program, which is added by whoever starts the guest.
    words.pop();
    Ok(words)
}

/// A clone's place among the host's cells; `None` when it has none yet.
fn place_of(dir: &Path) -> Option<usize> {
    std::fs::read_to_string(dir.join(PLACE)).ok()?.trim().parse().ok()
}

/// Whether a command of this name or path could be run.
fn is_program(program: &Path) -> bool {
    if program.components().count() > 1 {
        return runs(program);
    }
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| runs(&dir.join(program))))
}

fn runs(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The builder's settings of a cell; a clone's are its main cell's, under its own name.
fn builder_settings(dir: &Path) -> Result<Settings, DriverError> {
    if !dir.is_dir() {
        return Err(DriverError::NoDirectory { path: dir.to_owned() });
    }
    let Some(main) = main_of(dir) else { return own_settings(dir) };
    let mut settings = own_settings(&dir.with_file_name(main.as_str()))?;
    settings.cell.id = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    settings.cell.clone_of = main.to_string();
    Ok(settings)
}

fn own_settings(dir: &Path) -> Result<Settings, DriverError> {
    let path = dir.join("kiln.toml");
    let read = trust::read(&path).and_then(|_text| Ok(settings::of_file(&path)?));
    let settings = read.map_err(|error| DriverError::Plan { path: path.clone(), source: error.into() })?;
    let named = dir.file_name().is_some_and(|name| name == settings.cell.id.as_str());
    if named {
        return Ok(settings);
    }
    let error = anyhow::anyhow!("it describes the cell {:?}", settings.cell.id);
    Err(DriverError::Plan { path, source: error.into() })
}

fn builder_config(dir: &Path, mut settings: Settings, network: &cell::GuestNetwork) -> anyhow::Result<BuilderConfig> {
    let key_file = std::mem::replace(&mut settings.seal.identity_file, Path::new(FILES).join(SEAL_KEY));
    let key = std::fs::read(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
    let mut files = BTreeMap::from([(SEAL_KEY.to_owned(), key)]);
    // The guest has none of this machine's variables, profiles and certificates.
    let temporal = settings.temporal.client_config().bundled()?;
    settings.temporal.client_config = temporal.is_some();
    settings.temporal.profile.clear();
    settings.temporal.config_file = PathBuf::new();
    if let Some(temporal) = temporal {
        settings.temporal.config_file = Path::new(FILES).join(TEMPORAL);
        files.insert(TEMPORAL.into(), temporal);
    }
    if !settings.tls.ca.as_os_str().is_empty() {
        let ca = std::mem::replace(&mut settings.tls.ca, Path::new(FILES).join(TLS_CA));
        files.insert(TLS_CA.into(), std::fs::read(&ca).with_context(|| format!("cannot read {}", ca.display()))?);
    }
    settings.cell.dir = CACHE.into();
    if settings.registry.mirror.is_empty() {
        settings.registry.mirror.clone_from(&settings.guest.mirror);
    }
    settings.cell.buildkit_socket = BUILDKIT.into();
    settings.cell.services_at = network.gateway.to_string();
    // Steps and daemons ask the guest itself, and it asks whom the host asks, unless somebody has chosen.
    settings.dns.listen = SocketAddr::new(network.address.into(), DNS).to_string();
    if settings.dns.upstreams.is_empty() {
        settings.dns.upstreams = network.dns.iter().map(ToString::to_string).collect();
    }
    settings.clock.adjust = true;
    // Only the host gets there: its agent passes them on (`scrape`).
    settings.telemetry.metrics_listen = SocketAddr::new(network.address.into(), cell::METRICS).to_string();
    let token = api_token(dir, &mut settings)?;
    let drain = Duration::from_millis(settings.cell.drain_grace_ms) + FAREWELL;
    // The guest counts whole seconds.
    let drain = Duration::from_secs(drain.as_secs() + u64::from(drain.subsec_nanos() > 0));
    let mut config = BuilderConfig::new(toml::to_string(&settings)?, drain);
    config.files.extend(files);
    config.files.extend(token.map(|token| (API_TOKEN.to_owned(), token)));
    Ok(config)
}

/// The cell's own credential, which the guest finds in a file; `None` where its settings hold a token themselves.
fn api_token(dir: &Path, settings: &mut Settings) -> anyhow::Result<Option<Vec<u8>>> {
    let own = dir.join(super::credentials::FILE);
    let named = Some(settings.api.token_file.clone()).filter(|file| !file.as_os_str().is_empty());
    let Some(file) = Some(own).filter(|file| file.is_file()).or(named) else { return Ok(None) };
    let token = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    settings.api.token = settings::Secret::default();
    settings.api.token_file = Path::new(FILES).join(API_TOKEN);
    Ok(Some(token))
}

fn unusable(dir: &Path, error: &ImageError) -> DriverError {
    DriverError::Image { image: dir.display().to_string(), why: activities::failure::with_source(error) }
}

fn is_loopback(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

/// A number of the kernel's about memory, times `kib`, in MiB.
fn memory_mib(name: &str, kib: u64) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some((line.split_whitespace().next()?.parse::<u64>().ok()? * kib) >> 10)
}

/// What is set aside in pages of 2 MiB, whoever has them now.
fn huge_pages_mib() -> Option<u64> {
    memory_mib("HugePages_Total", 2 << 10)
}

#[cfg(test)]
mod tests;
