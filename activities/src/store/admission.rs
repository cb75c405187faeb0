//! What admit has to know, in one round trip; and the place a build takes among its project's.
//!
//! Hints, orders and pool views change seldom and are many, so the reader says what it has seen ([`Seen`]) and is told what came
//! after it. A write takes its number before it is committed, so that on PostgreSQL a smaller number may become visible after a
//! larger one: the reader is told the last [`OVERLAP`] numbers again, and reads everything anew from time to time.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use workflows::contract::{
    BuildInput, BuildKey, BuildResult, CellHint, CellId, CellState, FailureClass, Platform, PoolName, PoolView,
    ProjectName, build_workflow_id,
};
use workflows::policy::Warm;

use super::{Outcome, ProjectRow, RunKey, Store, StoreError, corrupt, failed_to, id, json, number, text};

/// See the module.
const OVERLAP: i64 = 8;

/// The highest numbers a reader has seen; below zero before it has read anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub cells: i64,
    pub orders: i64,
    pub pools: i64,
}

impl Seen {
    pub const NOTHING: Self = Self { cells: -1, orders: -1, pools: -1 };
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub project: &'a ProjectName,
    pub key: &'a BuildKey,
    pub platform: &'a Platform,
    /// The run that asks: it does not count itself.
    pub run_id: &'a str,
    /// When that run was started, milliseconds since 1970.
    pub started_ms: i64,
    pub seen: Seen,
}

/// What is known.
#[derive(Debug, Default)]
pub struct Facts {
    pub outcome: Option<Outcome>,
    /// The first of the key's other runs that has begun something: a refused one has not.
    pub begun: Option<Begun>,
    pub project: Option<ProjectRow>,
    /// Where builds of the project succeeded.
    pub warm: Vec<Warm>,
    /// How many runs were sent to each cell and have not ended: its busy slots and its line.
    pub open: BTreeMap<CellId, u32>,
    pub project_runs: ProjectRuns,
    pub news: News,
}

/// What a key was first started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Begun {
    pub input: BuildInput,
    pub created_ms: i64,
    pub run_id: String,
}

/// The other runs of the project that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectRuns {
    /// Those that hold or wait for a slot.
    pub placed: u32,
    /// Those that have waited for a cell for longer than the run that asks.
    pub ahead: u32,
}

/// What has changed since the reader asked last, each with its number.
#[derive(Debug, Default)]
pub struct News {
    pub hints: Vec<(i64, CellHint)>,
    pub orders: Vec<(i64, CellId, CellState)>,
    /// All pools; with their views where those are new.
    pub pools: Vec<(i64, PoolName, Option<PoolView>)>,
}

const OPEN: &str = "('queued', 'running', 'publishing')";

impl Store {
    /// Everything that admit has to know.
    pub async fn facts(&self, question: &Question<'_>) -> Result<Facts, StoreError> {
        let since = |seen: i64| if seen < 0 { -1 } else { seen - OVERLAP };
        let sql = format!(
            "SELECT 'outcome' AS kind, workflow_id AS a, run_id AS b, input_digest AS c, input AS d, result AS e,
                    started_ms AS n, COALESCE(published_ms, -1) AS m
             FROM outcomes WHERE project = $1 AND build_key = $2
             UNION ALL SELECT 'run', run_id, '', '', COALESCE(result, ''), input, created_ms, 0
             FROM builds WHERE workflow_id = $8 AND run_id <> $4
             UNION ALL SELECT 'project', name, id, '', '', settings, created_ms, 0 FROM projects WHERE name = $1
             UNION ALL SELECT 'warm', cell, '', '', '', '', generation, built_ms
             FROM warmth WHERE project = $1 AND platform = $3
             UNION ALL SELECT 'open', '', '', '', '', COALESCE(string_agg(cell, ' '), ''), 0, 0
             FROM builds WHERE status IN {OPEN} AND cell IS NOT NULL AND run_id <> $4
             UNION ALL SELECT 'runs', '', '', '', '', '', COALESCE(SUM(CASE WHEN cell IS NULL THEN 0 ELSE 1 END), 0),
                    COALESCE(SUM(CASE WHEN cell IS NULL AND (created_ms, run_id) < ($9, $4) THEN 1 ELSE 0 END), 0)
             FROM builds WHERE project = $1 AND status IN {OPEN} AND run_id <> $4
             UNION ALL SELECT 'hint', cell, '', '', '', hint, seq, 0 FROM cells WHERE seq > $5
             UNION ALL SELECT 'order', cell, state, '', '', '', seq, 0 FROM cell_orders WHERE seq > $6
             UNION ALL SELECT 'pool', name, '', '', '', CASE WHEN seq > $7 THEN view ELSE '' END, seq, version FROM pools"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(question.project.as_str())
            .bind(question.key.as_str())
            .bind(question.platform.as_str())
            .bind(question.run_id)
            .bind(since(question.seen.cells))
            .bind(since(question.seen.orders))
            .bind(question.seen.pools)
            .bind(build_workflow_id(question.project, question.key))
            .bind(question.started_ms)
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("look up what admitting a build needs"))?;
        let mut facts = Facts::default();
        for row in &rows {
            facts.add(row, question)?;
        }
        Ok(facts)
    }

