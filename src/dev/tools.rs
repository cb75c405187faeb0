//! The programs `kiln dev` runs that are not Kiln's own.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where they are.
#[derive(Debug, Clone)]
pub struct Tools {
    pub temporal: PathBuf,
    pub buildkitd: PathBuf,
    pub runc: PathBuf,
    pub registry: PathBuf,
    /// This program.
    pub kiln: PathBuf,
}

impl Tools {
    /// Looks in `dir`, beside the running program, in the cache that `make tools` fills, and on the PATH.
    ///
    /// # Errors
    /// When one is missing: which, and how to get it.
    pub fn find(dir: Option<&Path>) -> anyhow::Result<Self> {
        let kiln = std::env::current_exe().context("cannot tell where this program lies")?;
        let pinned: Vec<PathBuf> =
            dir.map(Path::to_owned).into_iter().chain(kiln.parent().map(Path::to_owned)).chain(cache()).collect();
        let path: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let with_path = || pinned.iter().chain(&path);
        Ok(Self {
            temporal: find("temporal", with_path(), "run `make tools` in Kiln's repository")?,
            buildkitd: find("buildkitd", with_path(), "run `make tools` in Kiln's repository")?,
            // Not from the PATH: distributions ship versions with known ways out of a container.
            runc: find("runc", pinned.iter(), "run `make tools` in Kiln's repository")?,
            registry: find("docker-registry", with_path(), "install the package docker-registry")?,
            kiln,
        })
    }
}

/// `deploy/tools/link` puts the pinned versions there.
fn cache() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let tools = var("KILN_TOOLS").or_else(|| {
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("kiln/tools"))
    });
    tools.map(|tools| tools.join("bin"))
}

fn find<'a>(name: &str, mut dirs: impl Iterator<Item = &'a PathBuf>, remedy: &str) -> anyhow::Result<PathBuf> {
    dirs.find_map(|dir| Some(dir.join(name)).filter(|file| file.is_file()))
        .with_context(|| format!("{name} is missing: {remedy}"))
}
