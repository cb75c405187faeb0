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
//!                    └─────  unhealthy   its builds are told; host re-plugs it, else restarts it, twice at most, else it is taken out
//! ```
//!
//! | what happens | what follows |
//! |---|---|
//! | presence ends by silence | a check; only when that is not picked up either the cell is lost: a server outage loses nothing |
//! | a canary is not solved, or the builder cannot do as it is ordered | unhealthy |
//! | the builder does not answer | unhealthy; its host looks at the way there first: only where nothing was wrong, or mending it did not help, is it restarted |
//! | the builder obeys a later order | the server's clock was set back: ordered again, later than that, and not ready before it is obeyed |
//! | a builder that was started anew takes the check and says nothing | that was the former one, whose connection nobody closed: checked again |
//! | the host's agent does not answer | nothing is known to be wrong with the cell: asked again, with growing pauses |
//! | … and it was to stop an unhealthy cell | the outage may be the host's: a builder that did not answer is waited for meanwhile, another one checked before the host is asked again |
//! | unhealthy, no host | looked at again and again: somebody restarts the builder, or it comes back by itself |
//!
//! The workflow does one action at a time and tells its answer; when an action is no longer the next one (a signal came), it is
//! dropped. Only a clone is made beside. Everything here is bounded: lists, texts, and how often anything is tried without a pause.

mod answers;
mod orders;
#[cfg(test)]
mod tests;

pub use orders::Order;

use serde::{Deserialize, Serialize};

use crate::activities::{Announcement, PresenceEnd, TellOrder};
use crate::contract::{
    CellClocks, CellDetail, CellId, CellReport, CellState, CellStatus, DrainEnd, DrainStatus, HostId, PoolName,
    SignalRecord, Transition,
};

/// How many transitions and signals `status` remembers.
const MEMORY: usize = 16;
/// The longest text that is kept, characters.
const TEXT: usize = 300;
/// A drain without a deadline of its own ends what still runs after this; builds have time limits of their own before.
const DRAIN_LIMIT_MS: i64 = 24 * 3_600_000;
/// How long a cell's processes may take to end by themselves; its builds are gone by then.
const GRACE_MS: u64 = 2_000;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the host what runs.
    Inspect,
    /// Have the host start the cell, with another image if one is named.
    Start { image: Option<String> },
    /// Have the host stop it.
    Stop { grace_ms: u64 },
    /// Have the host mend the way to it.
    Replug,
    /// Have the host stop it and delete it with its disk.
    Delete { grace_ms: u64 },
    /// Look for the builder, and open or close its intake. In doubt who takes it (it may be a builder that is no more), its first sign
    /// of life is waited for no longer than a heartbeat.
    Check { patience_ms: u64, open: bool, in_doubt: bool },
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
        let by_the_builder =
            matches!(self, Self::Check { .. } | Self::Watch | Self::Close { .. } | Self::Settle { .. });
        by_the_builder || matches!(self, Self::Pause { .. } | Self::Rest)
    }
}

/// What a check said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    Passed(CellReport),
    /// The builder answered, buildkitd solved nothing.
    Sick(String),
    /// The builder answered that it cannot do what is asked.
    Failed(String),
    /// Nobody picked it up.
    Missing,
    /// Somebody did, and never answered.
    Unanswered,
    /// The builder that did was restarted.
    Restarted,
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
    Check {
        patience_ms: u64,
    },
    Watch,
    Close,
    Settle,
    Pause {
        until_ms: i64,
        /// Whether the builder is asked after it, whatever the state.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        check: bool,
    },
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
    /// Signals that are not in the audit log yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unaudited: Vec<SignalRecord>,
    /// Builds that have to be told.
    #[serde(default)]
    untold: Option<TellOrder>,
    /// The same of those that only a former builder took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<TellOrder>,
    #[serde(default)]
    second_tell: bool,
    /// Its builder was started anew, and has not answered since; checks that went to a former one since then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    anew: bool,
    #[serde(default)]
    unanswered: u32,
    /// The time of the last order to its intake that is known of, milliseconds since 1970.
    #[serde(default)]
    ordered_ms: i64,
    /// It is to be stopped because it does not answer: the way to it may be all that is wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    wedged: bool,
    /// The clone that is being made, or is to be when the cell is watched next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cloning: Option<CellId>,
    /// Its end is that of its disk, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    erase: bool,
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
    /// The cell that it was copied from.
    pub clone_of: Option<CellId>,
    pub clocks: CellClocks,
}

impl Life {
    /// A cell that is new here: what really runs is asked first.
    pub fn new(birth: Birth, now_ms: i64) -> Self {
        let Birth { cell, pool, slots, host, provision, clone_of, clocks } = birth;
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
            clone_of,
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
            unaudited: Vec::new(),
            untold: None,
            forgotten: None,
            anew: false,
            unanswered: 0,
            second_tell: false,
            ordered_ms: 0,
            wedged: false,
            cloning: None,
            erase: false,
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
            Stage::Stop if self.wedged => Action::Replug,
            Stage::Stop if self.is_to_be_erased() => Action::Delete { grace_ms: GRACE_MS },
            Stage::Stop => Action::Stop { grace_ms: GRACE_MS },
            Stage::Check { patience_ms } => {
                Action::Check { patience_ms, open: self.status.drain.is_none(), in_doubt: self.is_in_doubt() }
            }
            Stage::Watch => Action::Watch,
            Stage::Close => Action::Close { reason: self.reason() },
            Stage::Settle => Action::Settle { deadline_ms: self.drain_until_ms, reason: self.reason() },
            Stage::Pause { until_ms, .. } => Action::Pause { until_ms },
            Stage::Rest => Action::Rest,
            Stage::End => Action::End,
        }
    }

    /// The time to be put on an order to the builder's intake that is given now. Builders obey no order that is older than their last,
    /// and the server's clock may have been set back since.
    pub fn order_time(&mut self, now_ms: i64) -> i64 {
        self.ordered_ms = now_ms.max(self.ordered_ms.saturating_add(1));
        self.ordered_ms
    }

    /// The clone that the host is to make now, beside the next action: the cell goes on, and is watched.
    pub fn clone_to_make(&self) -> Option<&CellId> {
        self.cloning.as_ref().filter(|_| self.stage == Stage::Watch)
    }

    /// Whether the stop that is next is the end, of the disk too.
    fn is_to_be_erased(&self) -> bool {
        let drained = self.status.drain.as_ref().map(|drain| &drain.then);
        self.erase && self.work.as_ref().or(drained) == Some(&DrainEnd::Retire)
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
                clone_of: self.status.clone_of.clone(),
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

    /// Builds that wait for a builder which is no more and whose successor does not know of them, if there may be any.
    pub fn take_forgotten(&mut self) -> Option<TellOrder> {
        self.forgotten.take()
    }

    /// They could not be told. A later order stands: it says more.
    pub fn tell_forgotten_again(&mut self, order: TellOrder) {
        self.forgotten.get_or_insert(order);
    }

    /// Whether somebody has to be told something before the next action.
    pub fn has_news(&self) -> bool {
        self.unannounced || self.untold.is_some() || self.forgotten.is_some()
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
