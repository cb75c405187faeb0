//! What is known of logs that have left the receiver's disk for object storage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RunKey, Store, StoreError, encode, failed_to, json, number, optional_text};

/// A run's archived log: objects numbered from 0, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivedLog {
    /// How many objects; more than one only when records came after the first was written.
    pub parts: u32,
    /// Lines in all parts: the position the next record follows.
    pub lines: u64,
    /// The last record's number, by attempt (BuildKit ref): what is sent again after that is dropped.
    pub attempts: BTreeMap<String, u64>,
    /// The steps that the log names, as the api keeps them; `None` when it was archived before they were kept.
    pub steps: Option<String>,
    /// Where parts begin; those archived before this was kept are missing.
    pub starts: Vec<PartStart>,
}

/// Where a part of an archived log begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStart {
    pub part: u32,
    /// The position of the line before it.
    pub position: u64,
    /// Whose records its first lines are, as JSON; `None` when its first line says it.
    pub attempt: Option<String>,
}

impl Store {
    /// What is archived of a run's log, or `None` when nothing is.
    pub async fn archived_log(&self, run: &RunKey) -> Result<Option<ArchivedLog>, StoreError> {
        let row = sqlx::query(
            "SELECT parts, lines, attempts, steps, starts FROM logs WHERE workflow_id = $1 AND run_id = $2",
        )
        .bind(&run.workflow_id)
        .bind(&run.run_id)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed_to("look an archived log up"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(ArchivedLog {
            parts: u32::try_from(number(&row, "parts")?).unwrap_or(0),
            lines: u64::try_from(number(&row, "lines")?).unwrap_or(0),
            attempts: json(&row, "attempts")?,
            steps: optional_text(&row, "steps")?,
            starts: optional_text(&row, "starts")?.map(|_| json(&row, "starts")).transpose()?.unwrap_or_default(),
        }))
    }

    /// Records what is archived of a run's log, after its objects are written.
    pub async fn record_archived_log(&self, run: &RunKey, log: &ArchivedLog) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO logs (workflow_id, run_id, parts, lines, attempts, steps, starts)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (workflow_id, run_id) DO UPDATE
             SET parts = excluded.parts, lines = excluded.lines, attempts = excluded.attempts, steps = excluded.steps,
                 starts = excluded.starts
             WHERE excluded.parts >= logs.parts",
        )
        .bind(&run.workflow_id)
        .bind(&run.run_id)
        .bind(i64::from(log.parts))
        .bind(i64::try_from(log.lines).unwrap_or(i64::MAX))
        .bind(encode(&log.attempts)?)
        .bind(log.steps.as_deref())
        .bind(encode(&log.starts)?)
        .execute(&self.pool)
        .await
        .map_err(failed_to("record an archived log"))?;
        Ok(())
    }
}
