//! Which sealed credentials lie in object storage, so that none stays longer than its builds need it.
//!
//! A reference counts for the project that stored it only: a build of another project that names it neither finds nor uses nor
//! deletes it.

use sqlx::any::AnyRow;
use workflows::contract::{ProjectId, ProjectName, SecretsRef};

use super::{Store, StoreError, failed_to, id, now_ms};

/// The runs that use a row of `sealed`.
macro_rules! runs {
    ($and:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM builds JOIN projects ON projects.name = builds.project
                WHERE projects.id = sealed.project_id AND builds.secrets_ref = sealed.secrets_ref AND ",
            $and,
            ")"
        )
    };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    pub project_id: ProjectId,
    pub secrets_ref: SecretsRef,
}

impl Store {
    /// Notes that an object is about to be stored.
    pub async fn record_sealed(&self, sealed: &SealedRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sealed (project_id, secrets_ref, created_ms) VALUES ($1, $2, $3)
             ON CONFLICT (project_id, secrets_ref) DO NOTHING",
        )
        .bind(sealed.project_id.as_str())
        .bind(sealed.secrets_ref.as_str())
        .bind(now_ms())
        .execute(&self.pool)
        .await
        .map_err(failed_to("note sealed credentials"))?;
        Ok(())
    }

    /// Whether the object behind a project's reference is still there.
    pub async fn has_sealed(&self, project: &ProjectName, secrets_ref: &SecretsRef) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT secrets_ref FROM sealed JOIN projects ON projects.id = sealed.project_id
             WHERE projects.name = $1 AND sealed.secrets_ref = $2",
        )
        .bind(project.as_str())
        .bind(secrets_ref.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed_to("look sealed credentials up"))?;
        Ok(row.is_some())
    }

    /// What to delete at `now`: references that no open run of their project uses, and that one has succeeded with, or that are older
    /// than `keep_ms` while no run with them has ended later than that.
    pub async fn sealed_to_delete(&self, now: i64, keep_ms: i64) -> Result<Vec<SealedRow>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT project_id, secrets_ref FROM sealed WHERE NOT ",
            runs!("builds.status IN ('queued', 'running', 'publishing')"),
            " AND (",
            runs!("builds.status = 'succeeded'"),
            " OR (created_ms < $1 AND NOT ",
            runs!("builds.ended_ms >= $1"),
            ")) ORDER BY created_ms LIMIT 1000"
        ))
        .bind(now - keep_ms)
        .fetch_all(&self.pool)
        .await
        .map_err(failed_to("list sealed credentials"))?;
        rows.iter().map(sealed_of).collect()
    }

    /// Forgets a reference whose object is deleted.
    pub async fn forget_sealed(&self, sealed: &SealedRow) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sealed WHERE project_id = $1 AND secrets_ref = $2")
            .bind(sealed.project_id.as_str())
            .bind(sealed.secrets_ref.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed_to("forget sealed credentials"))?;
        Ok(())
    }
}

fn sealed_of(row: &AnyRow) -> Result<SealedRow, StoreError> {
    Ok(SealedRow { secrets_ref: id(row, "secrets_ref")?, project_id: id(row, "project_id")? })
}
