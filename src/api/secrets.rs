//! Registry credentials and build secrets: sealed to the fleet's key as they come in, stored as an object, known by reference
//! from then on. The api cannot open them again.

use std::collections::BTreeMap;

use activities::sealed::{self, Sealed, SealedFor};
use activities::store::SealedRow;
use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use workflows::contract::{FailureClass, ProjectId, ProjectName, SecretsRef};

use super::access::{ProjectAccess, Submit};
use super::error::{ApiError, ErrorBody};
use super::extract::{RawBody, parse_secret};

/// Bytes of a request: a build secret is at most 500 KB in BuildKit.
pub const LIMIT: usize = 8 << 20;

/// The body, for the OpenAPI document: parsed as [`Sealed`], whose types hide what they hold.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body of a request")]
pub struct NewSecrets {
    /// By `host[:port]`.
    registry_auth: BTreeMap<String, RegistryAuth>,
    /// By secret id, the bytes as base64.
    secrets: BTreeMap<String, String>,
}

/// One of: user name and password, an identity token, a registry token.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body of a request")]
pub struct RegistryAuth {
    username: Option<String>,
    password: Option<String>,
    identity_token: Option<String>,
    registry_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretsStored {
    /// For inputs of builds of this project. Deleted when a build has succeeded with it and no other one that uses it is open, or a day
    /// after the last one failed.
    pub secrets_ref: SecretsRef,
}

/// The object that holds sealed credentials.
pub fn object_key(project: &ProjectId, secrets_ref: &SecretsRef) -> String {
    format!("p/{project}/sealed/{secrets_ref}")
}

/// Seals credentials and secrets and returns the reference for a build's input.
#[utoipa::path(post, path = "/v1/projects/{project}/secrets", tag = "builds", request_body = NewSecrets,
    params(("project" = ProjectName, Path)), responses(
    (status = 201, body = SecretsStored), (status = "default", body = ErrorBody)))]
pub async fn seal(
    access: ProjectAccess<Submit>,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<SecretsStored>), ApiError> {
    let app = &access.app;
    let content: Sealed = parse_secret(&body)?;
    let recipient = app.recipient.as_ref().ok_or_else(no_key)?;
    let project = app.project_in_use(&access.project).await?;
    let secrets_ref = new_reference()?;
    let owner = SealedFor { project: project.id.clone(), reference: secrets_ref.clone() };
    let sealed = sealed::seal(recipient, &owner, &content)
        .map_err(|error| ApiError::unavailable("the credentials could not be sealed", &error))?;
    // Noted first: an object that no row names would never be deleted.
    app.store.record_sealed(&SealedRow { secrets_ref: secrets_ref.clone(), project_id: project.id.clone() }).await?;
    app.objects.put(&object_key(&project.id, &secrets_ref), sealed.into()).await?;
    Ok((StatusCode::CREATED, Json(SecretsStored { secrets_ref })))
}

fn no_key() -> ApiError {
    let message = "this installation has no key to seal credentials with (seal.recipient is not set)";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, FailureClass::Refused, message)
}

/// Random, so that a reference says nothing.
fn new_reference() -> Result<SecretsRef, ApiError> {
    let text = format!("s-{}", uuid::Uuid::new_v4().simple());
    text.parse().map_err(|error| ApiError::unavailable("no reference could be made", &error))
}
