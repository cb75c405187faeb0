//! `library/golang` from busybox and this machine's Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::layer::{Layer, LayerWriter};
use super::{Recipe, busybox, tags_of};

/// Parts of a Go distribution that no build reads.
const NOT_NEEDED: [&str; 4] = ["api", "doc", "misc", "test"];

pub fn recipe() -> anyhow::Result<Recipe> {
    let root = PathBuf::from(go_env("GOROOT")?);
    let version = go_env("GOVERSION")?;
    let number = version.trim_start_matches("go").to_owned();
    let busybox = busybox::recipe()?;
    Ok(Recipe {
        repository: "library/golang",
        tags: tags_of(&number),
        fingerprint: format!("{version}-{}", busybox.fingerprint),
        env: vec![
            "PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "GOPATH=/go",
            // The image has no C compiler, and no other toolchain can be fetched without a network.
            "CGO_ENABLED=0",
            "GOTOOLCHAIN=local",
        ],
        cmd: &["sh"],
        workdir: "/go",
        layers: Box::new(move || {
            let mut layers = (busybox.layers)()?;
            layers.push(layer(&root)?);
            Ok(layers)
        }),
    })
}

fn layer(root: &Path) -> anyhow::Result<Layer> {
    let mut layer = LayerWriter::new()?;
    layer.dir("go", 0o777)?;
    layer.dir("usr/local", 0o755)?;
    let skip = |path: &Path| NOT_NEEDED.iter().any(|name| path == Path::new(name));
    layer.tree(root, "usr/local/go", &skip).with_context(|| format!("cannot read {}", root.display()))?;
    Ok(layer.finish()?)
}

fn go_env(name: &str) -> anyhow::Result<String> {
    let output =
        Command::new("go").args(["env", name]).output().context("go is missing: install Go (https://go.dev/dl)")?;
    anyhow::ensure!(output.status.success(), "go env {name} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