    /// The run of a project that has waited longest for a cell.
    pub async fn longest_waiting(&self, project: &ProjectName) -> Result<Option<RunKey>, StoreError> {
        let sql = format!(
            "SELECT workflow_id, run_id FROM builds
             WHERE project = $1 AND status IN {OPEN} AND status = 'queued' AND cell IS NULL
             ORDER BY created_ms, run_id LIMIT 1"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).bind(project.as_str()).fetch_optional(&self.pool).await;
        let row = row.map_err(failed_to("find the build of a project that waits longest"))?;
        let run = |row| Ok(RunKey { workflow_id: text(row, "workflow_id")?, run_id: text(row, "run_id")? });
        row.as_ref().map(run).transpose()
    }

    /// How many of a project's runs hold or wait for a slot.
    pub async fn placed_runs(&self, project: &ProjectName) -> Result<u32, StoreError> {
        let sql =
            format!("SELECT COUNT(*) AS open FROM builds WHERE project = $1 AND status IN {OPEN} AND cell IS NOT NULL");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(project.as_str()).fetch_one(&self.pool).await;
        count(&row.map_err(failed_to("count a project's runs"))?, "open")
    }
}

impl Facts {
    fn add(&mut self, row: &AnyRow, question: &Question<'_>) -> Result<(), StoreError> {
        let seq = number(row, "n")?;
        match text(row, "kind")?.as_str() {
            "outcome" => self.outcome = Some(outcome(row, question)?),
            "run" => self.begun = first(self.begun.take(), begun(row)?),
            "project" => {
                let (name, created_ms) = (question.project.clone(), seq);
                self.project = Some(ProjectRow { name, id: id(row, "b")?, created_ms, settings: json(row, "e")? });
            }
            "warm" => self.warm.push(Warm { cell: id(row, "a")?, generation: u64::try_from(seq).unwrap_or(0) }),
            "open" => self.open = count_by_cell(&text(row, "e")?)?,
            "runs" => self.project_runs = ProjectRuns { placed: count(row, "n")?, ahead: count(row, "m")? },
            "hint" => self.news.hints.push((seq, json(row, "e")?)),
            "order" => {
                let name = serde_json::Value::String(text(row, "b")?);
                let state = serde_json::from_value(name).map_err(|source| corrupt("state", source))?;
                self.news.orders.push((seq, id(row, "a")?, state));
            }
            _ => {
                let view = if text(row, "e")?.is_empty() { None } else { Some(json(row, "e")?) };
                self.news.pools.push((seq, id(row, "a")?, view));
            }
        }
        Ok(())
    }
}

/// `<cell> <cell> …`, one for each run. All come in one row, which costs a tenth of one row for each cell, and they are counted here,
/// which costs a fifth of grouping them there.
fn count_by_cell(cells: &str) -> Result<BTreeMap<CellId, u32>, StoreError> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    cells.split_terminator(' ').for_each(|cell| *counts.entry(cell).or_default() += 1);
    let parsed = |(cell, runs): (&str, u32)| Ok((cell.parse().map_err(|source| corrupt("cell", source))?, runs));
    counts.into_iter().map(parsed).collect()
}

/// The run of this row, unless it was refused.
fn begun(row: &AnyRow) -> Result<Option<Begun>, StoreError> {
    if !text(row, "d")?.is_empty() {
        let result: BuildResult = json(row, "d")?;
        if result.error.is_some_and(|error| error.class == FailureClass::Refused) {
            return Ok(None);
        }
    }
    Ok(Some(Begun { input: json(row, "e")?, created_ms: number(row, "n")?, run_id: text(row, "a")? }))
}

fn first(one: Option<Begun>, other: Option<Begun>) -> Option<Begun> {
    one.into_iter().chain(other).min_by(|a, b| (a.created_ms, &a.run_id).cmp(&(b.created_ms, &b.run_id)))
}

fn outcome(row: &AnyRow, question: &Question<'_>) -> Result<Outcome, StoreError> {
    Ok(Outcome {
        project: question.project.clone(),
        key: question.key.clone(),
        workflow_id: text(row, "a")?,
        run_id: text(row, "b")?,
        input_digest: text(row, "c")?,
        input: json(row, "d")?,
        result: json(row, "e")?,
        published: number(row, "m")? >= 0,
        started_ms: number(row, "n")?,
    })
}

fn count(row: &AnyRow, column: &'static str) -> Result<u32, StoreError> {
    Ok(u32::try_from(number(row, column)?).unwrap_or(u32::MAX))
}
