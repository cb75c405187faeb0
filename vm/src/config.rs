//! What a guest is told: the document on its config disk. The format's reader, and its description, are in the crate `kiln-init`
//! (`init/src/settings/disk.rs`); both sides are tested against the same example.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// Disks have whole sectors.
const SECTOR: usize = 512;
/// The file from which a guest's builder reads its settings.
const BUILDER_SETTINGS: &str = "kiln.toml";

#[derive(Debug, Clone)]
pub struct GuestConfig {
    pub id: String,
    pub network: GuestNetwork,
    /// The cache disk was copied from another cell's: the guest makes it its own.
    pub cache_is_copy: bool,
    /// Whether there is a swap disk behind the cache disk.
    pub swap: bool,
    pub slices: Slices,
    pub step: StepLimits,
    pub buildkitd: BuildkitdConfig,
    /// None for a cell that only runs buildkitd.
    pub builder: Option<BuilderConfig>,
}

#[derive(Debug, Clone)]
pub struct GuestNetwork {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// The guest's builder answers for names at the guest's address: steps and daemons ask there, and `dns` is for a guest without one.
    pub forwarder: bool,
    pub mtu: Option<u16>,
    /// The part of the guest's network whose addresses steps get, its first address and its prefix; without one they share the guest's own.
    pub steps: Option<(Ipv4Addr, u8)>,
}

/// The two halves of a guest. What is not said has the guest's own default.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    pub daemons_cpu_weight: Option<u64>,
    /// Bytes the daemons keep, whatever steps do.
    pub daemons_memory_min: Option<u64>,
    pub builds_cpu_weight: Option<u64>,
    /// Bytes all steps together may take; by default what the daemons' floor leaves.
    pub builds_memory_max: Option<u64>,
    pub builds_pids_max: Option<u64>,
}

/// Limits of one RUN step.
#[derive(Debug, Clone, Default)]
pub struct StepLimits {
    pub memory_max: Option<u64>,
    pub pids_max: Option<u64>,
    pub cpu_weight: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct BuildkitdConfig {
    pub parallel_steps: Option<u64>,
    /// Bytes of the cache; by default nine tenths of the disk.
    pub cache_max: Option<u64>,
    /// Where it listens beside its socket (`tcp://…`), without TLS: for tests, and networks that only the host is on.
    pub listen: Option<String>,
    /// `host:port` of a registry asked first for docker.io's images, over plain HTTP.
    pub mirror: Option<String>,
    pub plain_http: Vec<String>,
    pub stop: Option<Duration>,
}

#[derive(Clone)]
pub struct BuilderConfig {
    pub drain: Duration,
    /// `kiln.toml` and what it refers to (below `/run/kiln` in the guest). Keys and tokens are among it.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for BuilderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.files.keys().collect();
        f.debug_struct("BuilderConfig").field("drain", &self.drain).field("files", &names).finish()
    }
}

impl BuilderConfig {
    /// A builder with these settings and no other files.
    pub fn new(kiln_toml: impl Into<Vec<u8>>, drain: Duration) -> Self {
        Self { drain, files: BTreeMap::from([(BUILDER_SETTINGS.to_owned(), kiln_toml.into())]) }
    }
}

