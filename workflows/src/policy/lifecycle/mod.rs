//! A cell's life: the state it is in, and what is to be done next. Signals and answers in, the next action out.
//!
//! ```text
//!                    ┌─────────────────────────── restart, update ───────────────────────────┐
//!                    ▼                                                                       │
//! provisioning ─► starting ─► ready ⇄ draining ─► stopped ─► (updating) ─► starting      draining ─► deleted (retire)
//!  what runs      builder     presence  close intake,   host      host starts
//!  there?         answers?    watches   wait or move,   stops     another image
//!                    ▲           │      then …
//!                    │           ▼
//!                    └─────  unhealthy   its builds are told; host restarts it, twice at most, else it is taken out
//! ```
//!
//! | what happens | what follows |
//! |---|---|
//! | presence ends by silence | a check; only when that is not picked up either the cell is lost: a server outage loses nothing |
//! | a canary is not solved | unhealthy |
//! | the host's agent does not answer | nothing is known to be wrong with the cell: asked again, with growing pauses |
//! | unhealthy, no host | looked at again and again: somebody restarts the builder, or it comes back by itself |
//!
//! The workflow does one action at a time and tells its answer; when an action is no longer the next one (a signal came), it is
//! dropped. Everything here is bounded: lists, texts, and how often anything is tried without a pause.

mod orders;
#[cfg(test)]
mod tests;

pub use orders::Order;

use serde::{Deserialize, Serialize};

use crate::activities::{Announcement, PresenceEnd, TellOrder};
use crate::contract::{
    AttemptId, CellClocks, CellDetail, CellId, CellReport, CellState, CellStatus, DrainEnd, DrainStatus, HostCell,
    HostId, PoolName, SignalOutcome, Transition,
};

/// How many transitions and signals `status` remembers.
const MEMORY: usize = 16;
/// The longest text that is kept, characters.
const TEXT: usize = 300;
/// Restarts in vain before a cell is taken out.
const RESTARTS: u32 = 2;
/// A drain without a deadline of its own ends what still runs after this; builds have time limits of their own before.
const DRAIN_LIMIT_MS: i64 = 24 * 3_600_000;
/// A builder that takes longer than its deadline to let go gets so many times to do so.
const SETTLES: u32 = 3;
/// How long a cell's processes may take to end by themselves; its builds are gone by then.
const GRACE_MS: u64 = 2_000;
/// A build that was placed in the moment the cell was lost is in no list yet: its builds are told once more after this.
const SECOND_TELL_MS: i64 = 3_000;
/// The longest pause between two tries is the first one so many times doubled.
const DOUBLINGS: u32 = 5;
/// After a server outage builders take up to 12 s to poll again, so a check has this many times its patience.
const LATE: u64 = 4;
/// Presence that ended so often in a row soon after it began: the builder does not stay up.
const FLAPS: u32 = 5;
/// How long a check waits for a builder that nobody restarts, in looks (`retry_ms`).
const LONG: u64 = 20;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the host what runs.
    Inspect,
    /// Have the host start the cell, with another image if one is named.
    Start { image: Option<String> },
    /// Have the host stop it.
    Stop { grace_ms: u64 },
    /// Look for the builder, and open or close its intake.
    Check { patience_ms: u64, open: bool },
    /// Watch presence until it ends.
    Watch,
    /// Close the intake.
    Close { reason: String },
    /// Wait until nothing runs, and at the deadline move what does.
    Settle { deadline_ms: i64, reason: String },
    /// Wait until then.
    Pause { until_ms: i64 },
    /// Only a signal goes on from here.
    Rest,
    /// The cell's life is over.
    End,
}

impl Action {
    /// Whether it is dropped when another becomes the next one. What a host was ordered to do is waited for.
    pub fn can_be_dropped(&self) -> bool {
        !matches!(self, Self::Inspect | Self::Start { .. } | Self::Stop { .. } | Self::End)
    }
}

/// What a check said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    Passed(CellReport),
    /// The builder answered, buildkitd solved nothing.
    Sick(String),
    /// Nobody picked it up.
    Missing,
}

/// How presence, or another wait for the builder, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    Ended(PresenceEnd),
    /// Silence. `late`: it was noticed so late that the server itself must have been away.
    Lost {
        late: bool,
    },
}

/// Why a host did not do what it was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostTrouble {
    /// Its agent does not answer.
    Silent,
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Stage {
    Inspect,
    Start,
    Stop,
    Check { patience_ms: u64 },
    Watch,
    Close,
    Settle,
    Pause { until_ms: i64 },
    Rest,
    End,
}

