//! Tells those who wait for a build that it has changed, within milliseconds, without asking Temporal.
//!
//! Control writes a run's final state to the store before the workflow closes, and control is another process: so one task asks
//! the store, for all waiting clients together, many times a second while there are any. A run nobody recorded (its workflow
//! was terminated, or control could not write) is found by asking Temporal, every few seconds while somebody waits and now and
//! then for all open runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use activities::store::{BuildRow, RunKey, Store};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use workflows::contract::BuildStatus;

use super::engine::{Engine, Standing, forgotten};

/// Between two looks at the store while somebody waits; more with many waiting, to stay cheap.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_MORE: Duration = Duration::from_micros(250);
/// After the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Between two questions to Temporal about the runs somebody waits for.
const ASK: Duration = Duration::from_secs(3);
/// Between two questions to Temporal about all open runs, and how old a run must be for it.
const SWEEP: Duration = Duration::from_secs(30);
const SWEEP_AGE_MS: i64 = 30_000;
const SWEEP_LIMIT: u32 = 500;

/// A run's status; `None` while the store does not know the run.
type Seen = Option<BuildStatus>;

/// Where those who wait for a run subscribe.
#[derive(Debug, Default)]
pub struct Watcher {
    runs: Mutex<HashMap<RunKey, watch::Sender<Seen>>>,
    wanted: Notify,
}

impl Watcher {
    /// The status of a run from now on.
    pub fn subscribe(&self, run: &RunKey, now: BuildStatus) -> watch::Receiver<Seen> {
        let receiver = self.lock().entry(run.clone()).or_insert_with(|| watch::Sender::new(Some(now))).subscribe();
        self.wanted.notify_one();
        receiver
    }

    fn watched(&self) -> Vec<RunKey> {
        let mut runs = self.lock();
        runs.retain(|_, seen| seen.receiver_count() > 0);
        runs.keys().cloned().collect()
    }

    fn saw(&self, run: &RunKey, status: BuildStatus) {
        if let Some(seen) = self.lock().get(run) {
            seen.send_if_modified(|seen| seen.replace(status) != Some(status));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunKey, watch::Sender<Seen>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches until `stop`.
pub async fn run(watcher: Arc<Watcher>, store: Store, engine: Arc<Engine>, stop: CancellationToken) {
    let watch = async {
        tokio::join!(look(&watcher, &store), ask(&watcher, &store, &engine), sweep(&store, &engine));
    };
    stop.run_until_cancelled(watch).await;
}

async fn look(watcher: &Watcher, store: &Store) {
    loop {
        let runs = watcher.watched();
        if runs.is_empty() {
            watcher.wanted.notified().await;
            continue;
        }
        match store.run_states(&runs).await {
            Ok(states) => {
                states.iter().for_each(|(run, status)| watcher.saw(run, *status));
                let more = u32::try_from(runs.len()).unwrap_or(u32::MAX);
                tokio::time::sleep(LOOK + LOOK_MORE * more).await;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "clients wait for news of their builds");
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
    }
}

async fn ask(watcher: &Watcher, store: &Store, engine: &Engine) {
    loop {
        tokio::time::sleep(ASK).await;
        let open = watcher.watched();
        for run in open {
            match store.run(&run).await {
                Ok(Some(row)) if !row.status.is_final() => reconcile_or_warn(store, engine, row).await,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the store does not answer"),
            }
        }
    }
}

async fn sweep(store: &Store, engine: &Engine) {
    let mut next = Instant::now() + SWEEP;
    let start = (i64::MIN, String::new());
    let mut after = start.clone();
    loop {
        tokio::time::sleep_until(next).await;
        next = Instant::now() + SWEEP;
        let before = jiff::Timestamp::now().as_millisecond() - SWEEP_AGE_MS;
        match store.open_runs(before, &after, SWEEP_LIMIT).await {
            Ok(rows) => {
                // Where more are open than one sweep looks at, the next one goes on with the others.
                let full = rows.len() >= SWEEP_LIMIT as usize;
                let last = rows.last().filter(|_| full).map(|row| (row.created_ms, row.run_id.clone()));
                after = last.unwrap_or_else(|| start.clone());
                for row in rows {
                    reconcile_or_warn(store, engine, row).await;
                }
            }
            Err(error) => tracing::debug!(%error, "the store does not answer"),
        }
    }
}

async fn reconcile_or_warn(store: &Store, engine: &Engine, row: BuildRow) {
    let run = row.run();
    if let Err(error) = reconcile(store, engine, row).await {
        tracing::debug!(error = &*error, ?run, "it is not known whether an open build still runs");
    }
}

/// Records a run that has closed without control having written so. Control writes before the workflow closes, so a closed
/// run that the store still shows as open is one nobody will write any more. A run that Temporal does not know is recorded as
/// failed: its retention is over, or its namespace is another one.
pub async fn reconcile(
    store: &Store,
    engine: &Engine,
    row: BuildRow,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let result = match engine.standing(&row.run()).await? {
        Standing::Open => return Ok(()),
        Standing::Closed(result) => *result,
        Standing::Unknown => forgotten(),
    };
    tracing::info!(workflow_id = row.workflow_id, status = result.status.as_str(), "a build closed unrecorded");
    let ended_ms = Some(jiff::Timestamp::now().as_millisecond());
    store.record_build(&BuildRow { status: result.status, result: Some(result), ended_ms, ..row }).await?;
    Ok(())
}
