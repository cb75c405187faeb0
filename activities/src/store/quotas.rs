//! Counts that projects' quotas are checked against.

use workflows::contract::ProjectName;

use super::{Store, StoreError, failed_to, number};

impl Store {
    /// Counts a build that a project wants to start in a minute (since 1970), of which there may be `most`; whether it may. One statement,
    /// so that many apis at once let no more through. One of the five minutes before the last one counted is taken for that one: clocks
    /// differ.
    pub async fn count_start(&self, project: &ProjectName, minute: i64, most: u32) -> Result<bool, StoreError> {
        let counted = sqlx::query(
            "INSERT INTO quota_windows (project, minute, started) VALUES ($1, $2, 1)
             ON CONFLICT (project) DO UPDATE
             SET started = CASE WHEN excluded.minute BETWEEN quota_windows.minute - 5 AND quota_windows.minute
                                THEN quota_windows.started + 1 ELSE 1 END,
                 minute = CASE WHEN excluded.minute BETWEEN quota_windows.minute - 5 AND quota_windows.minute
                               THEN quota_windows.minute ELSE excluded.minute END
             WHERE quota_windows.started < $3
                OR NOT excluded.minute BETWEEN quota_windows.minute - 5 AND quota_windows.minute",
        )
        .bind(project.as_str())
        .bind(minute)
        .bind(i64::from(most))
        .execute(&self.pool)
        .await
        .map_err(failed_to("count a project's builds"))?;
        Ok(counted.rows_affected() > 0)
    }

    /// How many builds of a project have not ended.
    pub async fn open_builds(&self, project: &ProjectName) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS open FROM builds
             WHERE project = $1 AND status IN ('queued', 'running', 'publishing')",
        )
        .bind(project.as_str())
        .fetch_one(&self.pool)
        .await
        .map_err(failed_to("count a project's open builds"))?;
        Ok(u64::try_from(number(&row, "open")?).unwrap_or(0))
    }
}
