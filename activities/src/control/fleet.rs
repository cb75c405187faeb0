//! What control remembers of pools and cells between two admits: rings, hints, orders. And what it has sent and not yet recorded.
//!
//! ```text
//! begin reading ─► facts from the store ─► learn the news, decide ─► record the build ─► placement over
//!      └ ticket                                └ placement: counted by every reading that began before it was recorded
//! ```
//!
//! Each admit asks the store for what has changed, so nothing here is older than the admit itself; and everything is read anew each
//! [`WHOLE_EVERY`], in case a change was missed. Decisions are made under one lock: builds that come together do not all take the
//! same free slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use workflows::contract::{
    CellHint, CellId, CellState, Platform, PoolMember, PoolName, PoolSettings, PoolView, ProjectName,
};
use workflows::policy::{Candidate, Choice, Load, PoolMap, Wanted, Warm, choose};

use crate::store::{Facts, News, Seen};

/// How often everything is read anew.
const WHOLE_EVERY: Duration = Duration::from_secs(10);

/// Shared by all admits of a control process.
#[derive(Default)]
pub struct Fleet {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Option<Seen>,
    whole_at: Option<Instant>,
    hints: BTreeMap<CellId, (i64, CellHint)>,
    orders: BTreeMap<CellId, (i64, CellState)>,
    pools: BTreeMap<PoolName, Known>,
    /// Counts readings and the ends of placements.
    ticket: u64,
    reading: BTreeSet<u64>,
    placements: BTreeMap<u64, Sent>,
}

/// A pool with what is known of its cells.
struct Known {
    /// Its view's number in the store; `None` when there is no view and the hints say who is in it.
    seq: Option<i64>,
    map: PoolMap,
    loads: Vec<Load>,
}

/// A build that was sent to a cell.
struct Sent {
    cell: CellId,
    project: ProjectName,
    /// Readings from this ticket on see its row in the store.
    recorded: Option<u64>,
}

/// What a build asks for.
pub struct Ask<'a> {
    pub pool: &'a PoolName,
    pub project: &'a ProjectName,
    pub platform: &'a Platform,
    pub now_ms: u64,
    pub exclude: &'a [CellId],
    /// The most builds of the project that may run; absent when the build holds its place already.
    pub cap: Option<u32>,
}

/// What is decided.
#[derive(Debug)]
pub enum Decision {
    Chosen(Choice),
    /// As many of the project's builds run as may, or wait for longer.
    OverCap {
        running: u32,
        ahead: u32,
    },
    /// No cell can be used; why.
    NoCell(String),
    /// No cell of the pool, or of those that it overflows into, is of the platform; why.
    NoPlatform(String),
    /// There is no such pool; these there are.
    NoPool(Vec<PoolName>),
}

/// One look at the store; from before its query to the decision.
pub struct Reading<'a> {
    fleet: &'a Fleet,
    ticket: u64,
    pub seen: Seen,
}

/// A decision that is not in the store yet. Dropped when it is, or when it will not be.
pub struct Placement<'a> {
    fleet: &'a Fleet,
    number: u64,
}

impl Fleet {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self) -> Reading<'_> {
        let mut state = self.state();
        state.ticket += 1;
        let ticket = state.ticket;
        state.reading.insert(ticket);
        let stale = state.whole_at.is_none_or(|at| at.elapsed() >= WHOLE_EVERY);
        let seen = if stale { Seen::NOTHING } else { state.seen.unwrap_or(Seen::NOTHING) };
        Reading { fleet: self, ticket, seen }
    }
}

impl<'a> Reading<'a> {
    /// Learns what is new, then decides. What was chosen counts as sent until the placement is dropped.
    pub fn decide(self, facts: &Facts, ask: &Ask<'_>) -> (Decision, Option<Placement<'a>>) {
        let mut state = self.fleet.state();
        state.learn(&facts.news, self.seen == Seen::NOTHING);
        let decision = state.decide(self.ticket, facts, ask);
        let Decision::Chosen(choice) = &decision else { return (decision, None) };
        state.ticket += 1;
        let number = state.ticket;
        let sent = Sent { cell: choice.cell.clone(), project: ask.project.clone(), recorded: None };
        state.placements.insert(number, sent);
        (decision, Some(Placement { fleet: self.fleet, number }))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.fleet.state();
        state.reading.remove(&self.ticket);
        let oldest = state.reading.first().copied().unwrap_or(u64::MAX);
        state.placements.retain(|_, sent| sent.recorded.is_none_or(|recorded| recorded > oldest));
    }
}

