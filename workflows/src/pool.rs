//! Pool: who is in a pool and how its ring is made, as an entity of a few events an hour, which lives for years.
//!
//! ```text
//! read the last view from the store ─► apply what was asked ─► write the view ─► wait for a signal ─┐
//!                                                ▲                                                  │
//!                                                └──────────────────────────────────────────────────┘
//! ```
//!
//! Cells announce themselves by `add`; operators `remove` and `set`. Placement reads the view in the store, never this workflow. A
//! Pool that was terminated goes on from the view it wrote last, so that versions only rise. Every signal is idempotent and decoded
//! from its raw value: a malformed one is recorded as refused, and the workflow lives on.

use std::time::{Duration, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use temporalio_common::data_converters::RawValue;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ContinueAsNewOptions, LocalActivityOptions, SyncWorkflowContext, WorkflowContext, WorkflowContextView,
    WorkflowResult, WorkflowTermination,
};

use crate::activities::{CellEntityActivities, PoolActivities, SignalAudit};
use crate::contract::{
    POOL_CELLS, PoolChange, PoolMember, PoolName, PoolSettings, PoolStatus, PoolView, RemoveMember, SetPool,
    SignalOutcome, SignalRecord, pool_workflow_id,
};
use crate::patches::AUDITED;

/// How many changes `status` remembers.
const MAX_CHANGES: usize = 16;
/// How many signals wait for the audit log while the store is away.
const MAX_UNAUDITED: usize = 64;
/// The longest host or image a member may name, bytes.
const MAX_TEXT: usize = 512;
/// The longest text about a change, characters.
const MAX_NOTE: usize = 512;
/// The entity starts over with a short history at least so often.
const ROLL_EVERY: Duration = Duration::from_secs(24 * 3600);
/// … or when its history has grown to so many events.
const ROLL_AT_EVENTS: u32 = 2000;
/// Between two tries to reach the store.
const STORE_PAUSE: Duration = Duration::from_secs(10);

/// What a Pool is started with, and what it carries over when it continues as new.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolSeed {
    pub pool: PoolName,
    #[serde(default)]
    pub carried: Option<PoolStatus>,
}

#[workflow]
pub struct Pool {
    status: PoolStatus,
    /// Asked and not yet applied.
    asked: Vec<Asked>,
    /// Placement does not know of the view yet.
    unwritten: bool,
    /// The view is this Pool's own, not a blank one.
    restored: bool,
    /// Operators' signals that are not in the audit log yet.
    unaudited: Vec<SignalRecord>,
}

/// A signal that could be decoded, and when it came.
struct Asked {
    what: Request,
    at_ms: i64,
}

enum Request {
    Add(Box<PoolMember>),
    Remove(RemoveMember),
    Set(SetPool),
}

impl Request {
    /// The signal's name, where operators send it; cells announce themselves.
    fn operators(&self) -> Option<&'static str> {
        match self {
            Self::Add(_) => None,
            Self::Remove(_) => Some("remove"),
            Self::Set(_) => Some("set"),
        }
    }
}

#[workflow_methods]
impl Pool {
    #[init]
    fn new(_ctx: &WorkflowContextView, seed: PoolSeed) -> Self {
        let restored = seed.carried.is_some();
        let blank = PoolView { pool: seed.pool, version: 0, settings: PoolSettings::default(), members: Vec::new() };
        let status = seed.carried.unwrap_or_else(|| PoolStatus { view: blank, changes: Vec::new() });
        // Written again after each roll: what the store has lost comes back within a day.
        Self { status, asked: Vec::new(), unwritten: true, restored, unaudited: Vec::new() }
    }

