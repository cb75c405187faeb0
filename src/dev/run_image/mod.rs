//! `kiln __run-image`: runs an image as the demo does, to show that what was pushed works. No container runtime but the pinned runc.
//!
//! The image is pulled by digest, each layer's bytes are checked against the manifest and unpacked below `--dir`, its command runs in
//! the host's network, `--get` is asked until it answers, and everything is removed again.

mod bundle;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use activities::egress;
use anyhow::Context;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, manifest::OciImageManifest};
use tokio::process::{Child, Command};

use crate::terminal;

/// How long the program may take until it answers.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// Of what it answers, bytes.
const LONGEST_ANSWER: usize = 1 << 20;

#[derive(Debug, Clone, clap::Args)]
pub struct RunImageArgs {
    /// The image by digest: host:port/repository@sha256:…
    image: Reference,
    /// Where it is unpacked; removed at the end
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long, value_name = "FILE")]
    runc: PathBuf,
    /// Variables of the program, besides the image's own
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The URL to ask; its answer is printed
    #[arg(long, value_name = "URL")]
    get: String,
}

/// Runs the image and prints the answer.
///
/// # Errors
/// When the image cannot be had, the program ends early, or it does not answer.
pub async fn run(args: RunImageArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.image.digest().is_some(), "{} names no digest", args.image);
    let _ = std::fs::remove_dir_all(&args.dir);
    let answer = run_in(&args).await;
    let _ = std::fs::remove_dir_all(&args.dir);
    terminal::print_line(answer?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

async fn run_in(args: &RunImageArgs) -> anyhow::Result<String> {
    std::fs::create_dir_all(args.dir.join("rootfs")).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let config = pull(&args.image, &args.dir).await.with_context(|| format!("cannot pull {}", args.image))?;
    let spec = bundle::spec(&config, &args.env)?;
    std::fs::write(args.dir.join("config.json"), serde_json::to_vec(&spec)?)?;

    let container = Container::start(&args.runc, &args.dir)?;
    let answer = container.answer(&args.get).await;
    container.remove().await;
    answer
}

/// Unpacks the image's layers and returns its configuration.
async fn pull(image: &Reference, dir: &Path) -> anyhow::Result<serde_json::Value> {
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let (manifest, _, config): (OciImageManifest, _, _) =
        client.pull_manifest_and_config(image, &RegistryAuth::Anonymous).await?;
    for layer in &manifest.layers {
        let mut blob = Vec::new();
        // Compares the digest of what it got.
        client.pull_blob(image, layer, &mut blob).await?;
        let (media_type, rootfs) = (layer.media_type.clone(), dir.join("rootfs"));
        tokio::task::spawn_blocking(move || unpack::layer(&media_type, &blob, &rootfs)).await??;
    }
    Ok(serde_json::from_str(&config)?)
}

/// A running container.
struct Container<'a> {
    runc: &'a Path,
    /// runc's own state, beside the bundle.
    state: PathBuf,
    name: String,
    child: Child,
}

impl<'a> Container<'a> {
    fn start(runc: &'a Path, bundle: &Path) -> anyhow::Result<Self> {
        let (state, name) = (bundle.join("runc"), format!("kiln-demo-{}", std::process::id()));
        let child = Command::new(runc)
            .arg("--root")
            .arg(&state)
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(&name)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", runc.display()))?;
        Ok(Self { runc, state, name, child })
    }

    /// What `url` answers, as soon as something does.
    async fn answer(&self, url: &str) -> anyhow::Result<String> {
        let client = reqwest::Client::new();
        let asked = async {
            loop {
                if let Ok(answer) = client.get(url).send().await {
                    let body = egress::body(answer.error_for_status()?, LONGEST_ANSWER).await?;
                    return Ok(String::from_utf8_lossy(&body).into_owned());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answer = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
        answer.with_context(|| format!("{url} does not answer"))?
    }

    async fn remove(mut self) {
        let delete =
            Command::new(self.runc).arg("--root").arg(&self.state).args(["delete", "--force", &self.name]).status();
        // It is said by runc itself when this fails, and nothing else could be done.
        let _ = delete.await;
        let _ = self.child.wait().await;
    }
}
