//! The order of tags: a tag never moves to a build that started earlier than the one it points at.

use sqlx::any::AnyRow;

use super::{Store, StoreError, failed_to, text};

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagClaim {
    /// Write the tag, then claim it once more: a build that started later may have claimed and written it in between, and
    /// then this build's write has to be undone by writing that build's again.
    Ours,
    /// A build that started later has the tag.
    Superseded {
        /// Its workflow id.
        by: String,
        run_id: String,
    },
}

impl Store {
    /// Claims `tag` (`host/repository:tag`) for a run that started at `started_ms`. Runs are ordered by their start, then by run
    /// id; repeating a claim is harmless.
    pub async fn claim_tag(
        &self,
        tag: &str,
        started_ms: i64,
        workflow_id: &str,
        run_id: &str,
    ) -> Result<TagClaim, StoreError> {
        sqlx::query(
            "INSERT INTO tags (tag, started_ms, workflow_id, run_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tag) DO UPDATE
             SET started_ms = excluded.started_ms, workflow_id = excluded.workflow_id, run_id = excluded.run_id
             WHERE (excluded.started_ms, excluded.run_id) > (tags.started_ms, tags.run_id)",
        )
        .bind(tag)
        .bind(started_ms)
        .bind(workflow_id)
        .bind(run_id)
        .execute(&self.pool)
        .await
        .map_err(failed_to("claim a tag"))?;
        let row = sqlx::query("SELECT workflow_id, run_id FROM tags WHERE tag = $1")
            .bind(tag)
            .fetch_one(&self.pool)
            .await
            .map_err(failed_to("read a tag's claim"))?;
        claim_of(&row, run_id)
    }
}

fn claim_of(row: &AnyRow, run_id: &str) -> Result<TagClaim, StoreError> {
    let holder = text(row, "run_id")?;
    if holder == run_id {
        return Ok(TagClaim::Ours);
    }
    Ok(TagClaim::Superseded { by: text(row, "workflow_id")?, run_id: holder })
}
