//! What a cell is made of: the file its supervisor writes and its PID 1 reads (`<cell dir>/cell.json`).

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
    pub tools: Tools,
    /// The builder's command line.
    pub builder: Vec<String>,
    pub logs: Logs,
    /// `host:port` of a registry that is asked first for images of docker.io, over plain HTTP.
    pub mirror: Option<String>,
    pub cache: Cache,
    pub limits: Limits,
}

/// The programs of a cell that are not Kiln's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tools {
    pub buildkitd: PathBuf,
    /// Pinned: a distribution's runc may be too old to be safe.
    pub runc: PathBuf,
    /// The directory of the CNI plugins `bridge`, `host-local`, `loopback` and `firewall`.
    pub cni: PathBuf,
}

/// Where the cell's processes write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logs {
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
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no plan of a cell", file.display()))
    }

    /// BuildKit's state.
    pub fn buildkit_root(&self) -> PathBuf {
        self.dir.join("buildkit")
    }

    pub fn network_file(&self) -> PathBuf {
        self.dir.join(NETWORK_FILE)
    }

    /// Eight hex digits that tell this cell's bridge, firewall chains and cgroups from those of all other cells on the host,
    /// also of other installations: they follow from the cache disk's path.
    pub fn tag(&self) -> String {
        blake3::hash(self.dir.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned()
    }

    /// The cgroup below which the cell's steps run.
    pub fn cgroup(&self) -> String {
        format!("/kiln-{}", self.tag())
    }

    /// A plan as `kiln dev` writes it, for tests.
    #[cfg(test)]
    pub fn example() -> Self {
        Self {
            id: "cell-1".into(),
            dir: "/data/cells/cell-1".into(),
            socket: "/data/cells/cell-1/buildkitd.sock".into(),
            tools: Tools {
                buildkitd: "/tools/buildkitd".into(),
                runc: "/tools/runc".into(),
                cni: "/usr/lib/cni".into(),
            },
            builder: vec!["kiln".into(), "builder".into()],
            logs: Logs { buildkitd: "/logs/buildkitd.log".into(), builder: "/logs/builder.log".into() },
            mirror: Some("127.0.0.1:5000".into()),
            cache: Cache { max_bytes: 40_000_000_000, min_free_bytes: 10_000_000_000 },
            limits: Limits { parallel_steps: 4, drain_ms: 4000, stop_ms: 2000 },
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
    fn cells_of_two_installations_do_not_share_names() {
        let here = Plan::example();
        let there = Plan { dir: "/other/cells/cell-1".into(), ..Plan::example() };
        assert_ne!(here.tag(), there.tag());
    }
}
