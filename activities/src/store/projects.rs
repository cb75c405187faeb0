//! Projects: a name, an opaque id that never changes, settings.

use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use workflows::contract::{PoolName, ProjectId, ProjectName, Quotas, RepositoryPattern};

use super::{Store, StoreError, encode, failed_to, id, json, now_ms, number};

/// What a project's owner set. Unknown fields are ignored, missing ones have defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectSettings {
    /// The provenance of builds that do not say: `min`, `max`, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// The pool that builds it; the installation's own when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// How many of its builds may hold or wait for a slot at once, 1 at least; others wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_builds: Option<u32>,
    /// Where it may publish and what it may read of the installation's registry; empty: the default, `own` and `outside`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryPattern>,
    #[serde(flatten)]
    pub quotas: Quotas,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    pub name: ProjectName,
    /// Random, never reused: what object keys and cache-mount namespaces are made of.
    pub id: ProjectId,
    pub created_ms: i64,
    pub settings: ProjectSettings,
}

impl Store {
    /// The project of this name, or `None`.
    pub async fn project(&self, name: &ProjectName) -> Result<Option<ProjectRow>, StoreError> {
        let row = sqlx::query("SELECT name, id, created_ms, settings FROM projects WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed_to("read a project"))?;
        row.as_ref().map(project_of).transpose()
    }

    /// All projects, by name.
    pub async fn projects(&self) -> Result<Vec<ProjectRow>, StoreError> {
        let rows = sqlx::query("SELECT name, id, created_ms, settings FROM projects ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("list projects"))?;
        rows.iter().map(project_of).collect()
    }

    /// Makes the project, or returns the one that is there already.
    pub async fn create_project(&self, name: &ProjectName) -> Result<ProjectRow, StoreError> {
        sqlx::query(
            "INSERT INTO projects (name, id, created_ms, settings) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.as_str())
        .bind(new_project_id())
        .bind(now_ms())
        .bind(encode(&ProjectSettings::default())?)
        .execute(&self.pool)
        .await
        .map_err(failed_to("create a project"))?;
        let found = self.project(name).await?;
        found.ok_or(StoreError::Query { doing: "read a project it just created", source: sqlx::Error::RowNotFound })
    }

    /// Replaces a project's settings; `false` when there is no such project.
    pub async fn set_project(&self, name: &ProjectName, settings: &ProjectSettings) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE projects SET settings = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(encode(settings)?)
            .execute(&self.pool)
            .await
            .map_err(failed_to("change a project"))?;
        Ok(done.rows_affected() > 0)
    }
}

fn new_project_id() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

fn project_of(row: &AnyRow) -> Result<ProjectRow, StoreError> {
    Ok(ProjectRow {
        name: id(row, "name")?,
        id: id(row, "id")?,
        created_ms: number(row, "created_ms")?,
        settings: json(row, "settings")?,
    })
}
