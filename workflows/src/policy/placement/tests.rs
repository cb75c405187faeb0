//! The policy over single decisions and over long schedules.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_000_000;

fn cell(n: usize) -> CellId {
    format!("c{n}").parse().unwrap()
}

fn project(n: u32) -> ProjectName {
    format!("p{n}").parse().unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn member(n: usize, slots: u32) -> PoolMember {
    PoolMember {
        cell: cell(n),
        state: CellState::Ready,
        platform: amd64(),
        slots,
        host: None,
        image: None,
        project: None,
    }
}

fn pool(name: &str, members: Vec<PoolMember>, settings: PoolSettings) -> PoolMap {
    PoolMap::new(&PoolView { pool: name.parse().unwrap(), version: 1, settings, members })
}

fn cells(numbers: impl IntoIterator<Item = usize>, slots: u32) -> PoolMap {
    pool("default", numbers.into_iter().map(|n| member(n, slots)).collect(), strict())
}

/// Nobody waits while a cell is free.
fn strict() -> PoolSettings {
    PoolSettings { line: 0, ..PoolSettings::default() }
}

fn load(slots: u32, busy: u32, age_ms: u64) -> Load {
    Load { state: CellState::Ready, slots, busy, open: 0, reported_ms: NOW - age_ms, generation: 1 }
}

fn warm(cells: impl IntoIterator<Item = usize>, generation: u64) -> Vec<Warm> {
    cells.into_iter().map(|n| Warm { cell: cell(n), generation }).collect()
}

/// Chooses for project `p` with these records.
fn place(pools: &[(&PoolMap, &[Load])], p: u32, warm: &[Warm], exclude: &[CellId], running: u32) -> Option<Choice> {
    let pools: Vec<Candidate> = pools.iter().map(|(pool, loads)| Candidate { pool, loads }).collect();
    let (project, platform) = (project(p), amd64());
    choose(&pools, &Wanted { project: &project, platform: &platform, now_ms: NOW, warm, exclude, running })
}

/// The cells of `pool` in the ring order of project `p`.
fn order(pool: &PoolMap, p: u32) -> Vec<usize> {
    pool.ring.walk(start_of(&project(p), &amd64())).collect()
}

fn loads() -> impl Strategy<Value = Vec<Load>> {
    let state =
        prop_oneof![4 => Just(CellState::Ready), 1 => Just(CellState::Draining), 1 => Just(CellState::Unhealthy)];
    let one = (1u32..5, 0u32..6, 0u32..6, 0u64..60_000, 0u64..3, state).prop_map(
        |(slots, busy, open, age, generation, state)| Load {
            state,
            slots,
            busy,
            open,
            reported_ms: NOW - age,
            generation,
        },
    );
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn a_cell_that_is_not_ready_is_never_chosen(loads in loads(), p in 0u32..50) {
        let map = cells(0..loads.len(), 4);
        let chosen = place(&[(&map, &loads)], p, &[], &[], 0);
        prop_assert_eq!(chosen.is_some(), loads.iter().any(|load| load.state == CellState::Ready));
        if let Some(choice) = chosen {
            prop_assert_eq!(loads[map.place(&choice.cell).unwrap()].state, CellState::Ready);
        }
    }

    #[test]
    fn a_build_queues_only_when_no_cell_may_be_free(loads in loads(), p in 0u32..50) {
        let map = cells(0..loads.len(), 4);
        if let Some(choice) = place(&[(&map, &loads)], p, &[], &[], 0) {
            let maybe_free = loads.iter().any(|load| load.state == CellState::Ready && load.room(NOW));
            prop_assert_eq!(choice.free, maybe_free);
        }
    }

    #[test]
    fn a_free_warm_home_wins_and_warmth_of_another_generation_counts_for_nothing(
        loads in loads(), p in 0u32..50, records in prop::collection::vec((0usize..12, 0u64..3), 0..8)
    ) {
        let map = cells(0..loads.len(), 4);
        let records: Vec<Warm> = records.into_iter().map(|(n, generation)| Warm { cell: cell(n), generation }).collect();
        let Some(choice) = place(&[(&map, &loads)], p, &records, &[], 0) else { return Ok(()) };
        let at = map.place(&choice.cell).unwrap();
        let valid: BTreeSet<usize> = records.iter()
            .filter_map(|record| map.place(&record.cell).filter(|at| loads[*at].generation == record.generation))
            .collect();
        prop_assert_eq!(choice.warm, valid.contains(&at));
        prop_assert_eq!(choice.generation, loads[at].generation);
        let known_free = |at: &usize| loads[*at].known(NOW) && loads[*at].room(NOW);
        let homes: Vec<usize> = order(&map, p).into_iter().filter(|at| loads[*at].state == CellState::Ready).take(3).collect();
        let warm_homes: Vec<usize> = homes.iter().copied().filter(|at| known_free(at) && valid.contains(at)).collect();
        if !warm_homes.is_empty() {
            prop_assert!(warm_homes.contains(&at), "{} instead of one of {warm_homes:?}", choice.reason);
        } else if let Some(first) = homes.iter().find(|at| known_free(at)) {
            prop_assert_eq!(at, *first, "{}", choice.reason);
        }
    }

    #[test]
    fn an_excluded_cell_is_chosen_only_when_no_other_is_left(loads in loads(), p in 0u32..50, n in 0usize..12) {
        let map = cells(0..loads.len(), 4);
        let Some(choice) = place(&[(&map, &loads)], p, &[], &[cell(n)], 0) else { return Ok(()) };
        let others = loads.iter().enumerate().any(|(at, load)| at != n && load.state == CellState::Ready);
        prop_assert!(choice.cell != cell(n) || !others);
    }

    /// Members in any order have the same places on the ring.
    #[test]
    fn the_order_of_members_does_not_matter(loads in loads(), p in 0u32..50) {
        let n = loads.len();
        let (map, reversed) = (cells(0..n, 4), cells((0..n).rev(), 4));
        let mirrored: Vec<Load> = loads.iter().rev().cloned().collect();
        prop_assert_eq!(place(&[(&map, &loads)], p, &[], &[], 0), place(&[(&reversed, &mirrored)], p, &[], &[], 0));
    }

    /// One of n cells lost or gained moves about 1/n of the projects, and those only to or from that cell.
    #[test]
    fn a_cell_more_or_less_moves_one_in_n_projects(n in 8usize..40, which in 0usize..40) {
        let which = which % n;
        let (all, fewer) = (cells(0..n, 4), cells((0..n).filter(|c| *c != which), 4));
        let idle = |n: usize| vec![load(4, 0, 0); n];
        let mut moved = 0;
        for p in 0..1000 {
            let before = place(&[(&all, &idle(n))], p, &[], &[], 0).unwrap().cell;
            let after = place(&[(&fewer, &idle(n - 1))], p, &[], &[], 0).unwrap().cell;
            if before == cell(which) {
                moved += 1;
            } else {
                prop_assert_eq!(before, after, "project {} moved although its cell stayed", p);
            }
        }
        let fair = 1000 / n;
        prop_assert!(moved <= 2 * fair + 10, "{moved} of 1000 projects lived on one of {n} cells");
    }
}

/// What comes up in a fleet's life, for [`Fleet`].
#[derive(Debug, Clone)]
enum Event {
    Build(u32),
    /// The n-th running build ends, and succeeds or not.
    End(usize, bool),
    Join(usize),
    Leave(usize),
    Drain(usize),
    Undrain(usize),
    /// The cell's hints no longer come.
    Silence(usize),
    Report(usize),
    LoseCache(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let n = 0usize..10;
    prop_oneof![
        12 => (0u32..20).prop_map(Event::Build),
        10 => (0usize..64, any::<bool>()).prop_map(|(n, well)| Event::End(n, well)),
        1 => n.clone().prop_map(Event::Join),
        1 => n.clone().prop_map(Event::Leave),
        1 => n.clone().prop_map(Event::Drain),
        1 => n.clone().prop_map(Event::Undrain),
        1 => n.clone().prop_map(Event::Silence),
        2 => n.clone().prop_map(Event::Report),
        1 => n.prop_map(Event::LoseCache),
    ]
}

/// A fleet of cells of 2 slots: what is true, and what placement is told.
struct Fleet {
    members: BTreeSet<usize>,
    truth: BTreeMap<usize, Load>,
    silent: BTreeSet<usize>,
    told: BTreeMap<usize, Load>,
    running: Vec<(u32, usize, u64)>,
    warm: BTreeMap<u32, Vec<Warm>>,
    now_ms: u64,
}

impl Fleet {
    fn new() -> Self {
        let truth: BTreeMap<usize, Load> = (0..10).map(|n| (n, load(2, 0, 0))).collect();
        let told = truth.clone();
        Self {
            members: (0..6).collect(),
            truth,
            silent: BTreeSet::new(),
            told,
            running: Vec::new(),
            warm: BTreeMap::new(),
            now_ms: NOW,
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        self.now_ms += 1000;
        match *event {
            Event::Build(p) => self.build(p)?,
            Event::End(n, well) => self.end(n, well),
            Event::Join(n) => drop(self.members.insert(n)),
            Event::Leave(n) => drop(self.members.remove(&n)),
            Event::Drain(n) => self.change(n, |load| load.state = CellState::Draining),
            Event::Undrain(n) => self.change(n, |load| load.state = CellState::Ready),
            Event::Silence(n) => drop(self.silent.insert(n)),
            Event::Report(n) => drop(self.silent.remove(&n)),
            Event::LoseCache(n) => self.change(n, |load| load.generation += 1),
        }
        for (n, load) in self.truth.iter_mut().filter(|(n, _)| !self.silent.contains(n)) {
            load.busy = u32::try_from(self.running.iter().filter(|(_, at, _)| at == n).count()).unwrap();
            load.reported_ms = self.now_ms;
            self.told.insert(*n, load.clone());
        }
        Ok(())
    }

    fn change(&mut self, n: usize, change: impl FnOnce(&mut Load)) {
        self.truth.entry(n).and_modify(change);
    }

    fn build(&mut self, p: u32) -> Result<(), TestCaseError> {
        let map = cells(self.members.iter().copied(), 2);
        let loads: Vec<Load> = self.members.iter().map(|n| self.told[n].clone()).collect();
        let (project, platform, none) = (project(p), amd64(), Vec::new());
        let warm = self.warm.get(&p).unwrap_or(&none);
        let wanted =
            Wanted { project: &project, platform: &platform, now_ms: self.now_ms, warm, exclude: &[], running: 0 };
        let Some(choice) = choose(&[Candidate { pool: &map, loads: &loads }], &wanted) else {
            prop_assert!(loads.iter().all(|load| load.state != CellState::Ready));
            return Ok(());
        };
        let n: usize = choice.cell.as_str()[1..].parse().unwrap();
        prop_assert!(self.members.contains(&n), "{} is no member", choice.cell);
        prop_assert_eq!(self.told[&n].state, CellState::Ready);
        prop_assert_eq!(
            choice.warm,
            warm.contains(&Warm { cell: choice.cell.clone(), generation: self.told[&n].generation })
        );
        if choice.free && self.told[&n].known(self.now_ms) {
            prop_assert!(self.told[&n].busy < 2, "{}", choice.reason);
        }
        if !self.silent.contains(&n) && choice.warm {
            prop_assert_eq!(choice.generation, self.truth[&n].generation, "warm by a fresh hint is warm indeed");
        }
        self.running.push((p, n, choice.generation));
        Ok(())
    }

    /// A build that ends well leaves its record, as publishing does.
    fn end(&mut self, n: usize, well: bool) {
        if self.running.is_empty() {
            return;
        }
        let (p, at, generation) = self.running.swap_remove(n % self.running.len());
        if well {
            let records = self.warm.entry(p).or_default();
            records.retain(|record| record.cell != cell(at));
            records.push(Warm { cell: cell(at), generation });
            let extra = records.len().saturating_sub(WARM_CELLS);
            records.drain(..extra);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Cells come, go, drain, fall silent and lose their caches; after each step the decision is right by what was told.
    #[test]
    fn every_decision_of_a_long_schedule_is_right(events in prop::collection::vec(event(), 300..600)) {
        let mut fleet = Fleet::new();
        for event in &events {
            fleet.happen(event)?;
        }
    }
}

#[test]
fn the_reason_names_the_home_cell() {
    let map = cells(0..4, 1);
    let idle = vec![load(1, 0, 0); 4];
    let choice = place(&[(&map, &idle)], 1, &[], &[], 0).unwrap();
    assert_eq!(choice.reason, "home cell 1 of 3, free");
    let second = order(&map, 1)[1];
    let choice = place(&[(&map, &idle)], 1, &warm([second], 1), &[], 0).unwrap();
    assert_eq!((choice.reason.as_str(), choice.warm), ("home cell 2 of 3, warm and free", true));
    let choice = place(&[(&map, &idle)], 1, &warm([second], 0), &[], 0).unwrap();
    assert_eq!((choice.reason.as_str(), choice.warm), ("home cell 1 of 3, free", false));
}

/// Homes busy: a warm cell elsewhere, else the next along the ring; all busy: the home cell with the shortest line.
#[test]
fn busy_homes_are_passed_by_and_a_full_pool_is_waited_for() {
    let map = cells(0..8, 2);
    let along = order(&map, 7);
    let mut loads = vec![load(2, 0, 0); 8];
    along[..3].iter().for_each(|at| loads[*at].busy = 2);
    let at = |choice: &Choice| map.place(&choice.cell).unwrap();
    let choice = place(&[(&map, &loads)], 7, &[], &[], 0).unwrap();
    assert_eq!((at(&choice), choice.free), (along[3], true));
    assert_eq!(choice.reason, "home cells are busy; cell 4 along the ring is free");
    let choice = place(&[(&map, &loads)], 7, &warm([along[6]], 1), &[], 0).unwrap();
    assert_eq!((at(&choice), choice.warm), (along[6], true));

    loads.iter_mut().for_each(|load| load.open = 4);
    loads[along[2]].open = 3;
    let choice = place(&[(&map, &loads)], 7, &[], &[], 0).unwrap();
    assert_eq!((at(&choice), choice.free), (along[2], false));
    assert_eq!(choice.reason, "no cell is free; this home cell has the shortest line (1 waiting)");
}

/// With a line allowed, a warm home is waited for rather than a cold cell taken; a warm cell elsewhere is not passed by.
#[test]
fn a_short_line_at_a_warm_home_beats_a_cold_cell() {
    let map =
        pool("default", (0..8).map(|n| member(n, 2)).collect(), PoolSettings { line: 1, ..PoolSettings::default() });
    let along = order(&map, 7);
    let mut loads = vec![load(2, 0, 0); 8];
    along[..3].iter().for_each(|at| loads[*at].open = 2);
    let at = |choice: &Choice| map.place(&choice.cell).unwrap();
    let home = warm([along[1]], 1);
    let choice = place(&[(&map, &loads)], 7, &home, &[], 0).unwrap();
    assert_eq!((at(&choice), choice.free, choice.warm), (along[1], false, true));
    loads[along[1]].open = 3;
    let choice = place(&[(&map, &loads)], 7, &home, &[], 0).unwrap();
    assert_eq!((at(&choice), choice.free), (along[3], true), "that line is no longer short");
    let both = warm([along[1], along[5]], 1);
    loads[along[1]].open = 2;
    let choice = place(&[(&map, &loads)], 7, &both, &[], 0).unwrap();
    assert_eq!((at(&choice), choice.free), (along[5], true));
}

#[test]
fn a_project_with_much_load_has_more_homes() {
    let map = cells(0..20, 4);
    let homes = [0, 4, 6, 9, 100].map(|running| map.homes(running));
    assert_eq!(homes, [3, 3, 4, 5, WARM_CELLS]);
}

#[test]
fn a_full_pool_overflows_in_order_and_hints_that_are_too_old_are_the_last_hope() {
    let own = pool("own", (0..2).map(|n| member(n, 1)).collect(), strict());
    let (near, far) = (
        pool("near", (10..12).map(|n| member(n, 1)).collect(), strict()),
        pool("far", (20..22).map(|n| member(n, 1)).collect(), strict()),
    );
    let (busy, idle, old) = (vec![load(1, 1, 0); 2], vec![load(1, 0, 0); 2], vec![load(1, 1, STALE_MS + 1); 2]);
    let choice = place(&[(&own, &busy), (&near, &busy), (&far, &idle)], 1, &[], &[], 0).unwrap();
    assert_eq!(choice.pool.as_str(), "far");
    assert!(choice.reason.starts_with("pool own has no free cell; in pool far: home cell 1 of 2"), "{}", choice.reason);
    let choice = place(&[(&own, &busy), (&near, &idle), (&far, &idle)], 1, &[], &[], 0).unwrap();
    assert_eq!(choice.pool.as_str(), "near");
    let choice = place(&[(&own, &busy), (&near, &old), (&far, &busy)], 1, &[], &[], 0).unwrap();
    assert_eq!((choice.pool.as_str(), choice.free), ("near", true));
    let choice = place(&[(&own, &busy), (&near, &busy), (&far, &busy)], 1, &[], &[], 0).unwrap();
    assert_eq!((choice.pool.as_str(), choice.free), ("own", false));
}

#[test]
fn cells_of_one_project_serve_no_other() {
    let theirs = PoolMember { project: Some(project(1)), ..member(0, 1) };
    let shared = pool("shared", vec![theirs.clone(), member(1, 1)], strict());
    let idle = vec![load(1, 0, 0); 2];
    for p in 2..30 {
        assert_eq!(place(&[(&shared, &idle)], p, &[], &[], 0).unwrap().cell, cell(1));
    }
    let own = pool("own", vec![theirs, member(1, 1)], PoolSettings { tenancy: Tenancy::Project, ..strict() });
    assert_eq!(place(&[(&own, &idle)], 1, &[], &[], 0).unwrap().cell, cell(0));
    assert_eq!(place(&[(&own, &idle)], 2, &[], &[], 0), None);
}
