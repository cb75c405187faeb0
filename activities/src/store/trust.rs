//! Trust rules of projects: whose tokens the api exchanges. What a rule says is the api's.

use sqlx::any::AnyRow;
use workflows::contract::ProjectName;

use super::{Store, StoreError, failed_to, now_ms, number, text};

/// A rule as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRow {
    /// Names the rule in its project: `r-` and 16 hex digits.
    pub id: String,
    /// JSON.
    pub rule: String,
    /// Who added it.
    pub created_by: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

impl Store {
    /// Adds a rule. `None` when the project has `most` already.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn add_trust(
        &self,
        project: &ProjectName,
        rule: &str,
        created_by: &str,
        most: u32,
    ) -> Result<Option<TrustRow>, StoreError> {
        let row = TrustRow {
            id: format!("r-{:016x}", rand::random::<u64>()),
            rule: rule.to_owned(),
            created_by: created_by.to_owned(),
            created_ms: now_ms(),
        };
        let done = sqlx::query(
            "INSERT INTO trust_rules (id, project, rule, created_by, created_ms)
             SELECT $1, $2, $3, $4, $5 WHERE (SELECT COUNT(*) FROM trust_rules WHERE project = $2) < $6",
        )
        .bind(&row.id)
        .bind(project.as_str())
        .bind(&row.rule)
        .bind(&row.created_by)
        .bind(row.created_ms)
        .bind(i64::from(most))
        .execute(&self.pool)
        .await
        .map_err(failed_to("keep a trust rule"))?;
        Ok((done.rows_affected() > 0).then_some(row))
    }

    /// A project's rules, the oldest first. None for a project that is not there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn trust(&self, project: &ProjectName) -> Result<Vec<TrustRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, rule, created_by, created_ms FROM trust_rules WHERE project = $1 ORDER BY created_ms, id",
        )
        .bind(project.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(failed_to("list trust rules"))?;
        rows.iter().map(trust_of).collect()
    }

    /// Removes a rule; whether it was there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn remove_trust(&self, project: &ProjectName, id: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM trust_rules WHERE project = $1 AND id = $2")
            .bind(project.as_str())
            .bind(id)
            .execute(&self.pool)
            .await
            .map_err(failed_to("remove a trust rule"))?;
        Ok(done.rows_affected() > 0)
    }
}

fn trust_of(row: &AnyRow) -> Result<TrustRow, StoreError> {
    Ok(TrustRow {
        id: text(row, "id")?,
        rule: text(row, "rule")?,
        created_by: text(row, "created_by")?,
        created_ms: number(row, "created_ms")?,
    })
}
