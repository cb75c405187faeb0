//! What the builder tells the api of its cell: state, slots, what its cache holds. Hints may be lost or stale: nothing waits for them.

use std::path::PathBuf;
use std::time::Duration;

use activities::build::Slots;
use activities::cache;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workflows::contract::{CellFacts, CellHint, CellId, CellState, Platform};

use crate::settings::Settings;

/// Hints are sent at each change and at least so often.
const HINT_EVERY: Duration = Duration::from_secs(10);
/// How long the api may take for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// The cache is measured so often.
const MEASURE_EVERY: Duration = Duration::from_secs(60);

/// What is said, and to whom.
pub struct Hints {
    http: reqwest::Client,
    url: String,
    token: String,
    /// On the cache disk.
    dir: PathBuf,
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
    pub fn new(
        settings: &Settings,
        (cell, platform): (&CellId, Platform),
        disk: (u64, u64),
        buildkit: buildkit::Client,
        http: reqwest::Client,
    ) -> anyhow::Result<Self> {
        let (epoch, generation) = disk;
        let hint = CellHint {
            cell: cell.clone(),
            pool: settings.cell.pool.parse()?,
            platform,
            state: CellState::Ready,
            slots: settings.cell.slots,
            busy: 0,
            epoch,
            generation,
            sequence: 0,
            reported_ms: 0,
        };
        let facts = CellFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: i64::try_from(now_ms()).unwrap_or(i64::MAX),
            unlimited: settings.cell.unlimited.clone(),
            ..CellFacts::default()
        };
        Ok(Self {
            http,
            url: format!("{}/v1/cells/hints", settings.api.url.trim_end_matches('/')),
            token: settings.api.token.reveal().to_owned(),
            dir: settings.cell.dir.clone(),
            buildkit,
            said: Said { hint, facts },
            measured: None,
        })
    }

    /// Until `stop`; the last hint says that the cell takes no builds. `unfit` is whether its clock is of no use.
    pub async fn report(mut self, slots: Slots, mut unfit: watch::Receiver<bool>, stop: CancellationToken) {
        let mut views = slots.watch();
        while !stop.is_cancelled() {
            let view = *views.borrow_and_update();
            let hint = &mut self.said.hint;
            (hint.slots, hint.busy) = (view.slots, view.busy);
            hint.state = state(view.open, *unfit.borrow_and_update());
            (self.said.facts.steps, self.said.facts.cached_steps) = slots.steps();
            let heard = self.send().await;
            // An api that does not answer is asked again soon: until it has a hint, the cell gets no builds.
            let pause = if heard { HINT_EVERY } else { Duration::from_secs(1) };
            tokio::select! {
                _ = views.changed() => {}
                // Without a clock that is checked there is nobody to change it.
                Ok(()) = unfit.changed() => {}
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
            if self.said.facts.cache_bytes.replace(bytes).is_some_and(|before| was_pruned(before, bytes)) {
                self.raise_generation();
            }
        }
    }

    fn raise_generation(&mut self) {
        match cache::raise(&self.dir) {
            Ok(generation) => {
                tracing::info!(generation, "the cache was pruned: what was warm here counts as cold");
                self.said.hint.generation = generation;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the cache was pruned, and its generation stays");
            }
        }
    }

    async fn send(&mut self) -> bool {
        self.said.hint.sequence += 1;
        let request = self.http.post(&self.url).bearer_auth(&self.token).timeout(PATIENCE);
        let sent = request.json(&self.said).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "a hint was not taken");
                false
            }
        }
    }
}

/// A cell that would only turn builds away says so: else it would be chosen again and again.
fn state(open: bool, unfit: bool) -> CellState {
    match (open, unfit) {
        (false, _) => CellState::Draining,
        (true, true) => CellState::Unhealthy,
        (true, false) => CellState::Ready,
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The daemon's own collection takes away what is over its limit. Where more than half is gone between two measurements, somebody
/// pruned the cache, and no project can be expected to find its steps there.
fn was_pruned(before: u64, now: u64) -> bool {
    now < before / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_lost_more_than_half_was_pruned() {
        assert!(was_pruned(1000, 0) && was_pruned(1000, 499));
        assert!(!was_pruned(1000, 500) && !was_pruned(1000, 1000) && !was_pruned(1000, 2000) && !was_pruned(0, 0));
    }

    #[test]
    fn a_cell_that_takes_no_builds_is_not_told_as_ready() {
        let states =
            [(true, false), (true, true), (false, false), (false, true)].map(|(open, unfit)| state(open, unfit));
        assert_eq!(states, [CellState::Ready, CellState::Unhealthy, CellState::Draining, CellState::Draining]);
    }
}
