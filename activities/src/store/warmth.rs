//! Warmth: on which cells a project's builds succeeded lately, so that the next one goes where its layers are.

use sqlx::any::AnyRow;
use workflows::contract::{CellId, Platform, ProjectName, WARM_CELLS};
use workflows::policy::Warm;

use super::{Store, StoreError, failed_to, id, now_ms, number};

/// A record that says the same as before is renewed only when it is older than this: on a warm cell a build writes nothing here.
const RENEW_MS: i64 = 60_000;

impl Store {
    /// Notes that a build succeeded on a cell whose cache was of this generation, and forgets all but the newest
    /// [`WARM_CELLS`] cells of the project and platform.
    pub async fn record_warm(&self, project: &ProjectName, platform: &Platform, warm: &Warm) -> Result<(), StoreError> {
        let written = sqlx::query(
            "INSERT INTO warmth (project, platform, cell, generation, built_ms) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (project, platform, cell) DO UPDATE
             SET generation = excluded.generation, built_ms = excluded.built_ms
             WHERE warmth.generation <> excluded.generation OR warmth.built_ms < excluded.built_ms - $6",
        )
        .bind(project.as_str())
        .bind(platform.as_str())
        .bind(warm.cell.as_str())
        .bind(i64::try_from(warm.generation).unwrap_or(i64::MAX))
        .bind(now_ms())
        .bind(RENEW_MS)
        .execute(&self.pool)
        .await
        .map_err(failed_to("note where a build succeeded"))?;
        match written.rows_affected() {
            0 => Ok(()),
            _ => self.forget_old_warmth(project, platform).await,
        }
    }

    async fn forget_old_warmth(&self, project: &ProjectName, platform: &Platform) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM warmth WHERE project = $1 AND platform = $2 AND cell NOT IN
             (SELECT cell FROM warmth WHERE project = $1 AND platform = $2 ORDER BY built_ms DESC, cell LIMIT $3)",
        )
        .bind(project.as_str())
        .bind(platform.as_str())
        .bind(WARM_CELLS as i64)
        .execute(&self.pool)
        .await
        .map_err(failed_to("forget where builds succeeded long ago"))?;
        Ok(())
    }

    /// Where builds of the project succeeded, the last one first.
    pub async fn warm(&self, project: &ProjectName, platform: &Platform) -> Result<Vec<Warm>, StoreError> {
        let rows = sqlx::query(
            "SELECT cell, generation FROM warmth WHERE project = $1 AND platform = $2 ORDER BY built_ms DESC, cell",
        )
        .bind(project.as_str())
        .bind(platform.as_str())
        .fetch_all(&self.pool)
        .await;
        rows.map_err(failed_to("read where builds succeeded"))?.iter().map(warm_of).collect()
    }
}

fn warm_of(row: &AnyRow) -> Result<Warm, StoreError> {
    Ok(Warm { cell: id::<CellId>(row, "cell")?, generation: u64::try_from(number(row, "generation")?).unwrap_or(0) })
}
