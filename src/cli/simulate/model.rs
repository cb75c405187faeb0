//! The fleet in simulated time: builds come, wait, run and end; hints stop and come again; cells are lost and come back.
//!
//! ```text
//! arrive ─► place ─► start ─► finish            a cell: up ─► lost ─► detected ─► up again
//!             ▲  └► line ──┘    │
//!             └─ patience over ─┴─ cell lost
//! ```
//!
//! What a strategy is told is what control has: the hints, which may be old, and the store's count of builds sent to each cell.
//! Whether a build is warm is decided by the cell's cache itself, not by a record.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use workflows::contract::{CellId, CellState, Platform, PoolMember, PoolName, PoolSettings, PoolView, WARM_CELLS};
use workflows::policy::{self, PoolMap, Warm};

use super::Scenario;
use super::load;
use super::random::Random;
use super::strategy::{Chooser, Order, Sight, Strategy};

/// A build believed to have a free cell moves on after this, jittered by a fifth.
const PATIENCE_MS: f64 = 5000.0;
/// From a cell's loss until its builds are moved.
const DETECTED_MS: u64 = 45_000;
/// From a cell's loss until it takes builds again.
const BACK_MS: u64 = 120_000;
/// How long a cell's hints stay away, on average.
const SILENCE_MS: f64 = 60_000.0;
/// Between two looks for a cell while there is none.
const NO_CELL_MS: u64 = 2000;

/// What one run came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Share of builds that started where the cache was warm.
    pub warm: f64,
    /// Share of builds that did not start at once.
    pub queued: f64,
    /// Mean time from arrival to start, seconds.
    pub wait_s: f64,
    /// Share of builds that went to another cell at least once.
    pub moved: f64,
    /// The busiest cell's busy time over the mean.
    pub balance: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    /// Of a build, at its n-th placement.
    Finish(usize, u32),
    PatienceOver(usize, u32),
    Lost(usize),
    Detected(usize),
    Back(usize),
    Silent(usize),
    Heard(usize),
}

/// One build's course.
#[derive(Debug, Clone, Default)]
struct Course {
    placements: u32,
    at: usize,
    running: bool,
    started_ms: Option<u64>,
    warm: bool,
    queued: bool,
    tried: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    down: bool,
    /// Its cache goes with its next loss; every other one does.
    loses_cache: bool,
    running: Vec<usize>,
    line: VecDeque<usize>,
    /// Projects in its cache, and when each was built last.
    cache: BTreeMap<usize, u64>,
    busy_ms: u64,
}

/// Runs one load through one fleet.
pub struct Model<'a> {
    scenario: &'a Scenario,
    load: &'a load::Load,
    chooser: Chooser,
    random: Random,
    pool: PoolMap,
    loads: Vec<policy::Load>,
    cells: Vec<Cell>,
    courses: Vec<Course>,
    warm: Vec<Vec<Warm>>,
    open: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Breaks ties between events at one time.
    count: u64,
    now_ms: u64,
    unfinished: usize,
}

/// A hint that is as new as it can be, whatever the time.
const HEARD: u64 = u64::MAX;

impl<'a> Model<'a> {
    /// # Errors
    /// When there are more cells than ids can be made for.
    pub fn new(scenario: &'a Scenario, load: &'a load::Load, strategy: Strategy, seed: u64) -> Result<Self, String> {
        let platform: Platform = "linux/amd64".parse().map_err(|e| format!("{e}"))?;
        let cells = (0..scenario.cells).map(|n| format!("c{n}").parse().map_err(|e| format!("{e}")));
        let cells = cells.collect::<Result<Vec<CellId>, String>>()?;
        let pool = pool(scenario, &cells, &platform)?;
        let state = policy::Load {
            state: CellState::Ready,
            slots: scenario.slots,
            busy: 0,
            open: 0,
            reported_ms: HEARD,
            generation: 0,
        };
        let projects = load.projects.len();
        let mut model = Self {
            chooser: Chooser::new(strategy, &cells, scenario.points, platform, projects, seed ^ 1),
            random: Random::new(seed ^ 2),
            scenario,
            load,
            pool,
            loads: vec![state; cells.len()],
            cells: vec![Cell::default(); cells.len()],
            courses: vec![Course::default(); load.builds.len()],
            warm: vec![Vec::new(); projects],
            open: vec![0; projects],
            events: BinaryHeap::new(),
            count: 0,
            now_ms: 0,
            unfinished: load.builds.len(),
        };
        model.plan();
        Ok(model)
    }

