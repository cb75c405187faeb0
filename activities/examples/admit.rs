//! What an admission costs in a large pool: `cargo run -p activities --example admit`.
//!
//! 1,000 cells of 4 slots, 85 % of them busy, 10,000 warm records, on a SQLite store. *Policy* is the choice itself, *decide* adds
//! what control does around it under its lock (learn the news, count open builds), *admit* adds the two round trips to the store.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use activities::control::{Ask, Decision, Fleet};
use activities::store::{BuildRow, Question, Store};
use workflows::contract::{BuildStatus, CellHint, CellId, CellState, PoolMember, PoolSettings, PoolView, ProjectName};
use workflows::policy::{Candidate, Load, PoolMap, Wanted, Warm, choose};

const CELLS: usize = 1000;
const SLOTS: u32 = 4;
const PROJECTS: usize = 1250;
const WARM_EACH: usize = 8;
const ROUNDS: usize = 2000;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(&format!("sqlite://{}/kiln.db", directory.path().display())).await?;
    let view = view()?;
    let loads = fill(&store, &view).await?;
    policy(&view, &loads)?;
    admissions(&store, &view).await
}

fn cell(n: usize) -> Result<CellId, Failure> {
    Ok(format!("c{n:04}").parse()?)
}

fn project(n: usize) -> Result<ProjectName, Failure> {
    Ok(format!("p{n}").parse()?)
}

fn view() -> Result<PoolView, Failure> {
    let member = |n| -> Result<PoolMember, Failure> {
        Ok(PoolMember {
            cell: cell(n)?,
            state: CellState::Ready,
            platform: "linux/amd64".parse()?,
            slots: SLOTS,
            host: None,
            image: None,
            project: None,
        })
    };
    let members = (0..CELLS).map(member).collect::<Result<_, _>>()?;
    Ok(PoolView { pool: "default".parse()?, version: 1, settings: PoolSettings::default(), members })
}

/// Of every 20 slots 17 are busy.
fn busy(cell: usize) -> usize {
    (0..SLOTS as usize).filter(|slot| (cell * SLOTS as usize + slot) % 20 < 17).count()
}

fn warm(project: usize) -> Result<Vec<Warm>, Failure> {
    let one = |n: usize| Ok(Warm { cell: cell((project * 7 + n * 131) % CELLS)?, generation: 1 });
    (0..WARM_EACH).map(one).collect()
}

async fn fill(store: &Store, view: &PoolView) -> Result<Vec<Load>, Failure> {
    store.write_pool(view).await?;
    let mut loads = Vec::new();
    for n in 0..CELLS {
        let hint = CellHint {
            cell: cell(n)?,
            pool: view.pool.clone(),
            platform: "linux/amd64".parse()?,
            state: CellState::Ready,
            slots: SLOTS,
            busy: u32::try_from(busy(n))?,
            epoch: 1,
            generation: 1,
            reported_ms: now_ms()? + 3_600_000,
        };
        store.report_cell(&hint).await?;
        loads.push(Load::of(&hint));
        for slot in 0..busy(n) {
            let running = row(&format!("open-{n}-{slot}"), n % PROJECTS, n, BuildStatus::Running)?;
            store.record_build(&running).await?;
        }
    }
    for p in 0..PROJECTS {
        for warm in warm(p)? {
            store.record_warm(&project(p)?, &"linux/amd64".parse()?, &warm).await?;
        }
    }
    println!(
        "{CELLS} cells, {} open builds, {} warm records",
        (0..CELLS).map(busy).sum::<usize>(),
        PROJECTS * WARM_EACH
    );
    Ok(loads)
}

fn row(key: &str, p: usize, at: usize, status: BuildStatus) -> Result<BuildRow, Failure> {
    let name = project(p)?;
    let input = serde_json::json!({"project": name, "snapshot": "0".repeat(64), "tags": ["r.example/p:1"]});
    Ok(BuildRow {
        workflow_id: format!("build/{name}/{key}"),
        run_id: format!("run-{key}"),
        key: key.parse()?,
        project: name,
        status,
        input: serde_json::from_value(input)?,
        result: None,
        cell: Some(cell(at)?),
        created_ms: 1,
        started_ms: None,
        ended_ms: None,
    })
}

/// The choice alone, in the situations that take different ways through it.
fn policy(view: &PoolView, loads: &[Load]) -> Result<(), Failure> {
    let begun = Instant::now();
    let map = PoolMap::new(view);
    println!("ring of a new view: {:.1} ms, once a version", begun.elapsed().as_secs_f64() * 1e3);
    let full: Vec<Load> = loads.iter().map(|load| Load { busy: load.slots, ..load.clone() }).collect();
    let mut one_free = full.clone();
    one_free[CELLS / 2].busy = 0;
    for (what, loads) in [("85 % busy", loads), ("all busy", &full), ("one cell free", &one_free)] {
        let mut times = Vec::new();
        for n in 0..ROUNDS {
            let (name, warm) = (project(n % PROJECTS)?, warm(n % PROJECTS)?);
            let platform = "linux/amd64".parse()?;
            let wanted = Wanted {
                project: &name,
                platform: &platform,
                now_ms: now_ms()?,
                warm: &warm,
                exclude: &[],
                running: 0,
            };
            let begun = Instant::now();
            let choice = choose(&[Candidate { pool: &map, loads }], &wanted);
            times.push(begun.elapsed());
            choice.ok_or("no cell was chosen")?;
        }
        report(&format!("policy, {what}"), &mut times);
    }
    Ok(())
}

async fn admissions(store: &Store, view: &PoolView) -> Result<(), Failure> {
    let fleet = Fleet::default();
    let platform = "linux/amd64".parse()?;
    let (mut read, mut decide, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let p = n % PROJECTS;
        let (name, key, run_id) = (project(p)?, format!("new-{n}").parse()?, format!("run-new-{n}"));
        let begun = Instant::now();
        let reading = fleet.begin();
        let question = Question { project: &name, key: &key, platform: &platform, run_id: &run_id, seen: reading.seen };
        let facts = store.facts(&question).await?;
        read.push(begun.elapsed());
        let deciding = Instant::now();
        let ask =
            Ask { pool: &view.pool, project: &name, platform: &platform, now_ms: now_ms()?, exclude: &[], cap: None };
        let (decision, placement) = reading.decide(&facts, &ask);
        decide.push(deciding.elapsed());
        let Decision::Chosen(choice) = decision else { return Err("no cell was chosen".into()) };
        let at: usize = choice.cell.as_str()[1..].parse()?;
        let mut placed = row(&format!("new-{n}"), p, at, BuildStatus::Queued)?;
        store.record_build(&placed).await?;
        drop(placement);
        all.push(begun.elapsed());
        // It ends at once, so that the pool stays as full as it was.
        placed.status = BuildStatus::Succeeded;
        store.record_build(&placed).await?;
    }
    report("read the facts", &mut read);
    report("decide", &mut decide);
    report("admit in all", &mut all);
    Ok(())
}

fn now_ms() -> Result<u64, Failure> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{what}: {:.1} us median, {:.1} p99, {:.1} most", at(0.5), at(0.99), at(1.0));
}
