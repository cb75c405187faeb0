//! `kiln builder`: runs inside the cell; a Temporal worker whose activities call `buildkitd` directly, and a second, small one for the
//! cell's operations.
//!
//! ```text
//! forwarder of names, clock ─► raise the epoch ─► answer for the former self
//!     ─► workers on cell-<id> and cell-<id>-ops, hints to the api ─► drain ─► end
//! ```

mod hints;

use std::path::{Path, PathBuf};
use std::time::Duration;

use activities::attempts::{HeartbeatSettings, Ledger};
use activities::build::{Builder, BuilderSettings, Slots};
use activities::clock::Clock;
use activities::dns::{Dns, resolvers};
use activities::logs::LogShipper;
use activities::oci::Registries;
use activities::ops::{Canary, CellOps, end_former};
use activities::pressure::{PressureMetric, Slices};
use activities::sealed::SealedStore;
use activities::snapshots::SnapshotCache;
use activities::{cache, durable, entities, temporal, workers};
use anyhow::Context as _;
use temporalio_client::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workflows::CellSeed;
use workflows::contract::{CellId, CellState, Platform, PoolMember};

use self::hints::Hints;
use crate::relay;
use crate::settings::Settings;

/// The `User-Agent` of requests to the token servers of registries.
const AGENT: &str = concat!("kiln-builder/", env!("CARGO_PKG_VERSION"));
/// How long `kiln builder` waits for buildkitd at its start.
const BUILDKITD_PATIENCE: Duration = Duration::from_secs(60);
/// For each of its questions after that: some round trips per former attempt.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// Runs until `stop`, then until running builds have ended or `cell.drain_grace_ms` is over: they are tried again elsewhere.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let cell: CellId = settings.cell.id.parse()?;
    relay::start(&settings).await?;
    // Before anything that names a service: in a guest the builder asks itself.
    let dns = start_dns(&settings).await?;
    let clock = start_clock(&settings, &stop);
    let dir = &settings.cell.dir;
    let epoch = raise_epoch(dir).with_context(|| format!("raising the epoch in {}", dir.display()))?;
    let identity = temporal::builder_identity(&cell, epoch);
    let client = temporal::connect_patiently(&settings.frontend(), &identity).await?;
    let slots = Slots::restore(settings.cell.slots, dir);
    let builder = builder(&settings, cell.clone(), epoch, client.clone(), Ledger::open(dir)?, slots.clone())?;
    let unfit = clock.as_ref().map_or_else(|| watch::channel(false).1, Clock::watch);
    let builder = Builder { dns, clock, ..builder };
    let seed = seed(&settings, &cell)?;

    let buildkit = wait_for_buildkitd(&settings.cell.buildkit_socket).await?;
    let workers = in_time("asking buildkitd for its platforms", buildkit.workers()).await?;
    let platform = platform(&settings.cell.platform, &workers)?;
    tokio::spawn(warm_up(settings.cell.buildkit_socket.clone()));
    in_time("settling what the former builder left", builder.answer_for_former_self(&buildkit)).await?;
    // First the Cell: it refuses a host that has no right to this cell id, and such a one must not become the pool's member.
    entities::ensure_cell(&client, seed.clone()).await?;
    end_former(&client, &seed.pool, &seed.cell).await;
    entities::join_pool(&client, &seed.pool, &member(&settings, &seed, platform.clone())?).await?;
    let generation = in_time("asking buildkitd for its storage", cache::generation(dir, &buildkit)).await?;

    prometheus::register(Box::new(PressureMetric::new(Slices::default())?))?;
    let hints = Hints::new(&settings, (&cell, platform), (epoch, generation), buildkit, settings.http_client()?)?;
    let reporter = tokio::spawn(hints.report(slots.clone(), unfit, stop.clone()));
    let ops = ops(&settings, &seed, epoch, client.clone(), slots, stop.clone());
    let keeper = tokio::spawn(keep_entity(client.clone(), seed, ops.heard.subscribe(), stop.clone()));
    let runtime = workers::runtime()?;
    tracing::info!(%cell, epoch, slots = settings.cell.slots, "builder is up");
    let grace = Duration::from_millis(settings.cell.drain_grace_ms);
    let ended = workers::cell(&runtime, &client, builder, ops, grace)?.run(stop).await;
    reporter.await.ok();
    keeper.await.ok();
    Ok(ended?)
}

async fn start_dns(settings: &Settings) -> anyhow::Result<Option<Dns>> {
    let Some(mut forwarder) = settings.forwarder() else { return Ok(None) };
    if forwarder.upstreams.is_empty() {
        forwarder.upstreams = resolvers::of_machine().context("dns.upstreams names no resolver")?;
        forwarder.upstreams.retain(|resolver| *resolver != forwarder.listen);
    }
    anyhow::ensure!(
        !forwarder.upstreams.is_empty(),
        "dns.listen is set, but dns.upstreams names no resolver, and neither does {}",
        resolvers::FILE
    );
    let upstreams = forwarder.upstreams.clone();
    let dns = Dns::start(forwarder).await?;
    tracing::info!(listen = %dns.address(), ?upstreams, "names are resolved here");
    Ok(Some(dns))
}

/// Checked beside everything else: time servers that do not answer hold nothing up.
fn start_clock(settings: &Settings, stop: &CancellationToken) -> Option<Clock> {
    let clock = Clock::new(settings.clock_checks()?);
    tokio::spawn(clock.clone().keep(stop.clone()));
    Some(clock)
}

