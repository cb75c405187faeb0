//! Which cell a build goes to.
//!
//! Each project has a fixed order of its pool's cells, the ring order ([`Ring`]); the first `homes` of those that can be used are
//! its home, more for a project that has much running. A cell is *warm* for a project when a build of the project succeeded there
//! and its cache has not been lost since (the record's cache generation is the cell's).
//!
//! | preference | cells | picked up in time, or moved on |
//! |---|---|---|
//! | 1 | free home cells that are warm, the least loaded first | yes |
//! | 2 | other free home cells, in ring order | yes |
//! | 3 | free cells further along the ring that are warm | yes |
//! | 4 | a warm home cell with a line shorter than the pool's `line` | no: it stays in that line |
//! | 5 | other free cells further along, in ring order | yes |
//! | 6 | 1, 2, 3 and 5 in the overflow pools, one pool after the other | yes |
//! | 7 | cells whose hint is too old to believe, in ring order | yes |
//! | 8 | the home cell with the shortest line | no: it stays in that line |
//!
//! Draining, stopped and unhealthy cells are never chosen, and cells the build has tried in vain only when no other is left.
//! The caller keeps a [`PoolMap`] for each version of a pool's view and tells the [`Load`] of its cells at each decision.

use std::collections::BTreeMap;

use super::ring::{Ring, start_of};
use crate::contract::{
    CellHint, CellId, CellState, Isolation, Platform, PoolMember, PoolName, PoolSettings, PoolView, ProjectName,
    Tenancy, WARM_CELLS,
};

/// A hint older than this counts as unknown, milliseconds.
pub const STALE_MS: u64 = 30_000;
/// A project's home cells have so many slots for each of its builds that runs, so that others find room there too.
const ROOM: u32 = 2;

/// What does not change between two changes of a pool: its cells and their places on the ring.
#[derive(Debug, Clone)]
pub struct PoolMap {
    pub name: PoolName,
    members: Vec<PoolMember>,
    places: BTreeMap<CellId, usize>,
    ring: Ring,
    settings: PoolSettings,
    /// Slots of a cell in the middle; 1 at least.
    slots: u32,
}

impl PoolMap {
    pub fn new(view: &PoolView) -> Self {
        let members = view.members.clone();
        let places = members.iter().enumerate().map(|(at, member)| (member.cell.clone(), at)).collect();
        let ring = Ring::new(members.iter().map(|member| &member.cell), view.settings.points);
        let mut slots: Vec<u32> = members.iter().map(|member| member.slots).collect();
        slots.sort_unstable();
        let slots = slots.get(slots.len() / 2).copied().unwrap_or(1).max(1);
        Self { name: view.pool.clone(), members, places, ring, settings: view.settings.clone(), slots }
    }

    /// The place of a cell among the members; loads are told in this order.
    pub fn place(&self, cell: &CellId) -> Option<usize> {
        self.places.get(cell).copied()
    }

    pub fn members(&self) -> &[PoolMember] {
        &self.members
    }

    pub fn overflow(&self) -> &[PoolName] {
        &self.settings.overflow
    }

    /// How many home cells a project has that has so many builds running or in lines.
    fn homes(&self, running: u32) -> usize {
        let by_load = (ROOM * (running.saturating_add(1))).div_ceil(self.slots);
        (self.settings.homes.max(by_load) as usize).min(WARM_CELLS)
    }
}

/// What is known of a cell at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub state: CellState,
    pub slots: u32,
    /// Busy slots by the cell's hint.
    pub busy: u32,
    /// Builds sent there that have not ended, by the store.
    pub open: u32,
    /// When the hint was made, milliseconds since 1970; 0 when there is none.
    pub reported_ms: u64,
    /// The generation of its cache.
    pub generation: u64,
}

impl Load {
    /// Of a cell that has not reported yet.
    pub fn unheard(member: &PoolMember) -> Self {
        Self { state: member.state, slots: member.slots, busy: 0, open: 0, reported_ms: 0, generation: 0 }
    }

    pub fn of(hint: &CellHint) -> Self {
        let CellHint { state, slots, busy, reported_ms, generation, .. } = *hint;
        Self { state, slots, busy, open: 0, reported_ms, generation }
    }