    /// What happens whatever is decided: arrivals, losses, silences.
    fn plan(&mut self) {
        let load = self.load;
        load.builds.iter().enumerate().for_each(|(build, made)| self.at(made.at_ms, Event::Arrive(build)));
        let end_ms = load.builds.last().map_or(0, |build| build.at_ms);
        for n in 0..self.scenario.losses {
            let when = end_ms as f64 * (n as f64 + self.random.share()) / self.scenario.losses as f64;
            let which = self.random.below(self.cells.len());
            self.at(when as u64, Event::Lost(which));
        }
        if self.scenario.stale > 0.0 {
            for cell in 0..self.cells.len() {
                self.fall_silent_later(cell);
            }
        }
    }

    fn fall_silent_later(&mut self, cell: usize) {
        let talk = SILENCE_MS * (1.0 - self.scenario.stale) / self.scenario.stale;
        let after = self.random.exponential(talk) as u64;
        self.after(after, Event::Silent(cell));
    }

    fn at(&mut self, when_ms: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((when_ms, self.count, event)));
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms + ms, event);
    }

    /// To the last build's end.
    pub fn run(mut self) -> Outcome {
        while self.unfinished > 0 {
            let Some(Reverse((when_ms, _, event))) = self.events.pop() else { break };
            self.now_ms = when_ms;
            self.happen(event);
        }
        self.outcome()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(build) => self.place(build),
            Event::Finish(build, placement) if self.courses[build].placements == placement => self.finish(build),
            Event::PatienceOver(build, placement) => {
                let course = &self.courses[build];
                if course.placements == placement && !course.running {
                    self.cells[course.at].line.retain(|waiting| *waiting != build);
                    self.move_on(build);
                }
            }
            Event::Finish(..) => {}
            Event::Lost(cell) => self.lose(cell),
            Event::Detected(cell) => self.detect(cell),
            Event::Back(cell) => self.come_back(cell),
            Event::Silent(cell) => {
                if self.loads[cell].reported_ms == HEARD {
                    self.loads[cell].reported_ms = self.now_ms;
                }
                let after = self.random.exponential(SILENCE_MS) as u64;
                self.after(after, Event::Heard(cell));
            }
            Event::Heard(cell) => {
                self.hear(cell);
                self.fall_silent_later(cell);
            }
        }
    }

    fn place(&mut self, build: usize) {
        let project = self.load.builds[build].project;
        let sight = Sight { pool: &self.pool, loads: &self.loads, now_ms: self.now_ms };
        let order = Order {
            project,
            name: &self.load.projects[project],
            warm: &self.warm[project],
            exclude: &self.courses[build].tried,
            running: self.open[project],
        };
        let Some((at, free)) = self.chooser.choose(&sight, &order) else {
            self.courses[build].queued = true;
            return self.after(NO_CELL_MS, Event::Arrive(build));
        };
        self.open[project] += 1;
        self.loads[at].open += 1;
        let course = &mut self.courses[build];
        (course.at, course.placements) = (at, course.placements + 1);
        let placement = course.placements;
        if !self.cells[at].down && self.cells[at].running.len() < self.scenario.slots as usize {
            return self.start(build);
        }
        self.courses[build].queued = true;
        self.cells[at].line.push_back(build);
        if free {
            let patience = PATIENCE_MS * (0.8 + 0.4 * self.random.share());
            self.after(patience as u64, Event::PatienceOver(build, placement));
        }
    }

    fn start(&mut self, build: usize) {
        let load::Build { project, takes_ms, .. } = self.load.builds[build];
        let course = &mut self.courses[build];
        course.running = true;
        if course.started_ms.is_none() {
            course.started_ms = Some(self.now_ms);
            course.warm = self.cells[course.at].cache.contains_key(&project);
        }
        let (at, placement) = (course.at, course.placements);
        self.cells[at].running.push(build);
        self.report(at);
        self.after(takes_ms, Event::Finish(build, placement));
    }

    fn finish(&mut self, build: usize) {
        let load::Build { project, takes_ms, .. } = self.load.builds[build];
        let at = self.courses[build].at;
        let cell = &mut self.cells[at];
        cell.running.retain(|running| *running != build);
        cell.busy_ms += takes_ms;
        cell.cache.insert(project, self.now_ms);
        if self.scenario.cached_projects > 0 && cell.cache.len() > self.scenario.cached_projects {
            let oldest = cell.cache.iter().min_by_key(|(_, used_ms)| **used_ms).map(|(project, _)| *project);
            oldest.map(|oldest| cell.cache.remove(&oldest));
        }
        self.unfinished -= 1;
        let course = &mut self.courses[build];
        // Its patience may end later.
        (course.running, course.placements) = (false, course.placements + 1);
        self.leave(build);
        self.chooser.built(project, at);
        self.remember(project, at);
        self.report(at);
        self.take_next(at);
    }

    /// As the store does: a record a cell, the newest few.
    fn remember(&mut self, project: usize, at: usize) {
        let cell = self.pool.members()[at].cell.clone();
        let records = &mut self.warm[project];
        records.retain(|record| record.cell != cell);
        records.push(Warm { cell, generation: self.loads[at].generation });
        let extra = records.len().saturating_sub(WARM_CELLS);
        records.drain(..extra);
    }

    fn leave(&mut self, build: usize) {
        self.open[self.load.builds[build].project] -= 1;
        self.loads[self.courses[build].at].open -= 1;
    }

    fn take_next(&mut self, at: usize) {
        while !self.cells[at].down && self.cells[at].running.len() < self.scenario.slots as usize {
            let Some(next) = self.cells[at].line.pop_front() else { return };
            self.start(next);
        }
    }

    fn move_on(&mut self, build: usize) {
        self.leave(build);
        let course = &mut self.courses[build];
        course.running = false;
        course.tried.push(course.at);
        self.place(build);
    }

    fn report(&mut self, at: usize) {
        if self.loads[at].reported_ms == HEARD {
            self.loads[at].busy = u32::try_from(self.cells[at].running.len()).unwrap_or(u32::MAX);
        }
    }

    fn hear(&mut self, at: usize) {
        if !self.cells[at].down {
            self.loads[at].reported_ms = HEARD;
            self.report(at);
        }
    }

    fn lose(&mut self, at: usize) {
        if self.cells[at].down {
            return;
        }
        self.cells[at].down = true;
        if self.loads[at].reported_ms == HEARD {
            self.loads[at].reported_ms = self.now_ms;
        }
        // Their ends will not come: the next placement has another number.
        for build in self.cells[at].running.clone() {
            self.courses[build].placements += 1;
        }
        self.after(DETECTED_MS, Event::Detected(at));
        self.after(BACK_MS, Event::Back(at));
    }

    fn detect(&mut self, at: usize) {
        self.loads[at].state = CellState::Unhealthy;
        let running = std::mem::take(&mut self.cells[at].running);
        let waiting = std::mem::take(&mut self.cells[at].line);
        running.into_iter().chain(waiting).for_each(|build| self.move_on(build));
    }

    fn come_back(&mut self, at: usize) {
        let cell = &mut self.cells[at];
        cell.down = false;
        let loses_cache = cell.loses_cache;
        cell.loses_cache = !loses_cache;
        if loses_cache {
            cell.cache.clear();
            self.loads[at].generation += 1;
        }
        self.loads[at].state = CellState::Ready;
        self.hear(at);
        self.take_next(at);
    }

    fn outcome(&self) -> Outcome {
        let builds = self.courses.len().max(1) as f64;
        let share =
            |holds: fn(&Course) -> bool| self.courses.iter().filter(|course| holds(course)).count() as f64 / builds;
        let waited = self.courses.iter().zip(&self.load.builds);
        let waited_ms: u64 = waited.map(|(course, made)| course.started_ms.unwrap_or(self.now_ms) - made.at_ms).sum();
        let busy: Vec<f64> = self.cells.iter().map(|cell| cell.busy_ms as f64).collect();
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        Outcome {
            warm: share(|course| course.warm),
            queued: share(|course| course.queued),
            wait_s: waited_ms as f64 / builds / 1000.0,
            moved: share(|course| !course.tried.is_empty()),
            balance: if mean > 0.0 { busy.iter().copied().fold(0.0, f64::max) / mean } else { 1.0 },
        }
    }
}

fn pool(scenario: &Scenario, cells: &[CellId], platform: &Platform) -> Result<PoolMap, String> {
    let name: PoolName = "simulated".parse().map_err(|e| format!("{e}"))?;
    let member = |cell: &CellId| PoolMember {
        cell: cell.clone(),
        state: CellState::Ready,
        platform: platform.clone(),
        slots: scenario.slots,
        host: None,
        image: None,
        project: None,
    };
    let settings =
        PoolSettings { homes: scenario.homes, points: scenario.points, line: scenario.line, ..PoolSettings::default() };
    Ok(PoolMap::new(&PoolView { pool: name, version: 1, settings, members: cells.iter().map(member).collect() }))
}
