//! Builds as lists show them: one row a run of a Build workflow, the newest run of a workflow id being the build.
//!
//! Several processes write the same row: the api when it starts a run, control at each change, the api again when it finds a run
//! closed that nobody recorded. What stands is decided by the row itself: a run that ended stays ended.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use workflows::contract::{BuildInput, BuildKey, BuildResult, BuildStatus, CellId, FailureClass, ProjectName};

use super::{
    Store, StoreError, corrupt, encode, failed_to, id, json, now_ms, number, optional_number, optional_text, text,
};

/// One run of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildRow {
    pub project: ProjectName,
    pub key: BuildKey,
    pub workflow_id: String,
    pub run_id: String,
    pub status: BuildStatus,
    pub input: BuildInput,
    /// Set when the run has ended.
    pub result: Option<BuildResult>,
    /// The cell it runs or ran on last.
    pub cell: Option<CellId>,
    /// When the run was started: Temporal's clock where control wrote it. Orders the runs of a build.
    pub created_ms: i64,
    /// When a cell picked it up first.
    pub started_ms: Option<i64>,
    pub ended_ms: Option<i64>,
}

impl BuildRow {
    pub fn run(&self) -> RunKey {
        RunKey { workflow_id: self.workflow_id.clone(), run_id: self.run_id.clone() }
    }

    /// Whether it ended because a rule forbade it.
    pub fn was_refused(&self) -> bool {
        let error = self.result.as_ref().and_then(|result| result.error.as_ref());
        error.is_some_and(|error| error.class == FailureClass::Refused)
    }
}

/// Names one run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunKey {
    pub workflow_id: String,
    pub run_id: String,
}

/// What a list of builds shows.
#[derive(Debug, Clone, Default)]
pub struct BuildFilter {
    pub project: Option<ProjectName>,
    pub status: Option<BuildStatus>,
    /// At most so many, newest first.
    pub limit: u32,
}

const COLUMNS: &str =
    "workflow_id, run_id, project, build_key, status, input, result, cell, created_ms, started_ms, ended_ms";
const INSERT: &str = "INSERT INTO builds (workflow_id, run_id, project, build_key, status, input, result, cell, created_ms, \
                      started_ms, ended_ms, secrets_ref, placed_on) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $8)";
const OPEN: &str = "('queued', 'running', 'publishing')";
/// The cells of a run after an upsert: those of before, and the new one where it is not among them.
const PLACED_ON: &str = "CASE WHEN excluded.cell IS NULL \
                         OR ' ' || COALESCE(builds.placed_on, '') || ' ' LIKE '% ' || excluded.cell || ' %' \
                         THEN builds.placed_on ELSE COALESCE(builds.placed_on || ' ', '') || excluded.cell END";
/// True for the newest run of its workflow id.
const NEWEST: &str = "NOT EXISTS (SELECT 1 FROM builds later WHERE later.workflow_id = builds.workflow_id \
                      AND (later.created_ms, later.run_id) > (builds.created_ms, builds.run_id))";

impl Store {
    /// Notes a run that was just started; does nothing when control was quicker.
    pub async fn record_start(&self, row: &BuildRow) -> Result<(), StoreError> {
        self.insert(row, format!("{INSERT} ON CONFLICT (workflow_id, run_id) DO NOTHING")).await
    }

    /// Writes where a run stands. A run that ended stays as it ended, except that a result is added where there was none. Fields
    /// that are `None` keep what they had.
    pub async fn record_build(&self, row: &BuildRow) -> Result<(), StoreError> {
        let sql = format!(
            "{INSERT} ON CONFLICT (workflow_id, run_id) DO UPDATE SET status = excluded.status,
             result = COALESCE(excluded.result, builds.result), cell = COALESCE(excluded.cell, builds.cell),
             created_ms = excluded.created_ms, started_ms = COALESCE(builds.started_ms, excluded.started_ms),
             ended_ms = COALESCE(excluded.ended_ms, builds.ended_ms), placed_on = {PLACED_ON}
             WHERE builds.status IN {OPEN}
             OR (builds.result IS NULL AND excluded.result IS NOT NULL AND excluded.status NOT IN {OPEN})"
        );
        self.insert(row, sql).await
    }

