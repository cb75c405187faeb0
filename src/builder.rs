//! `kiln builder`: runs inside the cell; a Temporal worker whose activities call `buildkitd` directly, and a second, small one for the
//! cell's operations.
//!
//! ```text
//! raise the epoch ─► answer for the former self ─► workers on cell-<id> and cell-<id>-ops, hints to the api ─► drain ─► end
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use activities::attempts::{HeartbeatSettings, Ledger, Outcome, report};
use activities::build::{Builder, BuilderSettings, Slots};
use activities::logs::LogShipper;
use activities::ops::{Canary, CellOps, Tokens};
use activities::sealed::SealedStore;
use activities::snapshots::SnapshotCache;
use activities::{cache, entities, settle, temporal, workers};
use anyhow::Context as _;
use base64::Engine as _;
use serde::Serialize;
use temporalio_client::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workflows::CellSeed;
use workflows::contract::{CellFacts, CellHint, CellId, CellState, PoolMember};

use crate::relay;
use crate::settings::Settings;

/// Hints are sent at each change and at least so often.
const HINT_EVERY: Duration = Duration::from_secs(10);
/// The cache is measured so often.
const MEASURE_EVERY: Duration = Duration::from_secs(60);
/// How long `kiln builder` waits for buildkitd at its start.
const BUILDKITD_PATIENCE: Duration = Duration::from_secs(60);

/// Runs until `stop`, then until running builds have ended or `cell.drain_grace_ms` is over: they are tried again elsewhere.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let cell: CellId = settings.cell.id.parse()?;
    relay::start(&settings).await?;
    let dir = &settings.cell.dir;
    let epoch = raise_epoch(dir).with_context(|| format!("raising the epoch in {}", dir.display()))?;
    let buildkit = wait_for_buildkitd(&settings.cell.buildkit_socket).await?;
    let identity = format!("kiln-builder {cell}");
    let client =
        temporal::connect_patiently(&settings.temporal.address, &settings.temporal.namespace, &identity).await?;
    let ledger = Ledger::open(dir)?;
    answer_for_former_self(&client, &buildkit, &ledger).await?;

    let tokens = Tokens::open(dir)?;
    tokens.end_former(&client).await;
    let seed = seed(&settings, &cell)?;
    // First the Cell: it refuses a host that has no right to this cell id, and such a one must not become the pool's member.
    entities::ensure_cell(&client, seed.clone()).await?;
    entities::join_pool(&client, &seed.pool, &member(&settings, &seed)?).await?;
    let generation = cache::generation(dir, &buildkit).await?;

    let slots = Slots::restore(settings.cell.slots, dir);
    let hints = Hints::new(&settings, &cell, (epoch, generation), buildkit)?;
    let reporter = tokio::spawn(hints.report(slots.clone(), stop.clone()));
    let ops = ops(&settings, &seed, epoch, client.clone(), tokens, slots.clone(), stop.clone());
    let keeper = tokio::spawn(keep_entity(client.clone(), seed, ops.heard.subscribe(), stop.clone()));
    let builder = builder(&settings, cell.clone(), epoch, client.clone(), ledger, slots)?;
    let runtime = workers::runtime()?;
    tracing::info!(%cell, epoch, slots = settings.cell.slots, "builder is up");
    let grace = Duration::from_millis(settings.cell.drain_grace_ms);
    let ended = workers::cell(&runtime, &client, builder, ops, grace)?.run(stop).await;
    reporter.await.ok();
    keeper.await.ok();
    Ok(ended?)
}

fn seed(settings: &Settings, cell: &CellId) -> anyhow::Result<CellSeed> {
    let host = match settings.cell.host.as_str() {
        "" => None,
        host => Some(host.parse()?),
    };
    let clocks = settings.cell.clocks.clone();
    Ok(CellSeed { host, clocks, ..CellSeed::new(cell.clone(), settings.cell.pool.parse()?, settings.cell.slots) })
}

/// What the pool knows of the cell before its first hint.
fn member(settings: &Settings, seed: &CellSeed) -> anyhow::Result<PoolMember> {
    Ok(PoolMember {
        cell: seed.cell.clone(),
        state: CellState::Ready,
        platform: settings.cell.platform.parse()?,
        slots: seed.slots,
        host: seed.host.as_ref().map(ToString::to_string),
        image: None,
        project: None,
    })
}

