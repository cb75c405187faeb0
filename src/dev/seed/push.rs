//! Making an image out of its recipe and pushing it.

use std::time::Duration;

use anyhow::Context;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use oci_client::secrets::RegistryAuth;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Recipe;
use super::layer::{Layer, sha256};

const CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The manifest's annotation that says what the image was made from.
const FINGERPRINT: &str = "dev.kiln.seed";
/// The longest silence of the registry, which runs on this machine.
const SILENCE: Duration = Duration::from_secs(30);

/// Makes the image and pushes it under all its tags, unless all of them are there.
pub async fn push(address: &str, recipe: Recipe) -> anyhow::Result<()> {
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: true,
        read_timeout: Some(SILENCE),
        ..ClientConfig::default()
    });
    let reference = |tag: &String| Reference::with_tag(address.into(), recipe.repository.into(), tag.clone());
    let tags: Vec<_> = recipe.tags.iter().map(reference).collect();
    if all_there(&client, &tags, &recipe.fingerprint).await {
        return Ok(());
    }
    let config = |layers: &[Layer]| config(&recipe.env, recipe.cmd, recipe.workdir, layers);
    let layers = tokio::task::spawn_blocking(recipe.layers).await??;
    let config = serde_json::to_vec(&config(&layers))?;
    let config_digest = sha256(Sha256::new_with_prefix(&config));
    let manifest = manifest(&recipe.fingerprint, &config, &config_digest, &layers);
    let target = tags.first().context("the recipe has no tag")?;

    for layer in layers {
        client.push_blob(target, layer.blob, &layer.digest).await?;
    }
    client.push_blob(target, config, &config_digest).await?;
    for tag in &tags {
        client.push_manifest_raw(tag, manifest.clone(), HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE)).await?;
    }
    Ok(())
}

async fn all_there(client: &Client, tags: &[Reference], fingerprint: &str) -> bool {
    for tag in tags {
        let answer = client.pull_manifest_raw(tag, &RegistryAuth::Anonymous, &[OCI_IMAGE_MEDIA_TYPE]).await;
        let there: Option<Value> = answer.ok().and_then(|(content, _)| serde_json::from_slice(&content).ok());
        if there.is_none_or(|manifest| manifest["annotations"][FINGERPRINT] != fingerprint) {
            return false;
        }
    }
    true
}

/// <https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md>
fn config(env: &[&str], cmd: &[&str], workdir: &str, layers: &[Layer]) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Env": env, "Cmd": cmd, "WorkingDir": workdir },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
    })
}

/// <https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md>
fn manifest(fingerprint: &str, config: &[u8], config_digest: &str, layers: &[Layer]) -> Vec<u8> {
    let descriptor =
        |layer: &Layer| json!({ "mediaType": LAYER_MEDIA_TYPE, "digest": layer.digest, "size": layer.blob.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE_MEDIA_TYPE,
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": config_digest, "size": config.len() },
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        "annotations": { FINGERPRINT: fingerprint },
    });
    manifest.to_string().into_bytes()
}
