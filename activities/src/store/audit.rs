//! The audit log: who did what, on what, with what result. Rows are added and read; nothing here changes or deletes one.

use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use workflows::contract::ProjectName;

use super::{Store, StoreError, failed_to, id, number, optional_text, text};

/// How much of a text is kept, bytes: what is named comes from outside.
const TEXT_MOST: usize = 2048;

/// One act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Names the row; a row that is added again under its id changes nothing.
    pub id: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Who: a principal of the api, or what a signal says of its sender.
    pub principal: String,
    /// The principal's token, by its id; empty for a signal that did not come through the api.
    pub token: String,
    /// What: the method and route of a request, or the name of a signal.
    pub action: String,
    /// On what.
    pub subject: String,
    /// The project that it belongs to, if it belongs to one.
    pub project: Option<ProjectName>,
    /// `ok`, or how it failed.
    pub result: String,
    pub note: String,
}

/// Which rows a list shows.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub project: Option<ProjectName>,
    /// From this time on, milliseconds since 1970.
    pub since_ms: i64,
    /// After the row with this time and id.
    pub after: Option<(i64, String)>,
    pub limit: u32,
}

const COLUMNS: &str = "id, at_ms, principal, token, action, subject, project, result, note";

impl Store {
    /// Adds an act to the log, unless it is there.
    pub async fn record_audit(&self, row: &AuditRow) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO audit ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(&row.id)
            .bind(row.at_ms)
            .bind(cut(&row.principal))
            .bind(cut(&row.token))
            .bind(cut(&row.action))
            .bind(cut(&row.subject))
            .bind(row.project.as_ref().map(ProjectName::as_str))
            .bind(cut(&row.result))
            .bind(cut(&row.note))
            .execute(&self.pool)
            .await
            .map_err(failed_to("write to the audit log"))?;
        Ok(())
    }

    /// The acts that pass the filter, the oldest first.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM audit WHERE ($1 = '' OR project = $1) AND at_ms >= $2 AND (at_ms, id) > ($3, $4)
             ORDER BY at_ms, id LIMIT $5"
        );
        let (after_ms, after) = filter.after.clone().unwrap_or((i64::MIN, String::new()));
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(filter.project.as_ref().map_or("", ProjectName::as_str))
            .bind(filter.since_ms)
            .bind(after_ms)
            .bind(after)
            .bind(i64::from(filter.limit))
            .fetch_all(&self.pool)
            .await;
        rows.map_err(failed_to("read the audit log"))?.iter().map(row_of).collect()
    }
}

/// The beginning of a text that is too long.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MOST)]
}

fn row_of(row: &AnyRow) -> Result<AuditRow, StoreError> {
    Ok(AuditRow {
        id: text(row, "id")?,
        at_ms: number(row, "at_ms")?,
        principal: text(row, "principal")?,
        token: text(row, "token")?,
        action: text(row, "action")?,
        subject: text(row, "subject")?,
        project: match optional_text(row, "project")? {
            Some(_) => Some(id(row, "project")?),
            None => None,
        },
        result: text(row, "result")?,
        note: text(row, "note")?,
    })
}