    pub fn known(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.reported_ms) <= STALE_MS
    }

    /// Running and waiting builds, as far as they are known.
    pub fn taken(&self, now_ms: u64) -> u32 {
        if self.known(now_ms) { self.open.max(self.busy) } else { self.open }
    }

    pub fn room(&self, now_ms: u64) -> bool {
        self.taken(now_ms) < self.slots
    }

    fn waiting(&self, now_ms: u64) -> u32 {
        self.taken(now_ms).saturating_sub(self.slots)
    }

    /// Thousandths of its slots that are taken.
    pub fn share(&self, now_ms: u64) -> u64 {
        u64::from(self.taken(now_ms)) * 1000 / u64::from(self.slots.max(1))
    }
}

/// A pool to choose from: the build's own first, then those it overflows into.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub pool: &'a PoolMap,
    /// In the order of the pool's members.
    pub loads: &'a [Load],
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub project: &'a ProjectName,
    pub platform: &'a Platform,
    pub now_ms: u64,
    /// Where builds of the project succeeded.
    pub warm: &'a [Warm],
    /// Cells that this build has tried in vain.
    pub exclude: &'a [CellId],
    /// Builds of the project that run or wait now.
    pub running: u32,
}

/// A record that a cell's cache of this generation has the project's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    pub cell: CellId,
    pub generation: u64,
}

/// The chosen cell and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub cell: CellId,
    pub pool: PoolName,
    pub isolation: Isolation,
    pub warm: bool,
    /// Whether a slot is believed free, so that the build may move on when it is not picked up.
    pub free: bool,
    /// The generation of the cell's cache, to be recorded when the build succeeds.
    pub generation: u64,
    pub reason: String,
}