    #[run(name = "Pool")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<()> {
        let mut until_roll = ctx.timer(ROLL_EVERY);
        while !ctx.state(|s| s.restored) {
            restore(ctx).await;
        }
        loop {
            ctx.state_mut(Self::apply_asked);
            write(ctx).await;
            audit(ctx).await;
            let view = ctx.clone();
            let mut something = ctx.wait_condition(move |pool| pool.has_work() || must_roll(&view));
            temporalio_sdk::workflows::select! {
                _ = until_roll => break,
                waited = something => waited?,
            }
            if must_roll(ctx) {
                break;
            }
        }
        settle(ctx).await?;
        let seed = ctx.state(|s| PoolSeed { pool: s.status.view.pool.clone(), carried: Some(s.status.clone()) });
        ctx.continue_as_new(seed, ContinueAsNewOptions::default())?;
        Ok(())
    }

    /// Makes a cell a member, or replaces what is known of it. Payload: a [`PoolMember`].
    #[signal]
    pub fn add(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take("add", decode(&raw).map(|member| Request::Add(Box::new(member))), signal_time_ms(ctx));
    }

    /// Takes a cell out for good. Payload: `{cell}`.
    #[signal]
    pub fn remove(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take("remove", decode(&raw).map(Request::Remove), signal_time_ms(ctx));
    }

    /// Changes the pool's settings. Payload: a [`SetPool`].
    #[signal]
    pub fn set(&mut self, ctx: &mut SyncWorkflowContext<Self>, raw: RawValue) {
        self.take("set", decode(&raw).map(Request::Set), signal_time_ms(ctx));
    }

    #[query]
    pub fn status(&self, _ctx: &WorkflowContextView) -> PoolStatus {
        self.status.clone()
    }
}

