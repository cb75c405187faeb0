//! What a cell is made of: `<cell dir>/cell.json`, written by whoever sets the host up. The host's agent puts the ordered image into it
//! and writes the result beside it for the cell's PID 1 ([`Plan::with_image`]).

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The name of the file in the cell's directory that records the network its steps got, see [`super::Network`].
pub const NETWORK_FILE: &str = "network.json";

/// Everything PID 1 needs to bring the cell up. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The cell's id.
    pub id: String,
    /// The cache disk: BuildKit's root and the builder's directory lie below; it outlives the cell.
    pub dir: PathBuf,
    /// Where buildkitd listens.
    pub socket: PathBuf,
    /// The cgroup (a slice, where systemd manages them) that the cgroup of the cell's steps lies in; empty: the root.
    #[serde(default)]
    pub cgroup_parent: String,
    pub tools: Tools,
    /// The builder's command line.
    pub builder: Vec<String>,
    pub logs: Logs,
    /// `host:port` of a registry that is asked first for images of docker.io, over plain HTTP.
    pub mirror: Option<String>,
    /// Other registries (`host[:port]`) that buildkitd speaks to over plain HTTP. Those on the loopback need not be listed for that, but
    /// they are reached only if they are in here or in the builder's settings.
    #[serde(default)]
    pub plain_http: Vec<String>,
    pub cache: Cache,
    pub limits: Limits,
    #[serde(default)]
    pub steps: StepShare,
    /// Where steps can have no network of their own they get the host's: for a machine of one's own. Else the cell does not come up.
    #[serde(default)]
    pub shares_network: bool,
}

/// The programs of a cell that are not Kiln's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tools {
    pub buildkitd: PathBuf,
    /// Pinned: a distribution's runc may be too old to be safe.
    pub runc: PathBuf,
}

/// What the cell's steps may take. With cgroups of either version; what the machine cannot limit the cell says at its start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepShare {
    /// The most memory all steps may take together, bytes; 0: four fifths of the machine's.
    pub memory_bytes: u64,
    /// The most swap they may take beside it, bytes.
    pub swap_bytes: u64,
    /// How many processes and threads they may have.
    pub processes: u64,
    /// Their weight among those that want the processor, 1 to 10000; 100 is usual.
    pub cpu_weight: u64,
    /// The most memory one step may take, bytes; 0: no limit of its own.
    pub step_memory_bytes: u64,
    pub step_processes: u64,
    /// The weight of one step among the others.
    pub step_cpu_weight: u64,
}

impl Default for StepShare {
    fn default() -> Self {
        Self {
            memory_bytes: 0,
            swap_bytes: 0,
            processes: 16_384,
            cpu_weight: 100,
            step_memory_bytes: 0,
            step_processes: 4096,
            step_cpu_weight: 100,
        }
    }
}

/// Where the cell's processes write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logs {
    /// The guard and PID 1.
    pub cell: PathBuf,
    pub buildkitd: PathBuf,
    pub builder: PathBuf,
}

/// The cell's share of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// The most BuildKit's cache may take, bytes.
    pub max_bytes: u64,
    /// What BuildKit leaves free on the disk, bytes.
    pub min_free_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Steps that run at once, over all builds of the cell.
    pub parallel_steps: u32,
    /// How long the builder may take to drain when the cell is asked to end, milliseconds.
    pub drain_ms: u64,
    /// How long buildkitd may take after that, milliseconds.
    pub stop_ms: u64,
}

impl Plan {
    /// # Errors
    /// When the file cannot be read or is no plan; the message names the file.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::of(&text, file)
    }

    /// The plan that the text of a file is.
    ///
    /// # Errors
    /// When it is none; the message names the file.
    pub fn of(text: &str, file: &Path) -> anyhow::Result<Self> {
        serde_json::from_str(text).with_context(|| format!("{} is no plan of a cell", file.display()))
    }

    /// The same cell with the programs of an image: a directory with `kiln`, `buildkitd` and `runc`.
    ///
    /// # Errors
    /// When the directory's path is not UTF-8.
    pub fn with_image(mut self, image: &Path) -> anyhow::Result<Self> {
        let kiln = image.join("kiln");
        let kiln = kiln.to_str().with_context(|| format!("{} is not UTF-8", image.display()))?;
        self.tools.buildkitd = image.join("buildkitd");
        self.tools.runc = image.join("runc");
        if let Some(program) = self.builder.first_mut() {
            kiln.clone_into(program);
        }
        Ok(self)
    }

    /// BuildKit's state.
    pub fn buildkit_root(&self) -> PathBuf {
        self.dir.join("buildkit")
    }

    pub fn network_file(&self) -> PathBuf {
        self.dir.join(NETWORK_FILE)
    }

    /// Eight hex digits that tell this cell's network device, firewall rules and cgroups from those of all other cells on the host,
    /// also of other installations: they follow from the cache disk's path.
    pub fn tag(&self) -> String {
        blake3::hash(self.dir.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned()
    }

    /// The cgroup below which the cell's steps run.
    pub fn cgroup(&self) -> String {
        format!("{}/kiln-{}", self.cgroup_parent.trim_end_matches('/'), self.tag())
    }

    /// A plan as `kiln dev` writes it, for tests.
    #[cfg(test)]
    pub fn example() -> Self {
        Self {
            id: "cell-1".into(),
            dir: "/data/cells/cell-1".into(),
            socket: "/data/cells/cell-1/buildkitd.sock".into(),
            cgroup_parent: String::new(),
            tools: Tools { buildkitd: "/tools/buildkitd".into(), runc: "/tools/runc".into() },
            builder: vec!["kiln".into(), "builder".into()],
            logs: Logs {
                cell: "/logs/cell-1.log".into(),
                buildkitd: "/logs/buildkitd.log".into(),
                builder: "/logs/builder.log".into(),
            },
            mirror: Some("127.0.0.1:5000".into()),
            plain_http: Vec::new(),
            cache: Cache { max_bytes: 40_000_000_000, min_free_bytes: 10_000_000_000 },
            limits: Limits { parallel_steps: 4, drain_ms: 4000, stop_ms: 2000 },
            steps: StepShare::default(),
            shares_network: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&Plan::example()).unwrap()).unwrap();
        assert_eq!(Plan::read(file.path()).unwrap(), Plan::example());
    }

    #[test]
    fn an_image_replaces_the_programs_and_nothing_else() {
        let plan = Plan::example().with_image(Path::new("/images/2")).unwrap();
        assert_eq!(plan.builder, ["/images/2/kiln", "builder"]);
        assert_eq!((plan.tools.buildkitd, plan.tools.runc), ("/images/2/buildkitd".into(), "/images/2/runc".into()));
        assert_eq!((plan.socket, plan.dir), (Plan::example().socket, Plan::example().dir));
    }

    #[test]
    fn steps_lie_in_the_slice_that_was_chosen() {
        let plan = Plan { cgroup_parent: "/kiln.slice/kiln-builds.slice".into(), ..Plan::example() };
        assert_eq!(plan.cgroup(), format!("/kiln.slice/kiln-builds.slice/kiln-{}", plan.tag()));
        assert!(Plan::example().cgroup().starts_with("/kiln-"));
    }

    #[test]
    fn cells_of_two_installations_do_not_share_names() {
        let here = Plan::example();
        let there = Plan { dir: "/other/cells/cell-1".into(), ..Plan::example() };
        assert_ne!(here.tag(), there.tag());
    }
}
