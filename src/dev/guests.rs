//! `kiln dev --driver qemu`: cells that are guests, from the image that `make guest` built.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use workflows::contract::CellClocks;

use crate::settings;

/// What kind of machine the cells are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverKind {
    /// Processes in namespaces of their own
    Process,
    /// MicroVMs under QEMU
    Qemu,
}

#[derive(Debug, Clone, clap::Args)]
pub struct GuestArgs {
    /// What the cells are: processes, or microVMs (which need qemu-system-x86 and an image from `make guest`)
    #[arg(long, value_enum, value_name = "DRIVER", default_value = "process")]
    pub driver: DriverKind,
    /// Directory of the guests' image [default: the newest that `make guest` built]
    #[arg(long, value_name = "DIR", env = "KILN_GUEST_IMAGE")]
    pub guest_image: Option<PathBuf>,
    /// What runs the guests: auto, kvm, tcg (software)
    #[arg(long, value_name = "ACCEL", default_value = "auto", value_parser = ["auto", "kvm", "tcg"])]
    pub guest_accel: String,
    /// Memory of each guest, MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(512..))]
    pub guest_memory: u64,
    /// Private network that RUN steps may reach, like 10.1.0.0/16; again for more [default: none]
    #[arg(long, value_name = "NETWORK", alias = "guest-reach", value_parser = private_network)]
    pub steps_reach: Vec<String>,
}

fn private_network(text: &str) -> Result<String, String> {
    settings::network(text).map(|()| text.to_owned())
}

impl GuestArgs {
    /// What guests are made of, where cells are guests. The image is the one that is there now: another one put in its place is refused.
    ///
    /// # Errors
    /// When QEMU or an image is missing; the message says how to get it.
    pub fn settings(&self, mirror: &str) -> anyhow::Result<Option<settings::Guest>> {
        if self.driver == DriverKind::Process {
            return Ok(None);
        }
        anyhow::ensure!(
            on_path("qemu-system-x86_64"),
            "qemu-system-x86_64 is missing: install the package qemu-system-x86"
        );
        let image = match &self.guest_image {
            Some(image) => std::path::absolute(image)?,
            None => newest(&images()?)?,
        };
        let manifest = image.join("manifest.json");
        let text = std::fs::read(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some(settings::Guest {
            image,
            digest: format!("sha256:{digest}"),
            accel: self.guest_accel.clone(),
            memory_mib: self.guest_memory,
            mirror: mirror.into(),
            steps_reach: self.steps_reach.clone(),
            ..settings::Guest::default()
        }))
    }
}

/// Guests that are run by software have moments in which nothing of them moves, and some hang in their boot: their Cells are patient.
pub fn clocks() -> CellClocks {
    CellClocks {
        lost_after_ms: 60_000,
        canary_patience_ms: 60_000,
        start_patience_ms: 600_000,
        host_patience_ms: 240_000,
        ..CellClocks::default()
    }
}

fn on_path(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).is_file())
}

/// Where `deploy/guest/build` puts images.
fn images() -> anyhow::Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let guest = var("KILN_GUEST").or_else(|| {
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("kiln/guest"))
    });
    Ok(guest
        .context("neither KILN_GUEST nor HOME says where guest images are: give one with --guest-image")?
        .join("images"))
}

fn newest(images: &Path) -> anyhow::Result<PathBuf> {
    let built = |dir: &Path| -> Option<SystemTime> { dir.join("manifest.json").metadata().ok()?.modified().ok() };
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = entries.filter_map(|dir| Some((built(&dir)?, dir))).max();
    let (_, image) =
        found.with_context(|| format!("there is no guest image in {}: run `make guest`", images.display()))?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).unwrap_err().to_string().ends_with("run `make guest`"));
        for (name, age) in [("old", 60), ("new", 0)] {
            let image = dir.path().join(name);
            std::fs::create_dir(&image).unwrap();
            let manifest = std::fs::File::create(image.join("manifest.json")).unwrap();
            manifest.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        std::fs::create_dir(dir.path().join("unfinished")).unwrap();
        assert_eq!(newest(dir.path()).unwrap(), dir.path().join("new"));
    }
}
