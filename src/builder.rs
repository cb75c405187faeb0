//! `kiln builder`: runs inside the cell; a Temporal worker whose activities call `buildkitd` directly.
//!
//! ```text
//! raise the epoch ─► answer for the former self's attempts ─► worker on cell-<id>, hints to the api ─► drain ─► end
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use activities::attempts::{Ledger, Outcome, report};
use activities::build::{Builder, BuilderSettings, Slots, SlotsView};
use activities::logs::LogShipper;
use activities::sealed::SealedStore;
use activities::snapshots::SnapshotCache;
use activities::{settle, temporal, workers};
use anyhow::Context as _;
use base64::Engine as _;
use temporalio_client::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workflows::CellSeed;
use workflows::contract::{CellHint, CellId, CellState, PoolMember};

use crate::settings::Settings;

/// How long running builds may go on once the builder is told to end; then they are given up and tried again elsewhere.
const DRAIN_GRACE: Duration = Duration::from_secs(8);
/// Hints are sent at each change and at least so often.
const HINT_EVERY: Duration = Duration::from_secs(10);
/// How long `kiln builder` waits for buildkitd at its start.
const BUILDKITD_PATIENCE: Duration = Duration::from_secs(60);

/// Runs until `stop`, then until running builds have ended or [`DRAIN_GRACE`] is over.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let cell: CellId = settings.cell.id.parse()?;
    let dir = &settings.cell.dir;
    let epoch = raise_epoch(dir).with_context(|| format!("raising the epoch in {}", dir.display()))?;
    let buildkit = wait_for_buildkitd(&settings.cell.buildkit_socket).await?;
    let identity = format!("kiln-builder {cell}");
    let client =
        temporal::connect_patiently(&settings.temporal.address, &settings.temporal.namespace, &identity).await?;
    let ledger = Ledger::open(dir)?;
    answer_for_former_self(&client, &buildkit, &ledger).await?;

    let seed =
        CellSeed { cell: cell.clone(), pool: settings.cell.pool.parse()?, slots: settings.cell.slots, carried: None };
    let member = PoolMember {
        cell: cell.clone(),
        state: CellState::Ready,
        platform: settings.cell.platform.parse()?,
        slots: settings.cell.slots,
        host: None,
        image: None,
        project: None,
    };
    workers::join_pool(&client, &seed.pool, &member).await?;
    workers::ensure_cell(&client, seed).await?;

    let slots = Slots::new(settings.cell.slots);
    let hints = Hints::new(&settings, &cell, epoch)?;
    let reporter = tokio::spawn(hints.report(slots.watch(), stop.clone()));
    let builder = builder(&settings, cell.clone(), epoch, client.clone(), ledger, slots)?;
    let runtime = workers::runtime()?;
    tracing::info!(%cell, epoch, slots = settings.cell.slots, "builder is up");
    let ended = workers::cell(&runtime, &client, &cell, settings.cell.slots, builder, DRAIN_GRACE)?.run(stop).await;
    reporter.await.ok();
    Ok(ended?)
}

fn builder(
    settings: &Settings,
    cell: CellId,
    epoch: u64,
    temporal: Client,
    ledger: Ledger,
    slots: Slots,
) -> anyhow::Result<Builder> {
    let objects = settings.objects()?;
    let spool = settings.cell.dir.join("logs");
    let logs = LogShipper::start(&settings.logs.address, settings.api.token.reveal(), &spool, settings.logs.spool_cap)
        .with_context(|| format!("starting the log spool in {}", spool.display()))?;
    Ok(Builder {
        cell,
        epoch,
        temporal,
        buildkit_socket: settings.cell.buildkit_socket.clone(),
        sealed: SealedStore::new(objects.clone(), &settings.seal.identity_file)?,
        files: SnapshotCache::open(&settings.cell.dir.join("files"), settings.cell.file_cache_cap)?,
        objects,
        ledger,
        logs,
        slots,
        settings: BuilderSettings {
            cut_off_after: Duration::from_secs(settings.cell.cut_off_after_s),
            stuck_after: Duration::from_secs(settings.cell.stuck_after_s),
            log_cap: settings.logs.build_cap,
            frontends: settings.cell.frontends.clone(),
            plain_http: settings.registry.plain_http.clone(),
            caps: settings.caps(),
        },
    })
}

/// The number on the cache disk that tells attempts of before and after a crash apart.
fn raise_epoch(dir: &Path) -> std::io::Result<u64> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("epoch");
    let former = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u64);
    let epoch = former + 1;
    let temporary: PathBuf = path.with_extension("new");
    std::fs::write(&temporary, epoch.to_string())?;
    std::fs::rename(temporary, path)?;
    Ok(epoch)
}

/// buildkitd is started beside the builder and may need some time.
async fn wait_for_buildkitd(socket: &Path) -> anyhow::Result<buildkit::Client> {
    let deadline = tokio::time::Instant::now() + BUILDKITD_PATIENCE;
    loop {
        let error = match buildkit::Client::connect_unix(socket).await {
            Ok(client) => match client.info().await {
                Ok(_) => return Ok(client),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(error).with_context(|| format!("waiting for buildkitd at {}", socket.display()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What this builder's former self ran: settled by BuildKit's history, else failed as lost, so that the build is tried again at once
/// instead of after the heartbeat timeout.
async fn answer_for_former_self(client: &Client, buildkit: &buildkit::Client, ledger: &Ledger) -> anyhow::Result<()> {
    for entry in ledger.former()? {
        let outcome: Outcome = settle::lost_attempt(buildkit, &entry).await;
        let token = base64::engine::general_purpose::STANDARD.decode(&entry.task_token).unwrap_or_default();
        tracing::info!(workflow = entry.attempt.workflow_id, attempt = entry.attempt.number, ?outcome, "settled");
        match report(client, &token, &outcome).await {
            Ok(()) => ledger.forget(&entry.attempt)?,
            Err(error) => tracing::warn!(%error, "a former attempt's end could not be told"),
        }
    }
    Ok(())
}

/// Tells the api what the cell looks like. Hints may be lost or stale: nothing waits for them.
struct Hints {
    http: reqwest::Client,
    url: String,
    token: String,
    hint: CellHint,
}

impl Hints {
    fn new(settings: &Settings, cell: &CellId, epoch: u64) -> anyhow::Result<Self> {
        let hint = CellHint {
            cell: cell.clone(),
            pool: settings.cell.pool.parse()?,
            platform: settings.cell.platform.parse()?,
            state: CellState::Ready,
            slots: settings.cell.slots,
            busy: 0,
            epoch,
            generation: 0,
            reported_ms: 0,
        };
        Ok(Self {
            http: reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?,
            url: format!("{}/v1/cells/hints", settings.api.url.trim_end_matches('/')),
            token: settings.api.token.reveal().to_owned(),
            hint,
        })
    }

    async fn report(mut self, mut slots: watch::Receiver<SlotsView>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let view = *slots.borrow_and_update();
            (self.hint.slots, self.hint.busy) = (view.slots, view.busy);
            let heard = self.send().await;
            // An api that does not answer is asked again soon: until it has a hint, the cell gets no builds.
            let pause = if heard { HINT_EVERY } else { Duration::from_secs(1) };
            tokio::select! {
                _ = slots.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        self.hint.state = CellState::Stopped;
        self.send().await;
    }

    async fn send(&mut self) -> bool {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.hint.reported_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let sent = self.http.post(&self.url).bearer_auth(&self.token).json(&self.hint).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "a hint was not taken");
                false
            }
        }
    }
}
