//! Ways to choose a cell: Kiln's own policy, and what it is compared with.

use clap::ValueEnum;
use serde::Serialize;
use workflows::contract::{CellId, CellState, Platform, ProjectName};
use workflows::policy::{self, Candidate, Load, PoolMap, Ring, Wanted, Warm, start_of};

use super::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The policy that `kiln control` runs
    Kiln,
    /// A free cell, whichever
    Random,
    /// The least loaded of the project's first three cells on the ring
    LeastOfThree,
    /// Where the project was built last when that cell is free, else a free cell, whichever
    Sticky,
    /// The first free cell along the ring
    RingWalk,
}

impl Strategy {
    pub const ALL: [Self; 5] = [Self::Kiln, Self::Random, Self::LeastOfThree, Self::Sticky, Self::RingWalk];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kiln => "kiln",
            Self::Random => "random",
            Self::LeastOfThree => "least-loaded-of-3",
            Self::Sticky => "sticky",
            Self::RingWalk => "ring walk",
        }
    }
}

/// What a strategy sees of the fleet: what control would.
pub struct Sight<'a> {
    pub pool: &'a PoolMap,
    pub loads: &'a [Load],
    pub now_ms: u64,
}

/// What is to be placed.
pub struct Order<'a> {
    pub project: usize,
    pub name: &'a ProjectName,
    pub warm: &'a [Warm],
    /// Cells tried in vain.
    pub exclude: &'a [usize],
    /// Builds of the project that run or wait.
    pub running: u32,
}

/// A strategy with what it remembers.
pub struct Chooser {
    strategy: Strategy,
    random: Random,
    platform: Platform,
    /// Of each project, once it was asked for.
    orders: Vec<Option<Vec<usize>>>,
    ring: Ring,
    /// Where each project was built last.
    last: Vec<Option<usize>>,
}

impl Chooser {
    pub fn new(
        strategy: Strategy,
        cells: &[CellId],
        points: u32,
        platform: Platform,
        projects: usize,
        seed: u64,
    ) -> Self {
        Self {
            strategy,
            random: Random::new(seed),
            platform,
            orders: vec![None; projects],
            ring: Ring::new(cells.iter(), points),
            last: vec![None; projects],
        }
    }

    /// A cell, and whether it is believed free.
    pub fn choose(&mut self, sight: &Sight<'_>, order: &Order<'_>) -> Option<(usize, bool)> {
        if self.strategy == Strategy::Kiln {
            return self.by_policy(sight, order);
        }
        let usable = |at: &usize| sight.loads[*at].state == CellState::Ready && !order.exclude.contains(at);
        let mut usable: Vec<usize> = (0..sight.loads.len()).filter(usable).collect();
        if usable.is_empty() {
            usable = (0..sight.loads.len()).filter(|at| sight.loads[*at].state == CellState::Ready).collect();
        }
        let free = |at: usize| sight.loads[at].known(sight.now_ms) && sight.loads[at].room(sight.now_ms);
        let at = match self.strategy {
            Strategy::Kiln | Strategy::Random => self.any_free(&usable, free),
            Strategy::LeastOfThree => {
                self.along(order, &usable).take(3).min_by_key(|at| sight.loads[*at].share(sight.now_ms))
            }
            Strategy::Sticky => {
                let last = self.last[order.project].filter(|at| usable.contains(at));
                let full = !usable.iter().any(|at| free(*at));
                last.filter(|at| full || free(*at)).or_else(|| self.any_free(&usable, free))
            }
            Strategy::RingWalk => {
                let along: Vec<usize> = self.along(order, &usable).collect();
                along.iter().copied().find(|at| free(*at)).or(along.first().copied())
            }
        }?;
        Some((at, free(at)))
    }

    pub fn built(&mut self, project: usize, at: usize) {
        self.last[project] = Some(at);
    }

    fn by_policy(&self, sight: &Sight<'_>, order: &Order<'_>) -> Option<(usize, bool)> {
        let exclude: Vec<CellId> = order.exclude.iter().map(|at| sight.pool.members()[*at].cell.clone()).collect();
        let wanted = Wanted {
            project: order.name,
            platform: &self.platform,
            now_ms: sight.now_ms,
            warm: order.warm,
            exclude: &exclude,
            running: order.running,
        };
        let choice = policy::choose(&[Candidate { pool: sight.pool, loads: sight.loads }], &wanted)?;
        Some((sight.pool.place(&choice.cell)?, choice.free))
    }

    fn any_free(&mut self, usable: &[usize], free: impl Fn(usize) -> bool) -> Option<usize> {
        let all_free: Vec<usize> = usable.iter().copied().filter(|at| free(*at)).collect();
        let among = if all_free.is_empty() { usable } else { &all_free };
        among.get(self.random.below(among.len())).copied()
    }

    /// The usable cells in the project's ring order.
    fn along<'a>(&'a mut self, order: &Order<'_>, usable: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        let (ring, platform) = (&self.ring, &self.platform);
        let walk = || ring.walk(start_of(order.name, platform)).collect();
        self.orders[order.project].get_or_insert_with(walk).iter().copied().filter(|at| usable.contains(at))
    }
}
