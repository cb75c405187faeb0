//! The cell's clock: measured by time servers, set right where the builder may, and told of where it stays wrong.
//!
//! ```text
//! every `every`, and when TLS fails ─► measure ─┬─ off by less than 1 ms, or ──► right
//!                                               │  by no more than half the delay
//!                                               ├─ by less than `step` ────────► slewed: runs a little faster or slower
//!                                               ├─ by more ────────────────────► stepped
//!                                               └─ may not be set, or is not ──► stays; off by more than `limit`: no build begins
//! ```
//!
//! A clock that is far off makes good certificates look expired or not yet valid, signatures of requests stale, and package lists come from
//! the future, each with an error of its own that does not say why. So a cell whose clock is off by more than a limit takes
//! no build: what is sent to it goes elsewhere at no cost, and its hints say so. In a guest the host sets the clock at boot and after
//! each pause; this is what finds out when it did not.

mod adjust;
mod measure;
mod metrics;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::with_source;
use adjust::{Adjust, Kernel};
use measure::{Measured, measure};

/// Off by less, nothing is done: an exchange over a network is no better than that.
const RIGHT: f64 = 0.001;
/// A clock that was left wrong is looked at again so soon: the cell takes no builds meanwhile. Servers may turn those away who ask more
/// often.
const AGAIN: Duration = Duration::from_secs(15);
/// Two readings of when the machine was booted differ by less, unless the clock was set between them.
const SET: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq)]
pub struct ClockSettings {
    /// `host` or `host:port`; at least one.
    pub servers: Vec<String>,
    /// Between two checks.
    pub every: Duration,
    /// A clock that is off by more is of no use for TLS.
    pub limit: Duration,
    /// Off by less the clock is slewed, by more it is set.
    pub step: Duration,
    /// Whether the clock is set at all.
    pub adjust: bool,
}

/// A clock that is off by more than the limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Skew {
    /// By how much it is behind; negative when it is ahead.
    pub seconds: f64,
    /// By this server.
    pub by: String,
    pub limit: Duration,
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (off, way) = (self.seconds.abs(), if self.seconds < 0.0 { "ahead of" } else { "behind" });
        write!(
            f,
            "the cell's clock was found {off:.1} s {way} the time server {}: with more than {:.1} s no certificate can be checked",
            self.by,
            self.limit.as_secs_f64()
        )
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    settings: ClockSettings,
    machine: Box<dyn Adjust>,
    /// When the last check began. Held while the servers are asked.
    checked: tokio::sync::Mutex<Option<Instant>>,
    state: Mutex<State>,
    /// Whether the last check left it wrong.
    unfit: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// What the last check left wrong.
    left: Option<Left>,
    /// When a check last found the clock off, and by how much, whether it could be set right or not.
    off: Option<(Instant, Skew)>,
}

#[derive(Debug, Clone)]
struct Left {
    skew: Skew,
    /// When the machine was booted by the clock as it was then.
    booted: Option<Duration>,
}

impl Clock {
    /// The clock of this machine; nothing is asked or set yet.
    pub fn new(settings: ClockSettings) -> Self {
        Self::of(settings, Box::new(Kernel))
    }

    fn of(settings: ClockSettings, machine: Box<dyn Adjust>) -> Self {
        Self(Arc::new(Inner {
            settings,
            machine,
            checked: tokio::sync::Mutex::new(None),
            state: Mutex::default(),
            unfit: watch::Sender::new(false),
        }))
    }

    /// Checks at once and then again and again, until `stop`: sooner while it is wrong. Servers that do not answer are asked again at the
    /// next check.
    pub async fn keep(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.check().await;
            let every = self.0.settings.every;
            let pause = if *self.0.unfit.borrow() { every.min(AGAIN) } else { every };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Why nothing may be built by this clock, if so. One that was left wrong is looked at again: somebody may have set it. One that no
    /// server was heard of since it was set is good enough: nobody knows.
    pub async fn unfit(&self) -> Option<Skew> {
        self.state().left.as_ref()?;
        self.check().await;
        self.state().left.as_ref().map(|left| left.skew.clone())
    }

    /// Whether nothing may be built by it, as the last check left it; for hints.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.unfit.subscribe()
    }

