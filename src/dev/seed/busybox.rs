//! `library/busybox` from Debian's package busybox-static.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::layer::{Layer, LayerWriter};
use super::{Recipe, tags_of};

/// Raise it when the layout below changes, so that images already seeded are made anew.
const LAYOUT: u32 = 1;

pub fn recipe() -> anyhow::Result<Recipe> {
    let program = find()?;
    let content = std::fs::read(&program)?;
    Ok(Recipe {
        repository: "library/busybox",
        tags: tags_of(&version(&program)?),
        fingerprint: format!("{LAYOUT}-{}", blake3::hash(&content).to_hex()),
        env: vec![PATH],
        cmd: &["sh"],
        workdir: "/",
        layers: Box::new(move || Ok(vec![layer(&program)?])),
    })
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A shell and the usual commands: what a RUN step needs at least.
pub fn layer(program: &Path) -> anyhow::Result<Layer> {
    let mut layer = LayerWriter::new()?;
    for dir in ["bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/tmp"] {
        layer.dir(dir, 0o755)?;
    }
    layer.dir("root", 0o700)?;
    layer.dir("tmp", 0o1777)?;
    layer.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")?;
    layer.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    let content = std::fs::read(program)?;
    layer.file("bin/busybox", 0o755, content.len() as u64, content.as_slice())?;
    for applet in said(program, &["--list-full"])?.lines().filter(|applet| *applet != "bin/busybox") {
        layer.symlink(applet, "/bin/busybox")?;
    }
    Ok(layer.finish()?)
}

/// The program itself; one that needs shared libraries would not run in an empty image, and Debian's static one is at this path.
pub fn find() -> anyhow::Result<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file());
    found.context("busybox is missing: install the package busybox-static")
}

/// `BusyBox v1.35.0 (Debian …) multi-call binary.`
fn version(program: &Path) -> anyhow::Result<String> {
    let banner = said(program, &[])?;
    let version = banner.split(' ').nth(1).and_then(|word| word.strip_prefix('v'));
    Ok(version.with_context(|| format!("{} does not say its version", program.display()))?.to_owned())
}

fn said(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8(output.stdout)?)
}
