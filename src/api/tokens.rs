//! Tokens: issue, list, revoke; the credentials that hosts get for their cells; and what a token says of itself.

use activities::store::{IssuedToken, NewToken, TokenRow};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use workflows::contract::{CellId, Principal, ProjectName};

use super::access::{AnyAccess, HostAccess, TokenAccess};
use super::audit::Note;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Parameters, Segments};

/// The longest name of a token, characters.
const NAME_MOST: usize = 100;
/// The longest life of a token that expires, seconds: ten years.
const LIFE_MOST_S: u64 = 10 * 366 * 24 * 3600;
/// The life of a build's one-time token that says nothing else, seconds.
const BUILD_LIFE_S: u64 = 24 * 3600;

/// A token to issue.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Who the token stands for.
    pub principal: Principal,
    /// What it is for, to find it again: 1 to 100 characters.
    pub name: String,
    /// Seconds until it expires. When absent it does not, but a build's token does after a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
}

/// A token, without its secret.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenInfo {
    pub id: String,
    pub principal: Principal,
    pub name: String,
    /// Who issued it.
    pub issued_by: String,
    /// Milliseconds since 1970, as the others.
    pub created_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    /// Its last use, up to half a minute late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<i64>,
}

impl From<TokenRow> for TokenInfo {
    fn from(row: TokenRow) -> Self {
        let TokenRow { id, principal, name, issued_by, created_ms, expires_ms, used_ms, .. } = row;
        Self { id, principal, name, issued_by, created_ms, expires_ms, used_ms }
    }
}

/// A token that was issued just now.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenIssued {
    /// What requests send as `Authorization: Bearer …`. It is in this answer only.
    pub token: String,
    #[serde(flatten)]
    pub info: TokenInfo,
}

impl std::fmt::Debug for TokenIssued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssued").field("info", &self.info).finish_non_exhaustive()
    }
}

impl From<IssuedToken> for TokenIssued {
    fn from(issued: IssuedToken) -> Self {
        Self { token: issued.secret, info: issued.row.into() }
    }
}

/// Who a request's token stands for.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Whoami {
    pub principal: Principal,
    /// The token's id; `settings` for the operator's token of the api's settings.
    pub token: String,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TokensQuery {
    /// Only this project's.
    pub project: Option<ProjectName>,
}

/// Issues a token. Its secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest, responses(
    (status = 201, body = TokenIssued), (status = "default", body = ErrorBody)))]
pub async fn create(
    access: TokenAccess,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Extension<Note>, Json<TokenIssued>), ApiError> {
    if !access.manages(&request.principal) {
        return Err(access.refused());
    }
    let app = &access.app;
    let new = NewToken {
        name: checked_name(request.name)?,
        issued_by: access.caller.to_string(),
        expires_ms: expiry(&request.principal, request.expires_in_s)?,
        principal: request.principal,
    };
    if let Some(project) = new.principal.project() {
        app.project_in_use(project).await?;
    }
    let issued = app.store.issue_token(&new).await?;
    Ok((StatusCode::CREATED, noted(&issued.row), Json(issued.into())))
}

/// Which token it is, for the audit log.
fn noted(row: &TokenRow) -> Extension<Note> {
    Note::of(row.principal.project(), format!("{} for {}: {}", row.id, row.principal, row.name))
}

/// The valid tokens that the caller may manage, the newest first.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(TokensQuery), responses(
    (status = 200, body = [TokenInfo]), (status = "default", body = ErrorBody)))]
pub async fn list(
    access: TokenAccess,
    Parameters(query): Parameters<TokensQuery>,
) -> Result<Json<Vec<TokenInfo>>, ApiError> {
    let project = query.project.as_ref().or(access.only());
    let rows = access.app.store.tokens(project).await?;
    Ok(Json(rows.into_iter().filter(|row| access.manages(&row.principal)).map(TokenInfo::from).collect()))
}

/// Revokes a token. It is void at once on this api, and on others within a second.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses(
    (status = 200, body = TokenInfo), (status = "default", body = ErrorBody)))]
pub async fn revoke(
    access: TokenAccess,
    Segments(id): Segments<String>,
) -> Result<(Extension<Note>, Json<TokenInfo>), ApiError> {
    let row = access.app.store.token_of_id(&id).await?.filter(|row| access.manages(&row.principal));
    let row = row.ok_or_else(|| ApiError::not_found(format!("there is no token {id}; see `kiln tokens ls`")))?;
    access.app.store.revoke_token(&row.id).await?;
    access.app.keyring.forget(&row.id);
    Ok((noted(&row), Json(row.into())))
}

/// Issues the credential of a cell to the agent of its host. The former one, which this host got, is revoked.
#[utoipa::path(post, path = "/v1/cells/{cell}/credential", tag = "tokens", params(("cell" = CellId, Path)), responses(
    (status = 201, body = TokenIssued),
    (status = 409, description = "Another host, or an operator, holds the cell's credential", body = ErrorBody),
    (status = "default", body = ErrorBody)))]
pub async fn cell_credential(
    access: HostAccess,
    Segments(cell): Segments<CellId>,
) -> Result<(StatusCode, Extension<Note>, Json<TokenIssued>), ApiError> {
    let issued_by = Principal::Host { host: access.host };
    let new = NewToken {
        name: format!("of cell {cell}"),
        principal: Principal::Cell { cell: cell.clone() },
        // Without the token's id: the credential stays the host's when the host's own token is replaced.
        issued_by: issued_by.to_string(),
        expires_ms: None,
    };
    let issued = access.app.store.replace_token(&new).await?.ok_or_else(|| {
        ApiError::conflict(format!(
            "cell {cell} has a credential that {issued_by} did not get; if the cell is this host's now, revoke that one first"
        ))
    })?;
    Ok((StatusCode::CREATED, noted(&issued.row), Json(issued.into())))
}

/// Who the request's token stands for.
#[utoipa::path(get, path = "/v1/principal", tag = "tokens", responses(
    (status = 200, body = Whoami), (status = "default", body = ErrorBody)))]
pub async fn whoami(access: AnyAccess) -> Json<Whoami> {
    Json(Whoami { principal: access.caller.principal.clone(), token: access.caller.token.clone() })
}

fn checked_name(name: String) -> Result<String, ApiError> {
    let length = name.chars().count();
    if (1..=NAME_MOST).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(name);
    }
    Err(ApiError::usage(format!("a token's name must have 1 to {NAME_MOST} characters, without control characters")))
}

/// When a token expires, milliseconds since 1970.
fn expiry(principal: &Principal, asked_s: Option<u64>) -> Result<Option<i64>, ApiError> {
    let usual = matches!(principal, Principal::Build { .. }).then_some(BUILD_LIFE_S);
    let Some(life_s) = asked_s.or(usual) else { return Ok(None) };
    if !(1..=LIFE_MOST_S).contains(&life_s) {
        return Err(ApiError::usage(format!("expires_in_s is {life_s}: must be 1 to {LIFE_MOST_S}")));
    }
    let life_ms = i64::try_from(life_s).unwrap_or(i64::MAX).saturating_mul(1000);
    Ok(Some(jiff::Timestamp::now().as_millisecond().saturating_add(life_ms)))
}