/// A cell's life; what its workflow carries from run to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    status: CellStatus,
    stage: Stage,
    clocks: CellClocks,
    /// What the host was last asked to do it for, once the drain before it is over.
    #[serde(default)]
    work: Option<DrainEnd>,
    /// When what runs is moved, for the drain in force.
    #[serde(default)]
    drain_until_ms: i64,
    /// How often this drain was waited for.
    #[serde(default)]
    settles: u32,
    /// How often the host was asked in vain.
    #[serde(default)]
    silent: u32,
    #[serde(default)]
    since_ms: i64,
    #[serde(default)]
    ready_since_ms: Option<i64>,
    /// When presence was last begun to be watched, and how often in a row it ended soon after.
    #[serde(default)]
    watched_since_ms: i64,
    #[serde(default)]
    flaps: u32,
    /// Placement does not know of the state yet.
    #[serde(default)]
    unannounced: bool,
    /// Builds that have to be told.
    #[serde(default)]
    untold: Option<TellOrder>,
    #[serde(default)]
    second_tell: bool,
}

/// What is known of a cell when its life begins.
#[derive(Debug, Clone)]
pub struct Birth {
    pub cell: CellId,
    pub pool: PoolName,
    pub slots: u32,
    pub host: Option<HostId>,
    /// Nothing runs yet: the host has to start it.
    pub provision: bool,
    pub clocks: CellClocks,
}

impl Life {
    /// A cell that is new here: what really runs is asked first.
    pub fn new(birth: Birth, now_ms: i64) -> Self {
        let Birth { cell, pool, slots, host, provision, clocks } = birth;
        let (state, stage) = match (&host, provision) {
            (Some(_), true) => (CellState::Provisioning, Stage::Start),
            (Some(_), false) => (CellState::Provisioning, Stage::Check { patience_ms: clocks.lost_after_ms }),
            (None, _) => (CellState::Starting, Stage::Check { patience_ms: clocks.start_patience_ms }),
        };
        let status = CellStatus {
            cell,
            pool,
            state,
            why: None,
            slots,
            host,
            image: None,
            version: String::new(),
            epoch: 0,
            present: false,
            failures: 0,
            taken_out: false,
            drain: None,
            signals: Vec::new(),
            transitions: Vec::new(),
        };
        Self {
            status,
            stage,
            clocks,
            work: None,
            drain_until_ms: 0,
            settles: 0,
            silent: 0,
            since_ms: now_ms,
            ready_since_ms: None,
            watched_since_ms: 0,
            flaps: 0,
            unannounced: true,
            untold: None,
            second_tell: false,
        }
    }

    pub fn status(&self) -> &CellStatus {
        &self.status
    }

    pub fn clocks(&self) -> &CellClocks {
        &self.clocks
    }

    /// What is to be done next. The same until an answer or a signal changes it.
    pub fn next(&self) -> Action {
        match self.stage {
            Stage::Inspect => Action::Inspect,
            Stage::Start => Action::Start { image: self.image_wanted() },
            Stage::Stop => Action::Stop { grace_ms: GRACE_MS },
            Stage::Check { patience_ms } => Action::Check { patience_ms, open: self.status.drain.is_none() },
            Stage::Watch => Action::Watch,
            Stage::Close => Action::Close { reason: self.reason() },
            Stage::Settle => Action::Settle { deadline_ms: self.drain_until_ms, reason: self.reason() },
            Stage::Pause { until_ms } => Action::Pause { until_ms },
            Stage::Rest => Action::Rest,
            Stage::End => Action::End,
        }
    }

    fn image_wanted(&self) -> Option<String> {
        match &self.work {
            Some(DrainEnd::Update { image }) => Some(image.clone()),
            _ => None,
        }
    }

    /// What moved builds are told.
    fn reason(&self) -> String {
        let cell = &self.status.cell;
        match self.status.drain.as_ref().and_then(|drain| drain.request.reason.as_deref()) {
            Some(reason) => format!("cell {cell} is drained: {reason}"),
            None => format!("cell {cell} is drained"),
        }
    }

    /// What placement has to be told, if anything; taken by who tells it.
    pub fn take_announcement(&mut self) -> Option<Announcement> {
        std::mem::take(&mut self.unannounced).then(|| Announcement {
            cell: self.status.cell.clone(),
            state: self.status.state,
            detail: CellDetail {
                host: self.status.host.clone(),
                image: self.status.image.clone(),
                why: self.status.why.clone(),
                taken_out: self.status.taken_out,
                since_ms: self.since_ms,
            },
            pool: Some(self.status.pool.clone()),
        })
    }

    /// The announcement was not heard.
    pub fn announce_again(&mut self) {
        self.unannounced = true;
    }