    /// Notes that a run waits without a cell, and gives up the place it may have had.
    pub async fn record_waiting(&self, row: &BuildRow) -> Result<(), StoreError> {
        let sql = format!(
            "{INSERT} ON CONFLICT (workflow_id, run_id) DO UPDATE SET status = excluded.status, cell = NULL,
             created_ms = excluded.created_ms WHERE builds.status IN {OPEN}"
        );
        self.insert(row, sql).await
    }

    /// Notes that a cell has picked a run up; of one that has got further already, only when.
    pub async fn record_pick_up(&self, run: &RunKey) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE builds SET started_ms = COALESCE(started_ms, $3),
             status = CASE WHEN status = 'queued' THEN 'running' ELSE status END
             WHERE workflow_id = $1 AND run_id = $2",
        )
        .bind(&run.workflow_id)
        .bind(&run.run_id)
        .bind(now_ms())
        .execute(&self.pool)
        .await
        .map_err(failed_to("note that a run was picked up"))?;
        Ok(())
    }

    /// Whether a run was placed on this cell, now or before it moved to another one.
    pub async fn was_placed_on(&self, run: &RunKey, cell: &CellId) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT run_id FROM builds WHERE workflow_id = $1 AND run_id = $2
             AND (cell = $3 OR ' ' || COALESCE(placed_on, '') || ' ' LIKE '% ' || $3 || ' %')",
        )
        .bind(&run.workflow_id)
        .bind(&run.run_id)
        .bind(cell.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed_to("look up where a run was placed"))?;
        Ok(row.is_some())
    }

    async fn insert(&self, row: &BuildRow, sql: String) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(sql))
            .bind(&row.workflow_id)
            .bind(&row.run_id)
            .bind(row.project.as_str())
            .bind(row.key.as_str())
            .bind(row.status.as_str())
            .bind(encode(&row.input)?)
            .bind(row.result.as_ref().map(encode).transpose()?)
            .bind(row.cell.as_ref().map(CellId::as_str))
            .bind(row.created_ms)
            .bind(row.started_ms)
            .bind(row.ended_ms)
            .bind(row.input.secrets_ref.as_ref().map(|secrets| secrets.as_str()))
            .execute(&self.pool)
            .await
            .map_err(failed_to("record a build"))?;
        Ok(())
    }

    /// The newest run of a build, or `None`.
    pub async fn build(&self, workflow_id: &str) -> Result<Option<BuildRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM builds WHERE workflow_id = $1 ORDER BY created_ms DESC, run_id DESC LIMIT 1"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).bind(workflow_id).fetch_optional(&self.pool).await;
        row.map_err(failed_to("read a build"))?.as_ref().map(build_of).transpose()
    }

    /// One run of a build, or `None`.
    pub async fn run(&self, run: &RunKey) -> Result<Option<BuildRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM builds WHERE workflow_id = $1 AND run_id = $2");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&run.workflow_id).bind(&run.run_id);
        let row = query.fetch_optional(&self.pool).await.map_err(failed_to("read a run"))?;
        row.as_ref().map(build_of).transpose()
    }

    /// All runs of a build, newest first.
    pub async fn runs(&self, workflow_id: &str) -> Result<Vec<BuildRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM builds WHERE workflow_id = $1 ORDER BY created_ms DESC, run_id DESC");
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(workflow_id).fetch_all(&self.pool).await;
        rows.map_err(failed_to("list a build's runs"))?.iter().map(build_of).collect()
    }

    /// The newest run of each build that passes the filter, newest first.
    pub async fn builds(&self, filter: &BuildFilter) -> Result<Vec<BuildRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM builds WHERE ($1 = '' OR project = $1) AND ($2 = '' OR status = $2) AND {NEWEST}
             ORDER BY created_ms DESC, run_id DESC LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(filter.project.as_ref().map_or("", ProjectName::as_str))
            .bind(filter.status.map_or("", BuildStatus::as_str))
            .bind(i64::from(filter.limit))
            .fetch_all(&self.pool)
            .await;
        rows.map_err(failed_to("list builds"))?.iter().map(build_of).collect()
    }

    /// The runs started before `before_ms` that have not ended, oldest first, at most `limit` of those after the run `after`, which
    /// is named by when it was started and its id.
    pub async fn open_runs(
        &self,
        before_ms: i64,
        after: &(i64, String),
        limit: u32,
    ) -> Result<Vec<BuildRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM builds WHERE status IN {OPEN} AND created_ms < $1 AND (created_ms, run_id) > ($2, $3)
             ORDER BY created_ms, run_id LIMIT $4"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(before_ms).bind(after.0).bind(&after.1).bind(i64::from(limit));
        let rows = query.fetch_all(&self.pool).await.map_err(failed_to("list open runs"))?;
        rows.iter().map(build_of).collect()
    }

    /// How many runs that have not ended were sent to each cell: its busy slots and its line. The run that asks is left out.
    pub async fn open_by_cell(&self, asking_run: &str) -> Result<BTreeMap<CellId, u32>, StoreError> {
        let sql = format!(
            "SELECT cell, COUNT(*) AS open FROM builds WHERE status IN {OPEN} AND cell IS NOT NULL AND run_id <> $1 GROUP BY cell"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(asking_run).fetch_all(&self.pool).await;
        let rows = rows.map_err(failed_to("count the open runs of each cell"))?;
        let count = |row: &AnyRow| Ok((id(row, "cell")?, u32::try_from(number(row, "open")?).unwrap_or(u32::MAX)));
        rows.iter().map(count).collect()
    }

    /// The runs that were sent to a cell and have not ended, and where they stand.
    pub async fn open_on_cell(&self, cell: &CellId) -> Result<Vec<(RunKey, BuildStatus)>, StoreError> {
        let sql = format!("SELECT workflow_id, run_id, status FROM builds WHERE status IN {OPEN} AND cell = $1");
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(cell.as_str()).fetch_all(&self.pool).await;
        let rows = rows.map_err(failed_to("list the open runs of a cell"))?;
        let run = |row| Ok(RunKey { workflow_id: text(row, "workflow_id")?, run_id: text(row, "run_id")? });
        rows.iter().map(|row| Ok((run(row)?, status_of(row)?))).collect()
    }

    /// Where each of these runs stands; runs that are not recorded are left out. One cheap query for many watchers.
    pub async fn run_states(&self, runs: &[RunKey]) -> Result<Vec<(RunKey, BuildStatus)>, StoreError> {
        let mut states = Vec::with_capacity(runs.len());
        for some in runs.chunks(100) {
            let places: Vec<String> = (0..some.len()).map(|i| format!("(${}, ${})", 2 * i + 1, 2 * i + 2)).collect();
            let sql = format!(
                "SELECT workflow_id, run_id, status FROM builds WHERE (workflow_id, run_id) IN (VALUES {})",
                places.join(", ")
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for run in some {
                query = query.bind(&run.workflow_id).bind(&run.run_id);
            }
            let rows = query.fetch_all(&self.pool).await.map_err(failed_to("read where runs stand"))?;
            for row in &rows {
                let run = RunKey { workflow_id: text(row, "workflow_id")?, run_id: text(row, "run_id")? };
                states.push((run, status_of(row)?));
            }
        }
        Ok(states)
    }
}

fn build_of(row: &AnyRow) -> Result<BuildRow, StoreError> {
    Ok(BuildRow {
        project: id(row, "project")?,
        key: id(row, "build_key")?,
        workflow_id: text(row, "workflow_id")?,
        run_id: text(row, "run_id")?,
        status: status_of(row)?,
        input: json(row, "input")?,
        result: match optional_text(row, "result")? {
            Some(_) => Some(json(row, "result")?),
            None => None,
        },
        cell: match optional_text(row, "cell")? {
            Some(_) => Some(id(row, "cell")?),
            None => None,
        },
        created_ms: number(row, "created_ms")?,
        started_ms: optional_number(row, "started_ms")?,
        ended_ms: optional_number(row, "ended_ms")?,
    })
}

fn status_of(row: &AnyRow) -> Result<BuildStatus, StoreError> {
    let name = text(row, "status")?;
    serde_json::from_value(serde_json::Value::String(name)).map_err(|source| corrupt("status", source))
}