    /// By how much the clock is off now, or was when a check last found it off since then, if that was too much.
    pub async fn off_since(&self, since: Instant) -> Option<Skew> {
        self.check().await;
        self.state().off.clone().filter(|(at, _)| *at >= since).map(|(_, skew)| skew)
    }

    /// Measures, and sets the clock right if it may.
    async fn check(&self) {
        let wanted = Instant::now();
        let mut checked = self.0.checked.lock().await;
        // Somebody else's check that began while this one waited is as good.
        if checked.is_some_and(|begun| begun >= wanted) {
            return;
        }
        *checked = Some(Instant::now());
        match measure(&self.0.settings.servers).await {
            Ok(measured) => self.found(&measured),
            Err(errors) => {
                metrics::checked("unanswered");
                let why: Vec<_> = errors.iter().map(|error| with_source(error)).collect();
                tracing::warn!(why = why.join("; "), "the clock could not be checked");
                self.forget_what_was_set();
            }
        }
    }

    fn found(&self, measured: &Measured) {
        let left = self.set_right(measured);
        metrics::OFFSET_SECONDS.set(left);
        self.leave(self.skew_of(left, measured));
        let mut state = self.state();
        if let Some(skew) = self.skew_of(measured.seconds, measured) {
            state.off = Some((Instant::now(), skew));
        }
    }

    /// What was found of a clock that somebody has set since then says nothing of it any more.
    fn forget_what_was_set(&self) {
        let Some(before) = self.state().left.as_ref().and_then(|left| left.booted) else { return };
        if self.0.machine.booted().is_ok_and(|now| now.abs_diff(before) >= SET) {
            self.leave(None);
        }
    }

    /// Says once that it is wrong, and once that it is right again.
    fn leave(&self, left: Option<Skew>) {
        let unfit = left.is_some();
        match (&left, *self.0.unfit.borrow()) {
            (Some(skew), false) => tracing::error!(%skew, "the cell takes no build"),
            (None, true) => tracing::info!("the cell takes builds again: its clock was set"),
            _ => {}
        }
        self.state().left = left.map(|skew| Left { skew, booted: self.0.machine.booted().ok() });
        self.0.unfit.send_if_modified(|before| std::mem::replace(before, unfit) != unfit);
    }

    fn skew_of(&self, seconds: f64, measured: &Measured) -> Option<Skew> {
        let limit = self.0.settings.limit;
        (seconds.abs() > limit.as_secs_f64() && !measured.may_be_none()).then(|| Skew {
            seconds,
            by: measured.by.clone(),
            limit,
        })
    }

    /// Nothing panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is still off by, seconds: a slewed clock for a while yet.
    fn set_right(&self, measured: &Measured) -> f64 {
        let (seconds, settings) = (measured.seconds, &self.0.settings);
        let (outcome, set) = match correction(measured, settings) {
            Correction::None => ("right", Ok(())),
            Correction::Leave => ("left", Ok(())),
            Correction::Slew => ("slewed", self.0.machine.slew(seconds)),
            Correction::Step => ("stepped", self.0.machine.step(seconds)),
        };
        if let Err(error) = set {
            metrics::checked("left");
            tracing::warn!(%error, seconds, "the clock is wrong and could not be set");
            return seconds;
        }
        metrics::checked(outcome);
        if outcome != "stepped" {
            return seconds;
        }
        tracing::warn!(seconds, by = measured.by, "the clock was behind by so much (negative: ahead) and has been set");
        0.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    None,
    /// It is wrong, and not ours to set.
    Leave,
    Slew,
    Step,
}

fn correction(measured: &Measured, settings: &ClockSettings) -> Correction {
    match measured.seconds.abs() {
        off if off < RIGHT => Correction::None,
        _ if measured.may_be_none() => Correction::None,
        _ if !settings.adjust => Correction::Leave,
        off if off < settings.step.as_secs_f64() => Correction::Slew,
        _ => Correction::Step,
    }
}