    /// Which builds have to be told, if any; taken by who tells them.
    pub fn take_untold(&mut self) -> Option<TellOrder> {
        self.untold.take()
    }

    /// The builds could not be told. A later order stands.
    pub fn tell_again(&mut self, order: TellOrder) {
        self.untold.get_or_insert(order);
    }

    /// Whether somebody has to be told something before the next action.
    pub fn has_news(&self) -> bool {
        self.unannounced || self.untold.is_some()
    }

    // Answers. One that no longer fits the state (a signal came in between) is dropped by the workflow and never told here.

    /// A check ended.
    pub fn checked(&mut self, answer: Checked, now_ms: i64) {
        match answer {
            Checked::Passed(report) => self.check_passed(report, now_ms),
            Checked::Sick(why) => self.check_failed(cut(&format!("buildkitd does not solve: {why}")), now_ms),
            Checked::Missing => match self.status.state {
                CellState::Provisioning => self.stage = Stage::Inspect,
                CellState::Unhealthy => self.stage = self.look(),
                _ => self.check_failed("its builder does not answer".to_owned(), now_ms),
            },
        }
    }

    fn check_passed(&mut self, report: CellReport, now_ms: i64) {
        self.adopt(&report);
        self.silent = 0;
        self.watched_since_ms = now_ms;
        let came_back = !matches!(self.status.state, CellState::Ready | CellState::Draining);
        if came_back {
            self.work = None;
            self.status.why = None;
        }
        match &self.status.drain {
            None => self.be_ready(now_ms),
            Some(_) => {
                self.enter(CellState::Draining, "draining", now_ms);
                match report.open {
                    true => self.stage = Stage::Close,
                    false => self.closed(Some(report), now_ms),
                }
            }
        }
    }

    /// What really runs there.
    fn adopt(&mut self, report: &CellReport) {
        let status = &mut self.status;
        status.present = true;
        (status.epoch, status.slots) = (report.epoch, report.slots);
        status.version = cut(&report.version);
        if report.host.is_some() && status.host != report.host {
            status.host.clone_from(&report.host);
            self.unannounced = true;
        }
        self.clocks = report.clocks.clone();
    }

    fn be_ready(&mut self, now_ms: i64) {
        self.stage = Stage::Watch;
        if self.status.state != CellState::Ready {
            self.ready_since_ms = Some(now_ms);
            self.enter(CellState::Ready, "ready", now_ms);
            self.close_records(SignalOutcome::Done);
        }
    }

    fn check_failed(&mut self, why: String, now_ms: i64) {
        match (self.status.state, &self.status.host) {
            (CellState::Unhealthy, None) => {
                self.status.why = Some(why);
                self.unannounced = true;
                self.stage = Stage::Pause { until_ms: now_ms + self.retry_ms() };
            }
            _ => self.fall_ill(why, now_ms),
        }
    }

    /// Presence ended, or a wait for the builder was lost.
    pub fn watched(&mut self, how: Watched, now_ms: i64) {
        self.status.present = false;
        let short = now_ms - self.watched_since_ms < i64::try_from(self.clocks.lost_after_ms).unwrap_or(0);
        self.flaps = if short { self.flaps + 1 } else { 0 };
        match how {
            Watched::Ended(PresenceEnd::Sick { why }) => {
                self.fall_ill(cut(&format!("buildkitd does not solve: {why}")), now_ms);
            }
            _ if self.flaps >= FLAPS => self.fall_ill("its builder does not stay up".to_owned(), now_ms),
            Watched::Ended(PresenceEnd::Restarted) => self.stage = self.check_soon(false),
            Watched::Ended(PresenceEnd::Stopping { running }) => self.builder_ends(running, now_ms),
            Watched::Lost { late } => self.stage = self.check_soon(late),
        }
    }

    fn check_soon(&self, late: bool) -> Stage {
        let patience_ms = self.clocks.lost_after_ms;
        Stage::Check { patience_ms: if late { patience_ms * LATE } else { patience_ms } }
    }

    /// In order, and not by this Cell's order: whoever did it starts it again.
    fn builder_ends(&mut self, running: Vec<AttemptId>, now_ms: i64) {
        self.stage = Stage::Check { patience_ms: self.clocks.start_patience_ms };
        if self.status.state == CellState::Ready {
            self.enter(CellState::Stopped, "its builder was told to end", now_ms);
            let reason = format!("the builder of cell {} ends", self.status.cell);
            self.tell(TellOrder { cell: self.status.cell.clone(), lost: false, except: running, reason });
        }
    }