/// Chooses a cell, or `None` when none of the pools has a usable one.
pub fn choose(pools: &[Candidate<'_>], wanted: &Wanted<'_>) -> Option<Choice> {
    let again = || pick(pools, &Wanted { exclude: &[], ..*wanted }).filter(|_| !wanted.exclude.is_empty());
    pick(pools, wanted).or_else(again)
}

fn pick(pools: &[Candidate<'_>], wanted: &Wanted<'_>) -> Option<Choice> {
    let sights: Vec<Sight> = pools.iter().map(|candidate| Sight::new(*candidate, wanted)).collect();
    let (own, others) = sights.split_first()?;
    own.free_home()
        .or_else(|| own.warm_elsewhere())
        .or_else(|| own.short_line())
        .or_else(|| own.free_elsewhere())
        .or_else(|| others.iter().find_map(|other| other.in_overflow(&own.pool.name)))
        .or_else(|| sights.iter().find_map(Sight::unknown))
        .or_else(|| sights.iter().find_map(Sight::shortest_line))
}

/// A pool seen from one build.
struct Sight<'a> {
    pool: &'a PoolMap,
    loads: &'a [Load],
    wanted: &'a Wanted<'a>,
    start: u64,
    /// In ring order.
    homes: Vec<usize>,
    /// Usable cells with a valid record.
    warm: Vec<usize>,
}

impl<'a> Sight<'a> {
    fn new(Candidate { pool, loads }: Candidate<'a>, wanted: &'a Wanted<'a>) -> Self {
        let start = start_of(wanted.project, wanted.platform);
        let mut sight = Self { pool, loads, wanted, start, homes: Vec::new(), warm: Vec::new() };
        sight.homes = sight.usable().take(pool.homes(wanted.running)).collect();
        let valid = |record: &Warm| pool.place(&record.cell).filter(|at| loads[*at].generation == record.generation);
        sight.warm = wanted.warm.iter().filter_map(valid).filter(|at| sight.can_be_used(*at)).collect();
        sight
    }

    /// Ready, of the platform, for this project, not tried in vain.
    fn can_be_used(&self, at: usize) -> bool {
        let member = &self.pool.members[at];
        let serves = match (&member.project, self.pool.settings.tenancy) {
            (Some(only), _) => only == self.wanted.project,
            (None, tenancy) => tenancy == Tenancy::Shared,
        };
        serves
            && self.loads[at].state == CellState::Ready
            && member.platform == *self.wanted.platform
            && !self.wanted.exclude.contains(&member.cell)
    }

    /// The usable cells in ring order.
    fn usable(&self) -> impl Iterator<Item = usize> {
        self.pool.ring.walk(self.start).filter(|at| self.can_be_used(*at))
    }

    fn free(&self, at: usize) -> bool {
        self.loads[at].known(self.wanted.now_ms) && self.loads[at].room(self.wanted.now_ms)
    }

    /// The first of those with the smallest share of their slots taken.
    fn least_loaded(&self, cells: impl Iterator<Item = usize>) -> Option<usize> {
        cells.min_by_key(|at| self.loads[*at].share(self.wanted.now_ms))
    }

    fn choice(&self, at: usize, free: bool, reason: String) -> Choice {
        Choice {
            cell: self.pool.members[at].cell.clone(),
            pool: self.pool.name.clone(),
            isolation: self.pool.settings.isolation,
            warm: self.warm.contains(&at),
            free,
            generation: self.loads[at].generation,
            reason,
        }
    }

    fn free_home(&self) -> Option<Choice> {
        let free = || self.homes.iter().copied().filter(|at| self.free(*at));
        let at = self.least_loaded(free().filter(|at| self.warm.contains(at))).or_else(|| free().next())?;
        let warm = if self.warm.contains(&at) { "warm and " } else { "" };
        let number = self.homes.iter().position(|home| *home == at)? + 1;
        Some(self.choice(at, true, format!("home cell {number} of {}, {warm}free", self.homes.len())))
    }

    /// A short wait where the cache is warm beats a build from nothing.
    fn short_line(&self) -> Option<Choice> {
        let now_ms = self.wanted.now_ms;
        let short =
            |at: &usize| self.loads[*at].known(now_ms) && self.loads[*at].waiting(now_ms) < self.pool.settings.line;
        let homes = self.homes.iter().copied().filter(|at| self.warm.contains(at)).filter(short);
        let at = homes.min_by_key(|at| self.loads[*at].waiting(now_ms))?;
        let waiting = self.loads[at].waiting(now_ms);
        Some(self.choice(
            at,
            false,
            format!("no home cell is free; this one is warm and its line is short ({waiting} waiting)"),
        ))
    }

    fn warm_elsewhere(&self) -> Option<Choice> {
        let at = self.least_loaded(self.warm.iter().copied().filter(|at| self.free(*at)))?;
        Some(self.choice(at, true, "home cells are busy; this one further along the ring is warm and free".into()))
    }

    fn free_elsewhere(&self) -> Option<Choice> {
        // Without this look a full pool would be walked to its end in vain.
        if !(0..self.loads.len()).any(|at| self.free(at)) {
            return None;
        }
        let (before, at) = self.usable().enumerate().skip(self.homes.len()).find(|(_, at)| self.free(*at))?;
        let reason = format!("home cells are busy; cell {} along the ring is free", before + 1);
        Some(self.choice(at, true, reason))
    }

    fn in_overflow(&self, own: &PoolName) -> Option<Choice> {
        let mut choice = self.free_home().or_else(|| self.warm_elsewhere()).or_else(|| self.free_elsewhere())?;
        choice.reason = format!("pool {own} has no free cell; in pool {}: {}", self.pool.name, choice.reason);
        Some(choice)
    }

    fn unknown(&self) -> Option<Choice> {
        let now_ms = self.wanted.now_ms;
        let at = self.usable().find(|at| !self.loads[*at].known(now_ms) && self.loads[*at].room(now_ms))?;
        let reason = "no cell is known to be free; this one has not reported lately".to_owned();
        Some(self.choice(at, true, reason))
    }

    fn shortest_line(&self) -> Option<Choice> {
        let waiting = |at: usize| self.loads[at].waiting(self.wanted.now_ms);
        let at = self.homes.iter().copied().min_by_key(|at| (waiting(*at), !self.warm.contains(at)))?;
        let reason = format!("no cell is free; this home cell has the shortest line ({} waiting)", waiting(at));
        Some(self.choice(at, false, reason))
    }
}

#[cfg(test)]
mod tests;