fn seed(settings: &Settings, cell: &CellId) -> anyhow::Result<CellSeed> {
    let host = match settings.cell.host.as_str() {
        "" => None,
        host => Some(host.parse()?),
    };
    let clone_of = match settings.cell.clone_of.as_str() {
        "" => None,
        main => Some(main.parse()?),
    };
    let clocks = settings.cell.clocks.clone();
    Ok(CellSeed {
        host,
        clone_of,
        clocks,
        ..CellSeed::new(cell.clone(), settings.cell.pool.parse()?, settings.cell.slots)
    })
}

/// What the pool knows of the cell before its first hint.
fn member(settings: &Settings, seed: &CellSeed, platform: Platform) -> anyhow::Result<PoolMember> {
    let project = match settings.cell.project.as_str() {
        "" => None,
        project => Some(project.parse()?),
    };
    Ok(PoolMember {
        cell: seed.cell.clone(),
        state: CellState::Ready,
        platform,
        slots: seed.slots,
        host: seed.host.as_ref().map(ToString::to_string),
        image: None,
        project,
    })
}

/// What the cell builds for: the platform of the settings, if buildkitd reports it, or the first that buildkitd reports, its own.
fn platform(set: &str, workers: &[buildkit::Worker]) -> anyhow::Result<Platform> {
    let reported: Vec<_> = workers.iter().flat_map(|worker| &worker.platforms).map(String::as_str).collect();
    if !set.is_empty() {
        let there = reported.join(", ");
        anyhow::ensure!(reported.contains(&set), "cell.platform is {set}, and this buildkitd builds for {there}");
        return Ok(set.parse()?);
    }
    let own = reported.first().context("buildkitd reports no platform that it builds for")?;
    Ok(own.parse()?)
}

fn ops(
    settings: &Settings,
    seed: &CellSeed,
    epoch: u64,
    temporal: Client,
    slots: Slots,
    stop: CancellationToken,
) -> CellOps {
    CellOps {
        epoch,
        temporal,
        slots,
        canary: Canary::new(settings.cell.buildkit_socket.clone()),
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
    let (objects, egress) = (settings.objects()?, settings.egress(AGENT)?);
    let spool = settings.cell.dir.join("logs");
    let receiver = settings.log_receiver().context("tls.ca")?;
    let logs = LogShipper::start(receiver, settings.api.token.reveal(), &spool, settings.logs.spool_cap)
        .with_context(|| format!("starting the log spool in {}", spool.display()))?;
    Ok(Builder {
        cell,
        epoch,
        temporal,
        buildkit_socket: settings.cell.buildkit_socket.clone(),
        registries: Registries::patient(settings.registry.plain_http.clone(), egress.clone()),
        sealed: SealedStore::new(objects.clone(), &settings.seal.identity_file)?,
        files: SnapshotCache::open(&settings.cell.dir.join("files"), settings.cell.file_cache_cap)?,
        objects,
        ledger,
        logs,
        slots,
        egress,
        dns: None,
        clock: None,
        settings: BuilderSettings {
            heartbeat: HeartbeatSettings {
                interval: Duration::from_millis(settings.attempts.heartbeat_ms),
                cut_off_after: Duration::from_millis(settings.attempts.cut_off_after_ms),
            },
            stuck_after: Duration::from_secs(settings.cell.stuck_after_s),
            log_cap: settings.logs.build_cap,
            frontends: settings.cell.frontends.clone(),
            repositories: settings.registry.policy(),
            mirror: settings.registry.mirror.clone(),
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
    // Two builders of one epoch could not be told apart: a power cut must not take it back.
    durable::replace(&path, epoch.to_string().as_bytes())?;
    Ok(epoch)
}

/// A daemon's first solve takes longest, and the first that its Cell asks for is one: this one is beside what else the builder has to
/// do before it can be asked.
async fn warm_up(buildkit_socket: PathBuf) {
    if let Err(why) = Canary::new(buildkit_socket).once(&CancellationToken::new()).await {
        tracing::debug!(why, "the first canary was not solved");
    }
}

/// buildkitd is started beside the builder and may need some time.
async fn wait_for_buildkitd(socket: &Path) -> anyhow::Result<buildkit::Client> {
    let deadline = tokio::time::Instant::now() + BUILDKITD_PATIENCE;
    loop {
        let error = match tokio::time::timeout_at(deadline, answering(socket)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error.into(),
            Err(_) => anyhow::anyhow!("it takes connections and does not answer"),
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(error).with_context(|| format!("waiting for buildkitd at {}", socket.display()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn answering(socket: &Path) -> Result<buildkit::Client, buildkit::ClientError> {
    let client = buildkit::Client::connect_unix(socket).await?;
    client.info().await?;
    Ok(client)
}

/// What a start needs of a buildkitd that has answered once: one that stands still since then is not waited for. Whoever has started the
/// builder starts it again.
async fn in_time<T, E: Into<anyhow::Error>>(
    what: &str,
    asked: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(START_PATIENCE, asked).await {
        Ok(answered) => answered.map_err(Into::into),
        Err(_) => anyhow::bail!("{what}: not within {} s, does buildkitd stand still?", START_PATIENCE.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cells_platform_is_one_that_its_buildkitd_reports() {
        let worker = |platforms: &[&str]| buildkit::Worker {
            id: "w".into(),
            labels: Default::default(),
            platforms: platforms.iter().map(|platform| (*platform).to_owned()).collect(),
        };
        let arm = [worker(&["linux/arm64", "linux/amd64"])];
        assert_eq!(platform("", &arm).unwrap().as_str(), "linux/arm64");
        assert_eq!(platform("linux/amd64", &arm).unwrap().as_str(), "linux/amd64");
        assert!(platform("linux/s390x", &arm).is_err() && platform("", &[worker(&[])]).is_err());
    }
}