    /// The intake was closed; `None` when nobody answered.
    pub fn closed(&mut self, report: Option<CellReport>, now_ms: i64) {
        let Some(report) = report else {
            self.stage = self.check_soon(false);
            return;
        };
        let reason = self.reason();
        let Some(drain) = &mut self.status.drain else { return };
        let first = !std::mem::replace(&mut drain.closed, true);
        drain.idle = report.running.is_empty();
        if first {
            let (cell, except) = (self.status.cell.clone(), report.running);
            self.tell(TellOrder { cell, lost: false, except, reason });
        }
        self.after_drain_step(now_ms);
    }

    /// A wait for the running builds ended; `None` when it was lost.
    pub fn settled(&mut self, report: Option<CellReport>, now_ms: i64) {
        self.settles += 1;
        let Some(report) = report else {
            self.stage = self.check_soon(false);
            return self.stop_waiting(now_ms);
        };
        if let Some(drain) = &mut self.status.drain {
            drain.idle = report.running.is_empty();
        }
        self.after_drain_step(now_ms);
        self.stop_waiting(now_ms);
    }

    /// A drain always ends: a builder that does not let go counts as ill, and its builds are told.
    fn stop_waiting(&mut self, now_ms: i64) {
        let waits = self.status.drain.as_ref().is_some_and(|drain| !drain.idle);
        if waits && self.settles >= SETTLES && now_ms >= self.drain_until_ms {
            self.fall_ill("its builder does not let go of its builds".to_owned(), now_ms);
        }
    }

    fn after_drain_step(&mut self, now_ms: i64) {
        let Some(drain) = &self.status.drain else { return };
        let (closed, idle, then) = (drain.closed, drain.idle, drain.then.clone());
        self.stage = match (closed, idle, then) {
            (false, _, _) => Stage::Close,
            (true, false, _) => Stage::Settle,
            (true, true, DrainEnd::Stay) => {
                if self.close_records(SignalOutcome::Done) {
                    self.note("drained: nothing runs here", now_ms);
                }
                Stage::Watch
            }
            (true, true, _) => Stage::Stop,
        };
    }

    fn delete(&mut self, now_ms: i64) {
        (self.status.drain, self.work) = (None, None);
        self.status.present = false;
        self.enter(CellState::Deleted, "retired", now_ms);
        self.close_records(SignalOutcome::Done);
        self.stage = Stage::End;
    }

