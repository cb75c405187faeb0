//! What a cell is told by its host, typed. Fields that are missing or make no sense are named; unknown ones are reported and ignored,
//! so that a newer host can start an older image.

mod disk;
mod fields;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use disk::{DiskError, Document};
use fields::Fields;

/// The file from which the builder reads its settings; on the disk wherever a builder is asked for.
pub const BUILDER_SETTINGS: &str = "kiln.toml";

#[derive(Debug)]
pub enum SettingsError {
    Disk(DiskError),
    Missing(&'static str),
    /// A field's name, its value, what it must be.
    Invalid(&'static str, String, &'static str),
    MissingFile(&'static str),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Missing(name) => write!(f, "field '{name}' is missing"),
            Self::Invalid(name, value, rule) => write!(f, "field '{name}' = '{value}' must be {rule}"),
            Self::MissingFile(name) => write!(f, "file '{name}' is missing"),
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct Settings {
    pub id: String,
    pub network: Network,
    pub cache_device: String,
    /// The disk was copied from another cell's.
    pub cache_is_copy: bool,
    pub swap_device: Option<String>,
    pub slices: Slices,
    pub step: StepLimits,
    pub buildkitd: Buildkitd,
    /// How long the builder may drain; none when the cell has no builder.
    pub builder_drain: Option<Duration>,
    /// How long buildkitd may take to end.
    pub stop: Duration,
    pub unknown: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, PartialEq)]
pub struct Network {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// Somebody in the guest answers for names, at the guest's address: steps and daemons ask there and not the servers of `dns`.
    pub forwarder: bool,
    pub mtu: Option<u32>,
    /// None: steps share the guest's network.
    pub steps: Option<StepNetwork>,
}

impl Network {
    /// Whom steps and daemons ask for names.
    pub fn name_servers(&self) -> Vec<Ipv4Addr> {
        if self.forwarder { vec![self.address] } else { self.dns.clone() }
    }
}

/// The addresses that steps get: a part of the guest's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepNetwork {
    pub first: Ipv4Addr,
    pub prefix: u8,
}

impl StepNetwork {
    /// All but the first and the last one.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.first.to_bits();
        let last = first | u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        (first + 1..last).map(Ipv4Addr::from_bits)
    }
}

/// The two halves of the machine. Weights are cgroup v2's (1 to 10000), sizes bytes.
#[derive(Debug, PartialEq)]
pub struct Slices {
    pub daemons_weight: u64,
    /// Memory that the daemons keep whatever the steps do.
    pub daemons_floor: u64,
    /// None: steps get what the daemons leave, the moment they leave it.
    pub builds_weight: Option<u64>,
    /// The most all steps together may take; by default what the daemons' floor leaves.
    pub builds_memory: Option<u64>,
    pub builds_pids: u64,
}

/// Limits of one RUN step, set by the runc wrapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLimits {
    pub memory: Option<u64>,
    pub pids: u64,
    pub weight: u64,
    pub oom_score: i64,
}

#[derive(Debug, PartialEq)]
pub struct Buildkitd {
    pub parallel_steps: u64,
    /// Bytes of the cache; by default nine tenths of the disk.
    pub cache_max: Option<u64>,
    /// Where it listens beside its socket, without TLS: for tests and for a network that only the host is on.
    pub listen: Option<String>,
    /// `host:port` of a registry asked first for docker.io's images, over plain HTTP.
    pub mirror: Option<String>,
    /// `host:port` of registries spoken to over plain HTTP.
    pub plain_http: Vec<String>,
}

impl Settings {
    pub fn read(device: &str) -> Result<Self, SettingsError> {
        Self::of(Document::read(device).map_err(SettingsError::Disk)?)
    }

    fn of(document: Document) -> Result<Self, SettingsError> {
        let mut fields = Fields::new(document.fields);
        let builder_drain = match fields.required("builder")?.as_str() {
            "on" => Some(fields.seconds("builder.drain_s", 30)?),
            "off" => None,
            other => return Err(SettingsError::Invalid("builder", other.to_owned(), "on or off")),
        };
        let settings = Self {
            id: fields.checked("id", "1 to 63 of a-z, 0-9 and -", is_id)?,
            network: network(&mut fields)?,
            cache_device: fields.checked("cache.device", "a path below /dev", is_device)?,
            cache_is_copy: fields.switch("cache.copy")?,
            swap_device: fields.optional("swap.device"),
            slices: slices(&mut fields)?,
            step: step(&mut fields)?,
            buildkitd: buildkitd(&mut fields)?,
            builder_drain,
            stop: fields.seconds("buildkitd.stop_s", 20)?,
            unknown: fields.rest(),
            files: document.files,
        };
        if settings.builder_drain.is_some() && !settings.files.contains_key(BUILDER_SETTINGS) {
            return Err(SettingsError::MissingFile(BUILDER_SETTINGS));
        }
        Ok(settings)
    }

    /// Writes the disk's files into a directory in memory, for root only.
    pub fn write_files(&self, dir: &str) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for (name, content) in &self.files {
            let path = Path::new(dir).join(name);
            fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)?;
        }
        Ok(())
    }
}

fn network(fields: &mut Fields) -> Result<Network, SettingsError> {
    let text = fields.required("net.address")?;
    let (address, prefix) = with_prefix("net.address", &text)?;
    let steps = fields.optional("net.steps").map(|text| with_prefix("net.steps", &text)).transpose()?;
    Ok(Network {
        address,
        prefix,
        steps: steps.map(|(first, prefix)| StepNetwork { first, prefix }),
        gateway: fields.parsed("net.gateway", "an IPv4 address")?,
        dns: fields.list("net.dns", "IPv4 addresses, separated by commas")?,
        forwarder: fields.switch("net.forwarder")?,
        mtu: fields.number("net.mtu")?.and_then(|mtu| u32::try_from(mtu).ok()),
    })
}

