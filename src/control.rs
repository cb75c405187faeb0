//! `kiln control`: the workflows, and the activities that touch the store, registries and sealed credentials.

use std::time::Duration;

use activities::control::{Control, Fleet};
use activities::oci::Registries;
use activities::sealed::SealedStore;
use activities::store::Store;
use activities::{temporal, workers};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

/// Runs until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let address = &settings.temporal.address;
    let client = temporal::connect_patiently(address, &settings.temporal.namespace, "kiln-control").await?;
    workers::register_search_attributes(&client, &settings.temporal.namespace).await?;
    let control = Control {
        temporal: client.clone(),
        store: Store::open(settings.store.url.reveal()).await.context("opening the store (store.url)")?,
        registries: Registries::new(settings.registry.plain_http.clone())?,
        sealed: SealedStore::new(settings.objects()?, &settings.seal.identity_file)?,
        pool: settings.cell.pool.parse()?,
        platform: settings.cell.platform.parse()?,
        create_projects: settings.api.create_projects,
        attempts_lost_after: Duration::from_millis(settings.attempts.lost_after_ms),
        fleet: Fleet::default(),
    };
    let runtime = workers::runtime()?;
    tracing::info!(temporal = address, "control is up");
    workers::control(&runtime, &client, control)?.run(stop).await?;
    Ok(())
}