    /// The host said what runs.
    pub fn inspected(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(cell) => {
                let running = cell.running;
                self.host_says(cell);
                match running {
                    true => self.await_builder("it runs on its host", now_ms),
                    false => self.stage = Stage::Start,
                }
            }
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    /// The host stopped the cell.
    pub fn stopped(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(cell) => {
                self.host_says(cell);
                self.status.present = false;
                self.go_on_stopped(now_ms);
            }
            Err(HostTrouble::Failed(why)) if self.status.state == CellState::Unhealthy => {
                self.status.failures += 1;
                self.fall_ill(cut(&format!("its host cannot stop it: {why}")), now_ms);
            }
            Err(HostTrouble::Failed(why)) => self.fall_ill(cut(&format!("its host cannot stop it: {why}")), now_ms),
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    fn go_on_stopped(&mut self, now_ms: i64) {
        if self.status.state == CellState::Unhealthy {
            if self.work == Some(DrainEnd::Retire) {
                return self.delete(now_ms);
            }
            self.status.failures += 1;
            self.tell_lost();
            self.stage = Stage::Start;
            return;
        }
        // A drain that is to stay was asked for while the host already stopped the cell: it holds after the start.
        if let Some(drain) = self.status.drain.take_if(|drain| drain.then != DrainEnd::Stay) {
            self.work = Some(drain.then);
        }
        match &self.work {
            Some(DrainEnd::Retire) => return self.delete(now_ms),
            Some(DrainEnd::Update { image }) => {
                let what = format!("updating to {image}");
                self.enter(CellState::Updating, &what, now_ms);
            }
            _ => self.enter(CellState::Stopped, "stopped", now_ms),
        }
        self.stage = Stage::Start;
    }

    /// The host started the cell.
    pub fn started(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(cell) => {
                self.host_says(cell);
                self.await_builder("started", now_ms);
            }
            Err(HostTrouble::Failed(why)) => self.fall_ill(cut(&format!("its host cannot start it: {why}")), now_ms),
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    fn host_says(&mut self, cell: HostCell) {
        self.silent = 0;
        if cell.image.is_some() {
            self.status.image = cell.image.map(|image| cut(&image));
        }
    }

    fn await_builder(&mut self, what: &str, now_ms: i64) {
        self.enter(CellState::Starting, what, now_ms);
        self.stage = Stage::Check { patience_ms: self.clocks.start_patience_ms };
    }

    /// A host that does not answer is no fault of the cell.
    fn ask_later(&mut self, trouble: HostTrouble, now_ms: i64) {
        let host = self.status.host.as_ref().map_or_else(String::new, ToString::to_string);
        self.status.why = Some(match trouble {
            HostTrouble::Silent => format!("the agent of host {host} does not answer"),
            HostTrouble::Failed(why) => cut(&format!("host {host}: {why}")),
        });
        self.unannounced = true;
        let pause = self.retry_ms() << self.silent.min(DOUBLINGS);
        self.silent = self.silent.saturating_add(1);
        self.stage = Stage::Pause { until_ms: now_ms + pause };
    }

    fn retry_ms(&self) -> i64 {
        i64::try_from(self.clocks.retry_ms).unwrap_or(i64::MAX / 64).clamp(1, 3_600_000)
    }

    /// A pause is over.
    pub fn paused(&mut self) {
        if std::mem::take(&mut self.second_tell) {
            self.tell_lost();
        }
        self.stage = match self.status.state {
            CellState::Unhealthy => self.look(),
            CellState::Provisioning | CellState::Starting => Stage::Inspect,
            CellState::Stopped | CellState::Updating => Stage::Start,
            CellState::Draining => Stage::Stop,
            CellState::Ready | CellState::Deleted => self.check_soon(false),
        };
    }

    /// What is done about an unhealthy cell.
    fn look(&self) -> Stage {
        match self.status.host {
            Some(_) => Stage::Stop,
            None => Stage::Check { patience_ms: self.clocks.retry_ms * LONG },
        }
    }

    /// The cell is of no use now: its builds go elsewhere, and its host restarts it.
    fn fall_ill(&mut self, why: String, now_ms: i64) {
        let stable = i64::try_from(self.clocks.stable_ms).unwrap_or(i64::MAX);
        if self.ready_since_ms.take().is_some_and(|since| now_ms - since >= stable) {
            self.status.failures = 0;
        }
        if let Some(drain) = self.status.drain.take_if(|drain| drain.then != DrainEnd::Stay) {
            self.work = Some(drain.then);
        }
        if let Some(drain) = &mut self.status.drain {
            (drain.closed, drain.idle) = (false, false);
        }
        (self.settles, self.flaps, self.status.present) = (0, 0, false);
        self.status.why = Some(why.clone());
        self.enter(CellState::Unhealthy, &why, now_ms);
        self.tell_lost();
        match &self.status.host {
            None => {
                self.second_tell = true;
                self.stage = Stage::Pause { until_ms: now_ms + SECOND_TELL_MS };
            }
            Some(_) if self.status.failures >= RESTARTS => self.take_out(&why, now_ms),
            Some(_) => self.stage = Stage::Stop,
        }
    }

    fn take_out(&mut self, why: &str, now_ms: i64) {
        let what = cut(&format!("taken out after {RESTARTS} restarts in vain: {why}"));
        self.status.taken_out = true;
        self.status.why = Some(what.clone());
        self.note(&what, now_ms);
        self.work = None;
        self.close_records(SignalOutcome::Failed);
        self.stage = Stage::Rest;
    }

    fn tell_lost(&mut self) {
        let why = self.status.why.clone().unwrap_or_default();
        let reason = cut(&format!("cell {} is unhealthy: {why}", self.status.cell));
        self.tell(TellOrder { cell: self.status.cell.clone(), lost: true, except: Vec::new(), reason });
    }

    /// One order at a time; that of a lost cell covers any other.
    fn tell(&mut self, order: TellOrder) {
        if order.lost || !self.untold.as_ref().is_some_and(|before| before.lost) {
            self.untold = Some(order);
        }
    }

    fn enter(&mut self, state: CellState, what: &str, now_ms: i64) {
        if self.status.state != state {
            self.status.state = state;
            self.since_ms = now_ms;
            self.note(what, now_ms);
        }
    }

    /// Remembers what happened; lists show it.
    fn note(&mut self, what: &str, now_ms: i64) {
        let transition = Transition { at_ms: now_ms, state: self.status.state, what: cut(what) };
        push(&mut self.status.transitions, transition);
        self.unannounced = true;
    }
}

/// The drain of a request, not begun.
fn drain_of(request: crate::contract::DrainRequest, then: DrainEnd) -> DrainStatus {
    DrainStatus { request, then, closed: false, idle: false }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() >= MEMORY {
        list.remove(0);
    }
    list.push(item);
}

/// Texts come from people and programs: what is kept has a limit.
fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