fn with_prefix(name: &'static str, text: &str) -> Result<(Ipv4Addr, u8), SettingsError> {
    let split = text.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    let rule = "an IPv4 address with its prefix, like 10.0.2.15/24";
    split
        .filter(|(_, prefix)| (1..=32).contains(prefix))
        .ok_or_else(|| SettingsError::Invalid(name, text.to_owned(), rule))
}

fn slices(fields: &mut Fields) -> Result<Slices, SettingsError> {
    Ok(Slices {
        daemons_weight: fields.number("daemons.cpu_weight")?.unwrap_or(1000),
        daemons_floor: fields.number("daemons.memory_min")?.unwrap_or(256 << 20),
        builds_weight: fields.number("builds.cpu_weight")?,
        builds_memory: fields.number("builds.memory_max")?,
        builds_pids: fields.number("builds.pids_max")?.unwrap_or(16384),
    })
}

fn step(fields: &mut Fields) -> Result<StepLimits, SettingsError> {
    Ok(StepLimits {
        memory: fields.number("step.memory_max")?,
        pids: fields.number("step.pids_max")?.unwrap_or(4096),
        weight: fields.number("step.cpu_weight")?.unwrap_or(100),
        oom_score: 500,
    })
}

fn buildkitd(fields: &mut Fields) -> Result<Buildkitd, SettingsError> {
    Ok(Buildkitd {
        parallel_steps: fields.number("buildkitd.parallel_steps")?.unwrap_or(4),
        cache_max: fields.number("buildkitd.cache_max")?,
        listen: fields.optional("buildkitd.listen"),
        mirror: fields.optional("buildkitd.mirror"),
        plain_http: fields.optional("buildkitd.plain_http").map(|hosts| split(&hosts)).unwrap_or_default(),
    })
}

fn split(list: &str) -> Vec<String> {
    list.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn is_id(id: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&id.len()) && id.bytes().all(letter) && !id.starts_with('-')
}

fn is_device(path: &str) -> bool {
    path.strip_prefix("/dev/").is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also what the host's writer is tested against.
    const EXAMPLE: &[u8] = include_bytes!("example.disk");

    fn document() -> Document {
        let end = EXAMPLE.iter().position(|byte| *byte == b'\n').unwrap();
        Document::parse(&EXAMPLE[end + 1..]).unwrap()
    }

    #[test]
    fn the_example_is_understood() {
        let settings = Settings::of(document()).unwrap();
        assert_eq!(settings.id, "cell-1");
        assert_eq!((settings.network.address, settings.network.prefix), ("10.0.2.15".parse().unwrap(), 24));
        let steps = StepNetwork { first: Ipv4Addr::new(10, 0, 2, 128), prefix: 25 };
        assert_eq!(settings.network.steps, Some(steps));
        assert_eq!(settings.network.dns, ["10.0.2.3".parse::<Ipv4Addr>().unwrap()]);
        assert_eq!(settings.network.name_servers(), [settings.network.address]);
        assert_eq!((settings.cache_device.as_str(), settings.cache_is_copy), ("/dev/vdc", true));
        assert_eq!(settings.builder_drain, Some(Duration::from_secs(30)));
        assert_eq!(settings.step.memory, Some(1 << 30));
        assert_eq!(settings.files["kiln.toml"], b"[cell]\nid = \"cell-1\"\n");
        assert!(settings.unknown.is_empty(), "{:?}", settings.unknown);
    }

    #[test]
    fn steps_get_what_lies_between_the_ends() {
        let addresses: Vec<_> = StepNetwork { first: Ipv4Addr::new(10, 0, 2, 248), prefix: 29 }.addresses().collect();
        assert_eq!((addresses.len(), addresses[0]), (6, Ipv4Addr::new(10, 0, 2, 249)));
        assert_eq!(addresses[5], Ipv4Addr::new(10, 0, 2, 254));
    }

    #[test]
    fn a_missing_field_is_named() {
        for name in ["id", "net.address", "net.gateway", "net.dns", "cache.device", "builder"] {
            let mut document = document();
            document.fields.remove(name).unwrap();
            assert_eq!(Settings::of(document).unwrap_err().to_string(), format!("field '{name}' is missing"));
        }
        let mut without = document();
        without.files.clear();
        assert_eq!(Settings::of(without).unwrap_err().to_string(), "file 'kiln.toml' is missing");
    }

    #[test]
    fn a_bad_field_is_named_with_its_value() {
        let bad = [
            ("id", "Cell 1"),
            ("net.address", "10.0.2.15"),
            ("net.address", "10.0.2.15/40"),
            ("net.gateway", "somewhere"),
            ("net.steps", "10.0.2.128"),
            ("net.dns", ""),
            ("net.forwarder", "10.0.2.15"),
            ("cache.device", "/etc/passwd"),
            ("step.memory_max", "1G"),
            ("builder", "yes"),
            ("cache.copy", "yes"),
        ];
        for (name, value) in bad {
            let mut document = document();
            document.fields.insert(name.into(), value.into());
            let said = Settings::of(document).unwrap_err().to_string();
            assert!(said.starts_with(&format!("field '{name}' = '{value}' must be ")), "{said}");
        }
    }

    #[test]
    fn unknown_fields_are_kept_for_the_console() {
        let mut document = document();
        document.fields.insert("from.the.future".into(), "1".into());
        assert_eq!(Settings::of(document).unwrap().unknown, ["from.the.future"]);
    }
}
