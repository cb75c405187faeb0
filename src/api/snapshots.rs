//! Snapshots: what is stored already, presigned uploads, manifests. Packs go straight to object storage.

use std::collections::BTreeMap;
use std::time::Duration;

use activities::snapshots::{Begun, LONGEST_MANIFEST, PackRef, PackUpload};
use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use workflows::contract::{FailureClass, ProjectName, SnapshotId};

use super::App;
use super::access::{ProjectAccess, Submit};
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Parameters, RawBody, Segments};

/// Bytes of a request that names packs of a snapshot: ten thousand of them, of which clients name a few at once.
pub const BEGIN_LIMIT: usize = 1 << 20;
/// Bytes of a manifest: what every reader of it reads, which has room for a million entries.
pub const MANIFEST_LIMIT: usize = LONGEST_MANIFEST as usize;
/// How long a client may take to send a manifest that there is room for.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);
/// The header that names a manifest's snapshot.
const SNAPSHOT_HEADER: &str = "kiln-snapshot";

/// Packs that a client has ready.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewSnapshot {
    /// Known with the last packs only.
    #[serde(default)]
    pub id: Option<SnapshotId>,
    /// Of an earlier answer, when this is not the first request for the snapshot.
    #[serde(default)]
    pub session: Option<String>,
    pub packs: Vec<Pack>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pack {
    /// SHA-256 of the stored bytes, 64 lower-case hex digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// What is to be uploaded.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotSession {
    /// The snapshot is stored already: nothing is to be uploaded.
    pub exists: bool,
    /// Sent with the manifest.
    pub session: String,
    /// The packs that are not stored yet.
    pub uploads: Vec<Upload>,
}

#[derive(Serialize, Deserialize, utoipa::ToSchema)]
pub struct Upload {
    pub sha256: String,
    /// For one PUT of these very bytes. It carries a signature: not for logs.
    pub url: String,
    /// To be sent as they are.
    pub headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl From<Begun> for SnapshotSession {
    fn from(begun: Begun) -> Self {
        let upload = |PackUpload { sha256, url, headers }| Upload { sha256, url, headers };
        let uploads = begun.uploads.into_iter().map(upload).collect();
        Self { exists: begun.exists, session: begun.session, uploads }
    }
}

/// The snapshot in the path.
#[derive(Debug, Deserialize)]
pub struct OfSnapshot {
    id: SnapshotId,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CommitQuery {
    /// As answered when the snapshot was begun.
    pub session: String,
}

/// The project's newest snapshot: its manifest as stored, its id in the header `kiln-snapshot`.
#[utoipa::path(get, path = "/v1/projects/{project}/snapshots/latest", tag = "snapshots",
    params(("project" = ProjectName, Path)), responses(
    (status = 200, description = "The manifest", body = Vec<u8>, content_type = "application/octet-stream",
        headers(("kiln-snapshot" = String, description = "The snapshot's id"))),
    (status = 404, description = "The project has no snapshot", body = ErrorBody),
    (status = "default", body = ErrorBody)))]
pub async fn latest(access: ProjectAccess<Submit>) -> Result<Response, ApiError> {
    let (app, project) = (&access.app, &access.project);
    let none = || ApiError::not_found(format!("project {project} has no snapshot"));
    if access.only_build().is_some() {
        // The token of one build sees nothing of the project's other builds.
        return Err(none());
    }
    let row = app.store.project(project).await?.ok_or_else(none)?;
    let (id, manifest) = app.snapshots.latest(&row.id).await?.ok_or_else(none)?;
    let headers = [(SNAPSHOT_HEADER, id.to_string()), (CONTENT_TYPE.as_str(), "application/octet-stream".to_owned())];
    Ok((headers, manifest).into_response())
}

/// Says which packs are missing and presigns their uploads.
#[utoipa::path(post, path = "/v1/projects/{project}/snapshots", tag = "snapshots", request_body = NewSnapshot,
    params(("project" = ProjectName, Path)), responses(
    (status = 200, body = SnapshotSession), (status = "default", body = ErrorBody)))]
pub async fn begin(
    access: ProjectAccess<Submit>,
    Body(new): Body<NewSnapshot>,
) -> Result<Json<SnapshotSession>, ApiError> {
    let app = &access.app;
    let project = app.project_in_use(&access.project).await?;
    let packs: Vec<PackRef> = new.packs.into_iter().map(|Pack { sha256, size }| PackRef { sha256, size }).collect();
    let begun = app.snapshots.begin(&project.id, new.id.as_ref(), new.session.as_deref(), &packs).await?;
    Ok(Json(begun.into()))
}

/// Checks a manifest and its packs, stores it, and makes it the project's newest snapshot.
#[utoipa::path(put, path = "/v1/projects/{project}/snapshots/{id}", tag = "snapshots",
    params(("project" = ProjectName, Path), ("id" = SnapshotId, Path), CommitQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 201, description = "Stored"),
    (status = 200, description = "A manifest for this id was there already and stays"),
    (status = "default", body = ErrorBody)))]
pub async fn commit(
    access: ProjectAccess<Submit>,
    Segments(OfSnapshot { id }): Segments<OfSnapshot>,
    Parameters(query): Parameters<CommitQuery>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let app = &access.app;
    let project = app.project(&access.project).await?;
    let most = project.settings.quotas.snapshot_bytes;
    let manifest = received(app, request).await?;
    let committed = app.snapshots.commit(&project.id, &id, &query.session, manifest, most).await?;
    Ok(if committed.existed { StatusCode::OK } else { StatusCode::CREATED })
}

/// A manifest on its way in. Its length is asked for before there is room for it.
async fn received(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length: u64 = length.ok_or_else(|| {
        let message = "a manifest is sent with its Content-Length";
        ApiError::new(StatusCode::LENGTH_REQUIRED, FailureClass::Usage, message)
    })?;
    let late = || ApiError::usage(format!("the manifest took more than {} s to arrive", UPLOAD_PATIENCE.as_secs()));
    let receive = async {
        let body = tokio::time::timeout(UPLOAD_PATIENCE, RawBody::from_request(request, &())).await;
        body.map_err(|_| late())?.map(|RawBody(bytes)| bytes)
    };
    app.snapshots.receive(length, receive).await
}