impl GuestConfig {
    /// Writes the disk, readable by its owner only.
    ///
    /// # Errors
    /// When a value has a line break (the format could not say it), or the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut disk = self.document()?;
        disk.resize(disk.len().next_multiple_of(SECTOR), 0);
        // A file that is there may be readable by others.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(&disk)
    }

    fn document(&self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        for (name, value) in self.fields() {
            if value.contains('\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} has a line break")));
            }
            body.extend_from_slice(format!("{name}={value}\n").as_bytes());
        }
        for (name, content) in self.builder.iter().flat_map(|builder| &builder.files) {
            body.extend_from_slice(format!("file {name} {}\n", content.len()).as_bytes());
            body.extend_from_slice(content);
            body.push(b'\n');
        }
        let mut document = format!("kiln-cell 1 {}\n", body.len()).into_bytes();
        document.append(&mut body);
        Ok(document)
    }

    /// Disks have places: root image, config, cache, swap.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let (network, slices, step, buildkitd) = (&self.network, &self.slices, &self.step, &self.buildkitd);
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let seconds = |span: Duration| span.as_secs().to_string();
        let fields = [
            ("id", Some(self.id.clone())),
            ("net.address", Some(format!("{}/{}", network.address, network.prefix))),
            ("net.gateway", Some(network.gateway.to_string())),
            ("net.dns", Some(network.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))),
            ("net.forwarder", network.forwarder.then(|| "on".to_owned())),
            ("net.mtu", network.mtu.map(|mtu| mtu.to_string())),
            ("net.steps", network.steps.map(|(first, prefix)| format!("{first}/{prefix}"))),
            ("cache.device", Some("/dev/vdc".to_owned())),
            ("cache.copy", self.cache_is_copy.then(|| "on".to_owned())),
            ("swap.device", self.swap.then(|| "/dev/vdd".to_owned())),
            ("daemons.cpu_weight", number(slices.daemons_cpu_weight)),
            ("daemons.memory_min", number(slices.daemons_memory_min)),
            ("builds.cpu_weight", number(slices.builds_cpu_weight)),
            ("builds.memory_max", number(slices.builds_memory_max)),
            ("builds.pids_max", number(slices.builds_pids_max)),
            ("step.memory_max", number(step.memory_max)),
            ("step.pids_max", number(step.pids_max)),
            ("step.cpu_weight", number(step.cpu_weight)),
            ("buildkitd.parallel_steps", number(buildkitd.parallel_steps)),
            ("buildkitd.cache_max", number(buildkitd.cache_max)),
            ("buildkitd.listen", buildkitd.listen.clone()),
            ("buildkitd.mirror", buildkitd.mirror.clone()),
            ("buildkitd.plain_http", Some(buildkitd.plain_http.join(",")).filter(|hosts| !hosts.is_empty())),
            ("buildkitd.stop_s", buildkitd.stop.map(seconds)),
            ("builder", Some(if self.builder.is_some() { "on" } else { "off" }.to_owned())),
            ("builder.drain_s", self.builder.as_ref().map(|builder| seconds(builder.drain))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also what the guest's reader is tested against.
    const EXAMPLE: &[u8] = include_bytes!("../../init/src/settings/example.disk");

    fn example() -> GuestConfig {
        GuestConfig {
            id: "cell-1".into(),
            network: GuestNetwork {
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: vec![Ipv4Addr::new(10, 0, 2, 3)],
                forwarder: true,
                mtu: Some(1400),
                steps: Some((Ipv4Addr::new(10, 0, 2, 128), 25)),
            },
            cache_is_copy: true,
            swap: true,
            slices: Slices {
                daemons_cpu_weight: Some(1000),
                daemons_memory_min: Some(256 << 20),
                builds_cpu_weight: Some(100),
                builds_memory_max: Some(1 << 30),
                builds_pids_max: Some(16384),
            },
            step: StepLimits { memory_max: Some(1 << 30), pids_max: Some(4096), cpu_weight: Some(100) },
            buildkitd: BuildkitdConfig {
                parallel_steps: Some(4),
                cache_max: Some(40_000_000_000),
                listen: Some("tcp://0.0.0.0:1234".into()),
                mirror: Some("10.0.2.2:5000".into()),
                plain_http: vec!["10.0.2.2:5000".into()],
                stop: Some(Duration::from_secs(20)),
            },
            builder: Some(BuilderConfig::new("[cell]\nid = \"cell-1\"\n", Duration::from_secs(30))),
        }
    }

    #[test]
    fn the_example_is_written_as_the_guest_reads_it() {
        let document = example().document().unwrap();
        assert_eq!(String::from_utf8_lossy(&document), String::from_utf8_lossy(EXAMPLE));
    }

    #[test]
    fn a_value_with_a_line_break_is_refused() {
        let mut config = example();
        config.buildkitd.mirror = Some("a\nid=other".into());
        assert_eq!(config.document().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_disk_has_whole_sectors_and_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.img");
        std::fs::write(&path, "former").unwrap();
        example().write(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len() % 512, metadata.permissions().mode() & 0o777), (0, 0o600));
    }

    #[test]
    fn what_the_builder_is_given_is_not_shown() {
        let shown = format!("{:?}", example());
        assert!(shown.contains("kiln.toml") && !shown.contains("[cell]"), "{shown}");
    }
}
