//! What an admission costs in a large pool: 1,000 cells of 4 slots, 85 % of them busy, 10,000 warm records, a SQLite store. There is
//! nothing to compare it with but its limits.
//!
//! *Policy* is the choice itself; *decide* adds what control does around it under its lock: learn the news, count open builds. *Admit*
//! adds the two round trips to the store.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use activities::control::{Ask, Decision, Fleet};
use activities::store::{BuildRow, Question, Store};
use workflows::contract::{
    BuildStatus, CellHint, CellId, CellState, Platform, PoolMember, PoolSettings, PoolView, ProjectName,
};
use workflows::policy::{Candidate, Load, PoolMap, Wanted, Warm, choose};

const CELLS: usize = 1000;
const SLOTS: u32 = 4;
const PROJECTS: usize = 1250;
const WARM_EACH: usize = 8;
const ROUNDS: usize = 2000;

/// The store is in `dir`.
pub async fn run(dir: &Path) {
    let store = Store::open(&format!("sqlite://{}/admit.db", dir.display())).await.unwrap();
    let view = view();
    let loads = fill(&store, &view).await;
    policy(&view, &loads);
    admissions(&store, &view).await;
}

fn cell(n: usize) -> CellId {
    format!("c{n:04}").parse().unwrap()
}

fn project(n: usize) -> ProjectName {
    format!("p{n}").parse().unwrap()
}

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn view() -> PoolView {
    let member = |n| PoolMember {
        cell: cell(n),
        state: CellState::Ready,
        platform: platform(),
        slots: SLOTS,
        host: None,
        image: None,
        project: None,
    };
    let (settings, members) = (PoolSettings::default(), (0..CELLS).map(member).collect());
    PoolView { pool: "default".parse().unwrap(), version: 1, settings, members }
}

/// Of every 20 slots 17 are busy.
fn busy(cell: usize) -> usize {
    (0..SLOTS as usize).filter(|slot| (cell * SLOTS as usize + slot) % 20 < 17).count()
}

fn warm(project: usize) -> Vec<Warm> {
    (0..WARM_EACH).map(|n| Warm { cell: cell((project * 7 + n * 131) % CELLS), generation: 1 }).collect()
}

/// Writes the pool, its cells' hints, the builds that run, and the warm records; the loads are what control would make of them.
async fn fill(store: &Store, view: &PoolView) -> Vec<Load> {
    store.write_pool(view).await.unwrap();
    let mut loads = Vec::new();
    for n in 0..CELLS {
        let hint = CellHint {
            cell: cell(n),
            pool: view.pool.clone(),
            platform: platform(),
            state: CellState::Ready,
            slots: SLOTS,
            busy: u32::try_from(busy(n)).unwrap(),
            epoch: 1,
            generation: 1,
            // New for as long as this takes.
            sequence: 0,
            reported_ms: now_ms() + 3_600_000,
        };
        store.report_cell(&hint).await.unwrap();
        loads.push(Load::of(&hint));
        for slot in 0..busy(n) {
            let running = row(&format!("open-{n}-{slot}"), n % PROJECTS, cell(n), BuildStatus::Running);
            store.record_build(&running).await.unwrap();
        }
    }
    for p in 0..PROJECTS {
        for warm in warm(p) {
            store.record_warm(&project(p), &platform(), &warm).await.unwrap();
        }
    }
    let open: usize = (0..CELLS).map(busy).sum();
    println!("admission: {CELLS} cells, {open} open builds, {} warm records", PROJECTS * WARM_EACH);
    loads
}

fn row(key: &str, p: usize, at: CellId, status: BuildStatus) -> BuildRow {
    let name = project(p);
    let input = serde_json::json!({"project": name, "snapshot": "0".repeat(64), "tags": ["r.example/p:1"]});
    BuildRow {
        workflow_id: format!("build/{name}/{key}"),
        run_id: format!("run-{key}"),
        key: key.parse().unwrap(),
        project: name,
        status,
        input: serde_json::from_value(input).unwrap(),
        result: None,
        cell: Some(at),
        created_ms: 1,
        started_ms: None,
        ended_ms: None,
    }
}

/// The choice alone, in the situations that take different ways through it.
fn policy(view: &PoolView, loads: &[Load]) {
    let begun = Instant::now();
    let map = PoolMap::new(view);
    println!("  ring of a new view, once a version: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    let full: Vec<Load> = loads.iter().map(|load| Load { busy: load.slots, ..load.clone() }).collect();
    let mut one_free = full.clone();
    one_free[CELLS / 2].busy = 0;
    for (what, loads) in [("85 % busy", loads), ("all busy", &full), ("one cell free", &one_free)] {
        let times = (0..ROUNDS).map(|n| choice(&map, loads, n % PROJECTS)).collect();
        report(&format!("policy, {what}"), times);
    }
}

fn choice(map: &PoolMap, loads: &[Load], p: usize) -> Duration {
    let (project, platform, warm) = (&project(p), &platform(), &warm(p));
    let wanted = Wanted { project, platform, now_ms: now_ms(), warm, exclude: &[], running: 0 };
    let begun = Instant::now();
    let choice = choose(&[Candidate { pool: map, loads }], &wanted);
    let took = begun.elapsed();
    choice.expect("a cell is chosen");
    took
}

async fn admissions(store: &Store, view: &PoolView) {
    let fleet = Fleet::default();
    let (mut read, mut decide, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let p = n % PROJECTS;
        let (project, platform) = (&project(p), &platform());
        let (key, run_id) = (format!("new-{n}").parse().unwrap(), format!("run-new-{n}"));
        let begun = Instant::now();
        let reading = fleet.begin();
        let question = Question { project, key: &key, platform, run_id: &run_id, started_ms: 2, seen: reading.seen };
        let facts = store.facts(&question).await.unwrap();
        read.push(begun.elapsed());
        let deciding = Instant::now();
        let ask = Ask { pool: &view.pool, project, platform, now_ms: now_ms(), exclude: &[], cap: None };
        let (decision, placement) = reading.decide(&facts, &ask);
        decide.push(deciding.elapsed());
        let Decision::Chosen(choice) = decision else { panic!("{decision:?}") };
        let mut placed = row(&format!("new-{n}"), p, choice.cell, BuildStatus::Queued);
        store.record_build(&placed).await.unwrap();
        drop(placement);
        all.push(begun.elapsed());
        // It ends at once, so that the pool stays as full as it was.
        placed.status = BuildStatus::Succeeded;
        store.record_build(&placed).await.unwrap();
    }
    report("read the facts", read);
    report("decide", decide);
    report("admit in all", all);
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("  {what}: median {:.0} us, p99 {:.0}, max {:.0} (n={})", at(0.5), at(0.99), at(1.0), times.len());
}
