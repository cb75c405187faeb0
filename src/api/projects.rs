//! Projects: create, list, show.

use activities::store::{self, ProjectRow};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use workflows::contract::{PoolName, ProjectId, ProjectName, Quotas, RepositoryPattern};
use workflows::policy::REPOSITORY_PATTERNS;

use super::access::{Admin, ListAccess, PlatformAccess, ProjectAccess, Read};
use super::audit::Note;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewProject {
    pub name: ProjectName,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectInfo {
    pub name: ProjectName,
    /// Opaque; names the project's objects and its cache mounts.
    pub id: ProjectId,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    pub settings: ProjectSettings,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectSettings {
    /// The provenance of builds that do not say: `min`, `max`, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// The pool that builds it; the installation's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// How many of its builds may hold or wait for a slot at once, 1 at least; others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_builds: Option<u32>,
    /// Where its builds may publish, and what they may read of the installation's registry: `own`, `outside`, or
    /// `host[:port]/path` with `*` and `**`; at most 64. Empty: `own` and `outside`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryPattern>,
    #[serde(flatten)]
    pub quotas: Quotas,
}

impl From<ProjectRow> for ProjectInfo {
    fn from(row: ProjectRow) -> Self {
        let store::ProjectSettings { provenance, pool, max_concurrent_builds, repositories, quotas } = row.settings;
        let settings = ProjectSettings { provenance, pool, max_concurrent_builds, repositories, quotas };
        Self { name: row.name, id: row.id, created_ms: row.created_ms, settings }
    }
}

/// Creates a project. One that is there already is returned as it is.
#[utoipa::path(post, path = "/v1/projects", tag = "projects", request_body = NewProject, responses(
    (status = 201, description = "Created now", body = ProjectInfo),
    (status = 200, description = "It was there already", body = ProjectInfo),
    (status = "default", body = ErrorBody)))]
pub async fn create(
    PlatformAccess { app }: PlatformAccess,
    Body(new): Body<NewProject>,
) -> Result<(StatusCode, Extension<Note>, Json<ProjectInfo>), ApiError> {
    let status = match app.store.project(&new.name).await? {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let row = app.store.create_project(&new.name).await?;
    Ok((status, Note::of(Some(&row.name), row.name.as_str()), Json(row.into())))
}

/// All projects that the caller may see, by name.
#[utoipa::path(get, path = "/v1/projects", tag = "projects", responses(
    (status = 200, body = [ProjectInfo]), (status = "default", body = ErrorBody)))]
pub async fn list(ListAccess { app, only }: ListAccess) -> Result<Json<Vec<ProjectInfo>>, ApiError> {
    let rows = match only {
        Some(project) => app.store.project(&project).await?.into_iter().collect(),
        None => app.store.projects().await?,
    };
    Ok(Json(rows.into_iter().map(ProjectInfo::from).collect()))
}

/// One project.
#[utoipa::path(get, path = "/v1/projects/{project}", tag = "projects", params(("project" = ProjectName, Path)), responses(
    (status = 200, body = ProjectInfo), (status = "default", body = ErrorBody)))]
pub async fn show(access: ProjectAccess<Read>) -> Result<Json<ProjectInfo>, ApiError> {
    Ok(Json(access.app.project(&access.project).await?.into()))
}

/// Replaces a project's settings. They count for builds that are started from then on. Only an operator or a platform changes the pool,
/// the cap and the repositories.
#[utoipa::path(put, path = "/v1/projects/{project}/settings", tag = "projects", request_body = ProjectSettings,
    params(("project" = ProjectName, Path)), responses(
    (status = 200, body = ProjectInfo), (status = "default", body = ErrorBody)))]
pub async fn set(
    access: ProjectAccess<Admin>,
    Body(settings): Body<ProjectSettings>,
) -> Result<Json<ProjectInfo>, ApiError> {
    let (app, project) = (&access.app, &access.project);
    if !access.is_of_installation() {
        check_limits_stay(&app.project(project).await?.settings, &settings)?;
    }
    let ProjectSettings { provenance, pool, max_concurrent_builds, repositories, quotas } = settings;
    let provenance = super::builds::provenance(provenance)?;
    if max_concurrent_builds == Some(0) {
        return Err(ApiError::refused("max_concurrent_builds is 0: must be 1 or more; leave it out for no cap"));
    }
    if repositories.len() > REPOSITORY_PATTERNS {
        let count = repositories.len();
        return Err(ApiError::refused(format!("repositories has {count} patterns: at most {REPOSITORY_PATTERNS}")));
    }
    if let Some(pool) = &pool {
        super::pools::known(app, pool).await?;
    }
    let row = app.project(project).await?;
    let settings = store::ProjectSettings { provenance, pool, max_concurrent_builds, repositories, quotas };
    app.store.set_project(&row.name, &settings).await?;
    Ok(Json(app.project(project).await?.into()))
}

/// A project does not choose its own pool, how much of the installation it may use, or whose repositories.
fn check_limits_stay(now: &store::ProjectSettings, to: &ProjectSettings) -> Result<(), ApiError> {
    let same_limits = now.pool == to.pool && now.max_concurrent_builds == to.max_concurrent_builds;
    if same_limits && now.repositories == to.repositories && now.quotas == to.quotas {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "pool, max_concurrent_builds, repositories and quotas are set by an operator or the platform; leave them as they are",
    ))
}