impl Pool {
    fn take(&mut self, signal: &str, decoded: Result<Request, String>, at_ms: i64) {
        match decoded {
            Ok(what) => self.asked.push(Asked { what, at_ms }),
            Err(why) => {
                self.leave_to_audit(signal, SignalOutcome::Refused, why.clone(), at_ms);
                self.note(format!("{signal} refused: {why}"), at_ms);
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.asked.is_empty() || self.unwritten || !self.unaudited.is_empty()
    }

    fn leave_to_audit(&mut self, signal: &str, outcome: SignalOutcome, note: String, at_ms: i64) {
        if self.unaudited.len() == MAX_UNAUDITED {
            self.unaudited.remove(0);
        }
        self.unaudited.push(SignalRecord { at_ms, signal: signal.to_owned(), by: None, outcome, note });
    }

    fn apply_asked(&mut self) {
        for Asked { what, at_ms } in std::mem::take(&mut self.asked) {
            let signal = what.operators();
            let changed = change(&mut self.status.view, what);
            if let Some(signal) = signal {
                let (outcome, note) = match &changed {
                    Ok(None) => (SignalOutcome::Nothing, String::new()),
                    Ok(Some(what)) => (SignalOutcome::Done, what.clone()),
                    Err(why) => (SignalOutcome::Refused, why.clone()),
                };
                self.leave_to_audit(signal, outcome, note, at_ms);
            }
            match changed {
                Ok(None) => {}
                Ok(Some(what)) => {
                    self.status.view.version += 1;
                    self.unwritten = true;
                    self.note(what, at_ms);
                }
                Err(why) => self.note(why, at_ms),
            }
        }
    }

    /// A workflow that was reset to an earlier point finds a later version of its own in the store: this view is the truth, and goes
    /// over it.
    fn outran(&mut self, stands: u64) {
        if stands > self.status.view.version {
            self.status.view.version = stands + 1;
            self.unwritten = true;
        }
    }

    fn note(&mut self, what: String, at_ms: i64) {
        let changes = &mut self.status.changes;
        if changes.len() == MAX_CHANGES {
            changes.remove(0);
        }
        let what = what.chars().take(MAX_NOTE).collect();
        changes.push(PoolChange { at_ms, version: self.status.view.version, what });
    }
}

/// Makes one change: what it was, `None` when it was so already, or why it is refused.
fn change(view: &mut PoolView, request: Request) -> Result<Option<String>, String> {
    match request {
        Request::Add(member) => add(view, *member),
        Request::Remove(RemoveMember { cell }) => {
            let before = view.members.len();
            view.members.retain(|member| member.cell != cell);
            Ok((view.members.len() < before).then(|| format!("removed {cell}")))
        }
        Request::Set(set) => {
            let new = set.apply(view).map_err(|why| format!("set refused: {why}"))?;
            let changed = new != view.settings;
            view.settings = new;
            Ok(changed.then(|| "set".to_owned()))
        }
    }
}

fn add(view: &mut PoolView, member: PoolMember) -> Result<Option<String>, String> {
    let refuse = |why: &str| Err(format!("add of {} refused: {why}", member.cell));
    if !(1..=1024).contains(&member.slots) {
        return refuse("slots must be 1 to 1024");
    }
    if [&member.host, &member.image].into_iter().flatten().any(|text| text.len() > MAX_TEXT) {
        return refuse("host and image may have 512 bytes");
    }
    match view.members.binary_search_by(|other| other.cell.cmp(&member.cell)) {
        Ok(at) if view.members[at] == member => Ok(None),
        Ok(at) => {
            let what = format!("changed {}", member.cell);
            view.members[at] = member;
            Ok(Some(what))
        }
        Err(_) if view.members.len() >= POOL_CELLS => refuse("the pool is full"),
        Err(at) => {
            let what = format!("added {}", member.cell);
            view.members.insert(at, member);
            Ok(Some(what))
        }
    }
}

fn decode<T: DeserializeOwned>(raw: &RawValue) -> Result<T, String> {
    let payload = raw.payloads.first().ok_or("it has no payload")?;
    serde_json::from_slice(&payload.data).map_err(|error| error.to_string())
}

fn must_roll(ctx: &WorkflowContext<Pool>) -> bool {
    ctx.history_length() > ROLL_AT_EVENTS || ctx.continue_as_new_suggested()
}

fn local() -> LocalActivityOptions {
    LocalActivityOptions::builder()
        .start_to_close_timeout(Duration::from_secs(5))
        .schedule_to_close_timeout(Duration::from_secs(60))
        .build()
}

/// Goes on from what the store has: a former Pool of this name was terminated, or there was none.
async fn restore(ctx: &WorkflowContext<Pool>) {
    let name = ctx.state(|s| s.status.view.pool.clone());
    match ctx.execute_local_activity(PoolActivities::read_pool, name, local()).await {
        Ok(former) => ctx.state_mut(|s| {
            s.restored = true;
            s.status.view = former.unwrap_or_else(|| s.status.view.clone());
        }),
        Err(_) => {
            ctx.timer(STORE_PAUSE).await;
        }
    }
}

/// Leaves nothing asked behind: what came in while the view was written is applied and written as well.
async fn settle(ctx: &WorkflowContext<Pool>) -> Result<(), WorkflowTermination> {
    loop {
        let handlers = ctx.clone();
        ctx.wait_condition(move |_| handlers.all_handlers_finished()).await?;
        if ctx.state(|s| s.asked.is_empty()) {
            return Ok(());
        }
        ctx.state_mut(Pool::apply_asked);
        write(ctx).await;
        audit(ctx).await;
    }
}

/// Tells placement. A signal that comes in meanwhile is told in the next round.
async fn write(ctx: &WorkflowContext<Pool>) {
    if !ctx.state(|s| s.unwritten) {
        return;
    }
    let view = ctx.state_mut(|s| {
        s.unwritten = false;
        s.status.view.clone()
    });
    match ctx.execute_local_activity(PoolActivities::write_pool, view, local()).await {
        Ok(stands) => ctx.state_mut(|s| s.outran(stands)),
        Err(_) => {
            ctx.timer(STORE_PAUSE).await;
            ctx.state_mut(|s| s.unwritten = true);
        }
    }
}

/// Has operators' signals written to the audit log. Those that are not yet are written in the next round.
async fn audit(ctx: &WorkflowContext<Pool>) {
    let signals = ctx.state(|s| s.unaudited.clone());
    if signals.is_empty() {
        return;
    }
    let mut written = true;
    if AUDITED.leads(ctx) {
        let workflow_id = ctx.state(|s| pool_workflow_id(&s.status.view.pool));
        let order = SignalAudit { workflow_id, signals: signals.clone() };
        written = ctx.execute_local_activity(CellEntityActivities::audit_signals, order, local()).await.is_ok();
    }
    match written {
        true => ctx.state_mut(|s| s.unaudited.retain(|record| !signals.contains(record))),
        false => {
            ctx.timer(STORE_PAUSE).await;
        }
    }
}

fn signal_time_ms(ctx: &SyncWorkflowContext<Pool>) -> i64 {
    let since = ctx.workflow_time().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blank() -> PoolView {
        let (settings, members) = (PoolSettings::default(), Vec::new());
        PoolView { pool: "p".parse().unwrap(), version: 0, settings, members }
    }

    fn member(n: usize, slots: u32) -> PoolMember {
        serde_json::from_value(serde_json::json!({"cell": format!("c{n}"), "platform": "linux/amd64", "slots": slots}))
            .unwrap()
    }

    fn requests() -> impl Strategy<Value = Vec<(u8, usize, u32)>> {
        prop::collection::vec((0u8..3, 0usize..6, 0u32..4), 0..60)
    }

    fn request((kind, n, value): (u8, usize, u32)) -> Request {
        match kind {
            0 => Request::Add(Box::new(member(n, value))),
            1 => Request::Remove(RemoveMember { cell: format!("c{n}").parse().unwrap() }),
            _ => Request::Set(SetPool { homes: Some(value), ..SetPool::default() }),
        }
    }

    proptest! {
        /// Members stay sorted and single, settings valid, and what was refused or was so already changes nothing.
        #[test]
        fn a_view_is_valid_after_any_requests(requests in requests()) {
            let mut view = blank();
            for asked in requests {
                let before = view.clone();
                let changed = matches!(change(&mut view, request(asked)), Ok(Some(_)));
                prop_assert_eq!(changed, view != before);
                prop_assert!(!matches!(change(&mut view, request(asked)), Ok(Some(_))), "asked again, it changes nothing");
                prop_assert!(view.members.windows(2).all(|two| two[0].cell < two[1].cell));
                prop_assert!(view.members.iter().all(|member| member.slots >= 1) && view.settings.homes >= 1);
            }
        }
    }

    /// Reset to an earlier point, a Pool has a lower version than the store; what it says from then on must not be ignored there.
    #[test]
    fn a_pool_goes_over_a_later_version_of_its_own() {
        let status = PoolStatus { view: PoolView { version: 3, ..blank() }, changes: Vec::new() };
        let mut pool = Pool { status, asked: Vec::new(), unwritten: false, restored: true, unaudited: Vec::new() };
        pool.outran(3);
        assert_eq!((pool.status.view.version, pool.unwritten), (3, false));
        pool.outran(9);
        assert_eq!((pool.status.view.version, pool.unwritten), (10, true));
    }

    #[test]
    fn settings_out_of_bounds_are_refused_with_their_rule() {
        let mut view = blank();
        for (set, rule) in [
            (serde_json::json!({"homes": 0}), "homes is 0: must be 1 to 8"),
            (serde_json::json!({"points": 2000}), "points is 2000: must be 1 to 1024"),
            (serde_json::json!({"line": 65}), "line is 65: must be 0 to 64"),
            (serde_json::json!({"overflow": ["p"]}), "pool p cannot overflow into itself"),
            (serde_json::json!({"overflow": ["q", "q"]}), "overflow names pool q twice"),
            (
                serde_json::json!({"tenancy": "project"}),
                "no cell of pool p belongs to a project: set cell.project for its cells first",
            ),
        ] {
            let why = change(&mut view, Request::Set(serde_json::from_value(set).unwrap())).unwrap_err();
            assert_eq!(why, format!("set refused: {rule}"));
        }
        assert_eq!(view, blank());
        let own = PoolMember { project: Some("shop".parse().unwrap()), ..member(1, 1) };
        change(&mut view, Request::Add(Box::new(own))).unwrap();
        let set = serde_json::from_value(serde_json::json!({"tenancy": "project"})).unwrap();
        assert_eq!(change(&mut view, Request::Set(set)).unwrap().as_deref(), Some("set"));
    }
}
