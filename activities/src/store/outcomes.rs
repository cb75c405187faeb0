//! Outcomes: the durable record of a build key's input and result. The first writer wins, for ever.

use sqlx::any::AnyRow;
use workflows::contract::{BuildInput, BuildKey, BuildResult, ProjectName};

use super::{Store, StoreError, encode, failed_to, id, json, now_ms, number, optional_number, text};

#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub project: ProjectName,
    pub key: BuildKey,
    /// Who won.
    pub workflow_id: String,
    pub run_id: String,
    pub input_digest: String,
    /// What the digest is of, so that a refusal can name the fields that differ.
    pub input: BuildInput,
    pub result: BuildResult,
    /// Whether the tags are written.
    pub published: bool,
    /// When the winning run started: the order of its tags.
    pub started_ms: i64,
}

impl Store {
    /// The outcome of a key, published or not, or `None`.
    pub async fn outcome(&self, project: &ProjectName, key: &BuildKey) -> Result<Option<Outcome>, StoreError> {
        let row = sqlx::query("SELECT * FROM outcomes WHERE project = $1 AND build_key = $2")
            .bind(project.as_str())
            .bind(key.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed_to("look an outcome up"))?;
        row.as_ref().map(outcome_of).transpose()
    }

    /// Fixes the outcome of `new`'s key unless it is fixed already, and returns the one that stands: the caller adopts it.
    pub async fn fix_outcome(&self, new: &Outcome) -> Result<Outcome, StoreError> {
        sqlx::query(
            "INSERT INTO outcomes
             (project, build_key, workflow_id, run_id, input_digest, input, result, started_ms, published_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (project, build_key) DO NOTHING",
        )
        .bind(new.project.as_str())
        .bind(new.key.as_str())
        .bind(&new.workflow_id)
        .bind(&new.run_id)
        .bind(&new.input_digest)
        .bind(encode(&new.input)?)
        .bind(encode(&new.result)?)
        .bind(new.started_ms)
        .bind(new.published.then(now_ms))
        .execute(&self.pool)
        .await
        .map_err(failed_to("fix an outcome"))?;
        let standing = self.outcome(&new.project, &new.key).await?;
        standing.ok_or(StoreError::Query { doing: "read an outcome it just fixed", source: sqlx::Error::RowNotFound })
    }

    /// Records that the tags of a key's outcome are written. The result may have gained what publishing found out (the index's
    /// digest, what became of each tag), so it is replaced as well; an outcome that is published already stays as it is.
    pub async fn mark_published(
        &self,
        project: &ProjectName,
        key: &BuildKey,
        result: &BuildResult,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE outcomes SET published_ms = $3, result = $4
             WHERE project = $1 AND build_key = $2 AND published_ms IS NULL",
        )
        .bind(project.as_str())
        .bind(key.as_str())
        .bind(now_ms())
        .bind(encode(result)?)
        .execute(&self.pool)
        .await
        .map_err(failed_to("mark an outcome as published"))?;
        Ok(())
    }
}

fn outcome_of(row: &AnyRow) -> Result<Outcome, StoreError> {
    Ok(Outcome {
        project: id(row, "project")?,
        key: id(row, "build_key")?,
        workflow_id: text(row, "workflow_id")?,
        run_id: text(row, "run_id")?,
        input_digest: text(row, "input_digest")?,
        input: json(row, "input")?,
        result: json(row, "result")?,
        published: optional_number(row, "published_ms")?.is_some(),
        started_ms: number(row, "started_ms")?,
    })
}
