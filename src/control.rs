//! `kiln control`: the workflows, and the activities that touch the store, registries and sealed credentials.

use std::time::Duration;

use activities::control::{Control, Fleet, metrics};
use activities::oci::Registries;
use activities::sealed::SealedStore;
use activities::store::Store;
use activities::{entities, failpoint, search_attributes, temporal, workers};
use anyhow::Context as _;
use temporalio_client::Client;
use tokio_util::sync::CancellationToken;
use workflows::patches::REHEARSAL;

use crate::settings::Settings;

/// The `User-Agent` of requests to registries.
const AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));
/// Between two looks whether each pool's entity runs.
const POOLS_EVERY: Duration = Duration::from_secs(10);

/// Runs until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let frontend = settings.frontend();
    let client = temporal::connect_patiently(&frontend, "kiln-control").await?;
    search_attributes::register(&client, &frontend.namespace).await?;
    let control = Control {
        temporal: client.clone(),
        store: Store::open(settings.store.url.reveal()).await.context("opening the store (store.url)")?,
        repositories: settings.registry.policy(),
        registries: Registries::new(settings.registry.plain_http.clone(), settings.egress(AGENT)?),
        sealed: SealedStore::new(settings.objects()?, &settings.seal.identity_file)?,
        pool: settings.cell.pool.parse()?,
        platform: settings.default_platform().parse()?,
        create_projects: settings.api.create_projects,
        attempts_lost_after: Duration::from_millis(settings.attempts.lost_after_ms),
        fleet: Fleet::default(),
    };
    metrics::declare();
    let runtime = workers::runtime()?;
    if failpoint::taken("rehearsal") {
        REHEARSAL.take();
    }
    let keeper = tokio::spawn(keep_pools(control.store.clone(), client.clone(), stop.clone()));
    tracing::info!(temporal = frontend.address, "control is up");
    workers::control(&runtime, &client, control)?.run(stop).await?;
    keeper.await.ok();
    Ok(())
}

/// A Pool that was terminated is missed by nobody until a builder starts, and until then nothing can be asked of it: it is started again.
async fn keep_pools(store: Store, client: Client, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(POOLS_EVERY)).await.is_some() {
        if let Err(error) = ensure_pools(&store, &client).await {
            tracing::debug!(%error, "it is not known whether all Pools run");
        }
    }
}

async fn ensure_pools(store: &Store, client: &Client) -> anyhow::Result<()> {
    for view in store.pool_views().await? {
        entities::ensure_pool(client, &view.pool).await?;
    }
    Ok(())
}
