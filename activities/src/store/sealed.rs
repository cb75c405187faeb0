//! Which sealed credentials lie in object storage, so that none stays longer than its builds need it.

use sqlx::any::AnyRow;
use workflows::contract::{ProjectId, SecretsRef};

use super::{Store, StoreError, failed_to, id, now_ms};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    pub secrets_ref: SecretsRef,
    pub project_id: ProjectId,
}

impl Store {
    /// Notes that an object is about to be stored.
    pub async fn record_sealed(&self, sealed: &SealedRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sealed (secrets_ref, project_id, created_ms) VALUES ($1, $2, $3)
             ON CONFLICT (secrets_ref) DO NOTHING",
        )
        .bind(sealed.secrets_ref.as_str())
        .bind(sealed.project_id.as_str())
        .bind(now_ms())
        .execute(&self.pool)
        .await
        .map_err(failed_to("note sealed credentials"))?;
        Ok(())
    }

    /// Whether the object behind a reference is still there.
    pub async fn has_sealed(&self, secrets_ref: &SecretsRef) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT secrets_ref FROM sealed WHERE secrets_ref = $1")
            .bind(secrets_ref.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed_to("look sealed credentials up"))?;
        Ok(row.is_some())
    }

    /// What to delete at `now`: references with a run that succeeded, and those older than `keep_ms` that no run uses which is
    /// open or ended less than `keep_ms` ago.
    pub async fn sealed_to_delete(&self, now: i64, keep_ms: i64) -> Result<Vec<SealedRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT secrets_ref, project_id FROM sealed WHERE
             EXISTS (SELECT 1 FROM builds WHERE builds.secrets_ref = sealed.secrets_ref AND builds.status = 'succeeded')
             OR (created_ms < $1 AND NOT EXISTS (
                 SELECT 1 FROM builds WHERE builds.secrets_ref = sealed.secrets_ref
                 AND (builds.ended_ms IS NULL OR builds.ended_ms >= $1)))
             ORDER BY created_ms LIMIT 1000",
        )
        .bind(now - keep_ms)
        .fetch_all(&self.pool)
        .await
        .map_err(failed_to("list sealed credentials"))?;
        rows.iter().map(sealed_of).collect()
    }

    /// Forgets a reference whose object is deleted.
    pub async fn forget_sealed(&self, secrets_ref: &SecretsRef) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sealed WHERE secrets_ref = $1")
            .bind(secrets_ref.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed_to("forget sealed credentials"))?;
        Ok(())
    }
}

fn sealed_of(row: &AnyRow) -> Result<SealedRow, StoreError> {
    Ok(SealedRow { secrets_ref: id(row, "secrets_ref")?, project_id: id(row, "project_id")? })
}
