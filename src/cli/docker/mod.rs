//! Registry credentials where docker keeps them: `config.json` and the credential helpers it names.
//!
//! Only the hosts that are asked for are looked up, so that no helper is started for a registry that a build does not touch. What
//! cannot be had is a warning: the registry may let anybody in, and if not, it says so itself.

mod config;
mod helper;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::PathBuf;

use activities::sealed::Credential;

use config::{ConfigFile, Entry};

/// What docker calls Docker Hub in its files and to its helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What image references call it.
const HUB: &str = "docker.io";

/// Docker's client configuration.
#[derive(Debug, Default)]
pub struct DockerConfig {
    file: ConfigFile,
    /// Where helper programs are looked for; the `PATH` when `None`.
    search: Option<PathBuf>,
}

/// What was found, and what could not be had.
#[derive(Debug, Default)]
pub struct Found {
    pub credentials: BTreeMap<String, Credential>,
    pub warnings: Vec<String>,
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; nothing is there when it is missing.
    ///
    /// # Errors
    /// When the file is there and cannot be read or is no docker configuration: a sentence for the user.
    pub fn load() -> Result<Self, String> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        match directory {
            Some(directory) => Ok(Self { file: ConfigFile::read(&directory.join("config.json"))?, search: None }),
            None => Ok(Self::default()),
        }
    }

    /// The credentials for some hosts, each `host[:port]` as in an image reference.
    pub async fn resolve(&self, hosts: &BTreeSet<String>) -> Found {
        let mut found = Found::default();
        for host in hosts {
            match self.lookup(host).await {
                Ok(Some(credential)) => drop(found.credentials.insert(host.clone(), credential)),
                Ok(None) => {}
                Err(why) => found.warnings.push(format!("no credentials for {host}: {why}")),
            }
        }
        found
    }

    /// A helper for this very host first, then the general one, then what the file itself holds.
    async fn lookup(&self, host: &str) -> Result<Option<Credential>, String> {
        let helper = self.file.helper_for(host).or(self.file.creds_store.as_deref()).filter(|name| !name.is_empty());
        if let Some(name) = helper {
            let key = if host == HUB { HUB_KEY } else { host };
            if let Some(credential) = helper::get(name, key, self.search.as_deref()).await? {
                return Ok(Some(credential));
            }
        }
        self.file.entry_for(host).map_or(Ok(None), Entry::credential)
    }
}

/// The host a key of the file is for: `https://ghcr.io/v1/` is for `ghcr.io`, and all names of Docker Hub are one.
fn host_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = bare.split('/').next().unwrap_or(bare);
    if matches!(host, "index.docker.io" | "registry-1.docker.io" | HUB) { HUB } else { host }
}