impl Drop for Placement<'_> {
    fn drop(&mut self) {
        let mut state = self.fleet.state();
        state.ticket += 1;
        let recorded = state.ticket;
        if state.reading.is_empty() {
            state.placements.remove(&self.number);
        } else if let Some(sent) = state.placements.get_mut(&self.number) {
            sent.recorded = Some(recorded);
        }
    }
}

impl State {
    fn learn(&mut self, news: &News, whole: bool) {
        if whole {
            self.whole_at = Some(Instant::now());
        }
        for (seq, name, view) in &news.pools {
            if self.pools.get(name).and_then(|known| known.seq).is_some_and(|had| had >= *seq) {
                continue;
            }
            match view {
                Some(view) => {
                    let known = self.known(PoolMap::new(view), Some(*seq));
                    self.pools.insert(name.clone(), known);
                }
                // Two pools were written at once under one number: the next reading is told all.
                None => self.whole_at = None,
            }
        }
        let mut changed = BTreeSet::new();
        for (seq, cell, state) in &news.orders {
            if self.orders.get(cell).is_none_or(|(had, _)| had <= seq) {
                self.orders.insert(cell.clone(), (*seq, *state));
                changed.insert(cell.clone());
            }
        }
        for (seq, hint) in &news.hints {
            if self.hints.get(&hint.cell).is_none_or(|(had, _)| had <= seq) {
                self.hints.insert(hint.cell.clone(), (*seq, hint.clone()));
                changed.insert(hint.cell.clone());
            }
        }
        self.find_by_hints(news);
        changed.iter().for_each(|cell| self.refresh(cell));
        let highest = |old: i64, new: Option<i64>| new.unwrap_or(-1).max(old);
        let seen = self.seen.unwrap_or(Seen::NOTHING);
        self.seen = Some(Seen {
            cells: highest(seen.cells, news.hints.iter().map(|(seq, _)| *seq).max()),
            orders: highest(seen.orders, news.orders.iter().map(|(seq, ..)| *seq).max()),
            pools: highest(seen.pools, news.pools.iter().map(|(seq, ..)| *seq).max()),
        });
    }

    /// Without a view the hints say who is in a pool.
    fn find_by_hints(&mut self, news: &News) {
        let new = |hint: &&CellHint| match self.pools.get(&hint.pool) {
            Some(known) => known.seq.is_none() && known.map.place(&hint.cell).is_none(),
            None => true,
        };
        let found: BTreeSet<PoolName> =
            news.hints.iter().map(|(_, hint)| hint).filter(new).map(|h| h.pool.clone()).collect();
        for pool in found {
            let members = self.hints.values().map(|(_, hint)| hint).filter(|hint| hint.pool == pool).map(member_of);
            let (settings, members) = (PoolSettings::default(), members.collect());
            let view = PoolView { pool: pool.clone(), version: 0, settings, members };
            let known = self.known(PoolMap::new(&view), None);
            self.pools.insert(pool, known);
        }
    }

    fn known(&self, map: PoolMap, seq: Option<i64>) -> Known {
        let loads = map.members().iter().map(|member| self.load(member)).collect();
        Known { seq, map, loads }
    }

    /// What the cell says of itself; what its Cell has ordered overrules it, and a cell that takes no builds although nothing else was
    /// ordered is believed. The store's lists say the same.
    fn load(&self, member: &PoolMember) -> Load {
        let hint = self.hints.get(&member.cell);
        let mut load = hint.map_or_else(|| Load::unheard(member), |(_, hint)| Load::of(hint));
        if let Some((_, ordered)) = self.orders.get(&member.cell)
            && (*ordered != CellState::Ready || load.state == CellState::Ready)
        {
            load.state = *ordered;
        }
        load
    }