fn ops(
    settings: &Settings,
    seed: &CellSeed,
    epoch: u64,
    temporal: Client,
    tokens: Tokens,
    slots: Slots,
    stop: CancellationToken,
) -> CellOps {
    CellOps {
        epoch,
        temporal,
        slots,
        canary: Canary::new(settings.cell.buildkit_socket.clone()),
        tokens,
        host: seed.host.clone(),
        clocks: seed.clocks.clone(),
        stop,
        heard: watch::Sender::new(tokio::time::Instant::now()),
    }
}

/// A Cell that was terminated asks nothing of its builder any more: then the builder starts it again. One that is there is not
/// disturbed.
async fn keep_entity(
    client: Client,
    seed: CellSeed,
    heard: watch::Receiver<tokio::time::Instant>,
    stop: CancellationToken,
) {
    let patience = Duration::from_millis(seed.clocks.lost_after_ms) * 3;
    let mut asked = tokio::time::Instant::now();
    loop {
        let due = (*heard.borrow()).max(asked) + patience;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = stop.cancelled() => return,
        }
        if heard.borrow().elapsed() >= patience {
            asked = tokio::time::Instant::now();
            if let Err(error) = entities::ensure_cell(&client, seed.clone()).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the Cell could not be asked for");
            }
        }
    }
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
            heartbeat: HeartbeatSettings {
                interval: Duration::from_millis(settings.attempts.heartbeat_ms),
                cut_off_after: Duration::from_millis(settings.attempts.cut_off_after_ms),
            },
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
    buildkit: buildkit::Client,
    said: Said,
    measured: Option<tokio::time::Instant>,
}

/// A hint with what is told beside it.
#[derive(Serialize)]
struct Said {
    #[serde(flatten)]
    hint: CellHint,
    facts: CellFacts,
}

impl Hints {
    /// `disk`: the epoch, and the generation of the cache.
    fn new(settings: &Settings, cell: &CellId, disk: (u64, u64), buildkit: buildkit::Client) -> anyhow::Result<Self> {
        let (epoch, generation) = disk;
        let hint = CellHint {
            cell: cell.clone(),
            pool: settings.cell.pool.parse()?,
            platform: settings.cell.platform.parse()?,
            state: CellState::Ready,
            slots: settings.cell.slots,
            busy: 0,
            epoch,
            generation,
            reported_ms: 0,
        };
        let facts = CellFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: i64::try_from(now_ms()).unwrap_or(i64::MAX),
            ..CellFacts::default()
        };
        Ok(Self {
            http: reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?,
            url: format!("{}/v1/cells/hints", settings.api.url.trim_end_matches('/')),
            token: settings.api.token.reveal().to_owned(),
            buildkit,
            said: Said { hint, facts },
            measured: None,
        })
    }

    async fn report(mut self, slots: Slots, stop: CancellationToken) {
        let mut views = slots.watch();
        while !stop.is_cancelled() {
            let view = *views.borrow_and_update();
            let hint = &mut self.said.hint;
            (hint.slots, hint.busy) = (view.slots, view.busy);
            hint.state = if view.open { CellState::Ready } else { CellState::Draining };
            (self.said.facts.steps, self.said.facts.cached_steps) = slots.steps();
            let heard = self.send().await;
            // An api that does not answer is asked again soon: until it has a hint, the cell gets no builds.
            let pause = if heard { HINT_EVERY } else { Duration::from_secs(1) };
            tokio::select! {
                _ = views.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
            if view.busy == 0 {
                self.measure().await;
            }
        }
        self.said.hint.state = CellState::Stopped;
        self.send().await;
    }

    /// What the cache holds: many entries to add up, so now and then and while the cell has nothing better to do.
    async fn measure(&mut self) {
        if self.measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return;
        }
        self.measured = Some(tokio::time::Instant::now());
        if let Ok(Ok(entries)) = tokio::time::timeout(Duration::from_secs(5), self.buildkit.disk_usage()).await {
            // Entries that share content are counted once each, as the daemon's own limit does.
            let bytes = entries.iter().map(|entry| u64::try_from(entry.size).unwrap_or(0)).sum();
            self.said.facts.cache_bytes = Some(bytes);
        }
    }

    async fn send(&mut self) -> bool {
        self.said.hint.reported_ms = now_ms();
        let sent = self.http.post(&self.url).bearer_auth(&self.token).json(&self.said).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "a hint was not taken");
                false
            }
        }
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