    fn refresh(&mut self, cell: &CellId) {
        let mut pools = std::mem::take(&mut self.pools);
        for known in pools.values_mut() {
            if let Some(at) = known.map.place(cell) {
                known.loads[at] = self.load(&known.map.members()[at]);
            }
        }
        self.pools = pools;
    }

    fn decide(&mut self, ticket: u64, facts: &Facts, ask: &Ask<'_>) -> Decision {
        let running = self.count_open(ticket, facts, ask.project);
        let ahead = facts.project_runs.ahead;
        if ask.cap.is_some_and(|cap| running.saturating_add(ahead) >= cap) {
            return Decision::OverCap { running, ahead };
        }
        let Some(own) = self.pools.get(ask.pool) else {
            return Decision::NoPool(self.pools.keys().cloned().collect());
        };
        let overflow = own.map.overflow().iter().filter_map(|name| self.pools.get(name));
        let all: Vec<&Known> = std::iter::once(own).chain(overflow).collect();
        if let Some(why) = other_platforms(&all, ask) {
            return Decision::NoPlatform(why);
        }
        let candidates: Vec<Candidate> =
            all.iter().map(|known| Candidate { pool: &known.map, loads: &known.loads }).collect();
        let (warm, exclude): (&[Warm], _) = (&facts.warm, ask.exclude);
        let wanted =
            Wanted { project: ask.project, platform: ask.platform, now_ms: ask.now_ms, warm, exclude, running };
        choose(&candidates, &wanted).map_or_else(|| Decision::NoCell(own.why_none(ask)), Decision::Chosen)
    }

    /// Tells the loads how many builds were sent to each cell, and returns how many are the project's.
    fn count_open(&mut self, ticket: u64, facts: &Facts, project: &ProjectName) -> u32 {
        let unseen = |sent: &&Sent| sent.recorded.is_none_or(|recorded| recorded > ticket);
        let sent: Vec<&Sent> = self.placements.values().filter(unseen).collect();
        for known in self.pools.values_mut() {
            known.loads.iter_mut().for_each(|load| load.open = 0);
            let recorded = facts.open.iter().map(|(cell, runs)| (cell, *runs));
            for (cell, count) in recorded.chain(sent.iter().map(|sent| (&sent.cell, 1))) {
                if let Some(at) = known.map.place(cell) {
                    known.loads[at].open += count;
                }
            }
        }
        facts.project_runs.placed
            + u32::try_from(sent.iter().filter(|sent| sent.project == *project).count()).unwrap_or(u32::MAX)
    }
}

impl Known {
    /// `pool p has no cells`, `none of the 3 cells of pool p takes builds for linux/amd64: 2 draining, 1 unhealthy`
    fn why_none(&self, ask: &Ask<'_>) -> String {
        let (pool, platform) = (&self.map.name, ask.platform);
        if self.loads.is_empty() {
            return format!("pool {pool} has no cells");
        }
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for (member, load) in self.map.members().iter().zip(&self.loads) {
            let what = match &member.project {
                _ if member.platform != *platform => "of another platform",
                Some(other) if other != ask.project => "of another project",
                None if load.state == CellState::Ready => "of no project",
                _ => load.state.as_str(),
            };
            *counts.entry(what).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let all = self.loads.len();
        format!("none of the {all} cells of pool {pool} takes builds for {platform}: {}", counts.join(", "))
    }
}

/// Why none of the cells in these pools ever takes the build, whatever becomes of them: all are of other platforms. `None`
/// also where there are no cells yet.
fn other_platforms(pools: &[&Known], ask: &Ask<'_>) -> Option<String> {
    let platforms: BTreeSet<&str> =
        pools.iter().flat_map(|known| known.map.members()).map(|member| member.platform.as_str()).collect();
    if platforms.is_empty() || platforms.contains(ask.platform.as_str()) {
        return None;
    }
    let there = platforms.into_iter().collect::<Vec<_>>().join(", ");
    Some(format!("platform {} is not built here; the cells of pool {} are {there}", ask.platform, ask.pool))
}

fn member_of(hint: &CellHint) -> PoolMember {
    PoolMember {
        cell: hint.cell.clone(),
        state: hint.state,
        platform: hint.platform.clone(),
        slots: hint.slots,
        host: None,
        image: None,
        project: None,
    }
}

#[cfg(test)]
mod tests;
