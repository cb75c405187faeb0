//! The exchange and a project's trust rules, over HTTP.

use std::time::Duration;

use activities::egress::{Egress, Limits, Request};
use activities::store::{AuditRow, NewToken, TokenRow, TrustRow};
use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use url::Url;
use workflows::contract::{Principal, ProjectName, Scope};

use super::rules::{RULES, TrustRule};
use super::verify::TOKEN_LIMIT;
use super::{ExchangeError, Fetch, Issuers, Pace, Trusted, Unread, check};
use crate::api::access::{Admin, ProjectAccess, PublicAccess};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{Body, RawBody, Segments, parse_secret};

/// The largest request for an exchange.
pub const LIMIT: usize = TOKEN_LIMIT + 1024;
/// Exchanges at a time: whoever asks for one has shown nothing yet.
const AT_ONCE: usize = 32;
/// For one document of an issuer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the routes share.
pub struct Exchange {
    issuers: Issuers<Egress>,
    room: Semaphore,
}

impl Exchange {
    /// Reads issuers' documents through `egress`.
    pub fn new(egress: Egress) -> Self {
        Self { issuers: Issuers::new(egress, Pace::default()), room: Semaphore::new(AT_ONCE) }
    }
}

impl Fetch for Egress {
    async fn fetch(&self, url: Url, limit: usize) -> Result<Vec<u8>, Unread> {
        let limits = Limits { bytes: limit, deadline: DEADLINE, redirects: 2 };
        let host = url.host_str().unwrap_or_default().to_owned();
        match self.send(Request::get(url), limits).await {
            Ok(answer) if answer.status.is_success() => Ok(answer.body.to_vec()),
            Ok(answer) => Err(Unread::for_now(format!("{host} answers {}", answer.status))),
            Err(error) => {
                let (why, may_pass) = (activities::failure::with_source(&error), !error.is_final());
                Err(Unread { why, may_pass })
            }
        }
    }
}

/// A token of another issuer, to be exchanged.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeRequest {
    /// The project whose trust rules count.
    pub project: ProjectName,
    /// The job's token: a signed JSON web token.
    pub token: String,
}

impl std::fmt::Debug for ExchangeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExchangeRequest").field("project", &self.project).finish_non_exhaustive()
    }
}

/// A project's token for a while.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
pub struct Exchanged {
    /// What requests send as `Authorization: Bearer …`.
    pub token: String,
    pub project: ProjectName,
    pub scope: Scope,
    /// Milliseconds since 1970.
    pub expires_ms: i64,
}

impl std::fmt::Debug for Exchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchanged").field("project", &self.project).field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// A trust rule of a project.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrustInfo {
    pub id: String,
    pub rule: TrustRule,
    /// Who added it.
    pub created_by: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// Exchanges a token that a CI system gave to its job for one of a project. Needs no other token.
#[utoipa::path(post, path = "/v1/oidc/token", tag = "tokens", security(()), request_body = ExchangeRequest, responses(
    (status = 201, body = Exchanged),
    (status = 403, description = "The token is not genuine, not valid now, or no trust rule fits it", body = ErrorBody),
    (status = 429, description = "Too many exchanges at a time; try again", body = ErrorBody),
    (status = 503, description = "The issuer's keys cannot be read; try again", body = ErrorBody),
    (status = "default", body = ErrorBody)))]
pub async fn exchange(
    PublicAccess(app): PublicAccess,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Exchanged>), ApiError> {
    let ExchangeRequest { project, token } = parse_secret(&body)?;
    let room = app.exchange.room.try_acquire();
    let _room = room.map_err(|_| ApiError::busy("too many tokens are being exchanged; try again"))?;
    let rules: Vec<_> = app.store.trust(&project).await?.into_iter().filter_map(|row| rule_of(&row)).collect();
    let trusted = check(&app.exchange.issuers, &rules, &token).await.map_err(|error| {
        tracing::info!(%project, error = &error as &dyn std::error::Error, "a token was not exchanged");
        not_exchanged(&error)
    })?;
    // A rule of a project that is gone opens nothing.
    app.project(&project).await?;
    let life_ms = i64::from(trusted.rule.ttl_s) * 1000;
    let expires_ms = jiff::Timestamp::now().as_millisecond() + life_ms;
    let scope = trusted.rule.scope;
    let new = NewToken {
        principal: Principal::Project { project: project.clone(), scope },
        name: format!("ci: {}", trusted.subject).chars().take(100).collect(),
        issued_by: format!("oidc {}", trusted.rule.issuer),
        expires_ms: Some(expires_ms),
    };
    let issued = app.store.issue_token(&new).await?;
    app.store.record_audit(&exchange_row(&project, &trusted, &issued.row)).await?;
    tracing::info!(%project, token = issued.row.id, subject = trusted.subject, "exchanged a job's token");
    Ok((StatusCode::CREATED, Json(Exchanged { token: issued.secret, project, scope, expires_ms })))
}

/// Recorded here, as the request has no principal. What was not exchanged is not: strangers could fill the log with it.
fn exchange_row(project: &ProjectName, trusted: &Trusted, token: &TokenRow) -> AuditRow {
    AuditRow {
        id: uuid::Uuid::now_v7().to_string(),
        at_ms: jiff::Timestamp::now().as_millisecond(),
        principal: format!("{} of {}", trusted.subject, trusted.rule.issuer),
        token: String::new(),
        action: "POST /v1/oidc/token".into(),
        subject: project.to_string(),
        project: Some(project.clone()),
        result: "ok".into(),
        note: format!("{} for {}", token.id, token.principal),
    }
}

fn not_exchanged(error: &ExchangeError) -> ApiError {
    match error {
        ExchangeError::Away(away) if !away.may_pass => ApiError::refused(away.to_string()),
        ExchangeError::Away(away) => ApiError::unavailable("the keys of the token's issuer cannot be read", away),
        refused => ApiError::forbidden(refused.to_string()),
    }
}

/// Trusts the tokens of another issuer that fit a rule.
#[utoipa::path(post, path = "/v1/projects/{project}/trust", tag = "projects", params(("project" = ProjectName, Path)),
    request_body = TrustRule, responses((status = 201, body = TrustInfo), (status = "default", body = ErrorBody)))]
pub async fn add(
    access: ProjectAccess<Admin>,
    Body(rule): Body<TrustRule>,
) -> Result<(StatusCode, Json<TrustInfo>), ApiError> {
    rule.check().map_err(|bad| ApiError::usage(format!("this rule is not taken: {bad}")))?;
    let app = &access.app;
    app.project(&access.project).await?;
    let json = serde_json::to_string(&rule).map_err(|error| ApiError::usage(error.to_string()))?;
    let most = u32::try_from(RULES).unwrap_or(u32::MAX);
    let row = app.store.add_trust(&access.project, &json, &access.caller.to_string(), most).await?;
    let row = row.ok_or_else(|| ApiError::refused(format!("a project has at most {RULES} trust rules")))?;
    let info = info_of(row).ok_or_else(|| ApiError::usage("the rule cannot be read back"))?;
    Ok((StatusCode::CREATED, Json(info)))
}

/// Whose tokens a project trusts, the oldest rule first; that is the order in which they are tried.
#[utoipa::path(get, path = "/v1/projects/{project}/trust", tag = "projects", params(("project" = ProjectName, Path)),
    responses((status = 200, body = [TrustInfo]), (status = "default", body = ErrorBody)))]
pub async fn list(access: ProjectAccess<Admin>) -> Result<Json<Vec<TrustInfo>>, ApiError> {
    access.app.project(&access.project).await?;
    let rows = access.app.store.trust(&access.project).await?;
    Ok(Json(rows.into_iter().filter_map(info_of).collect()))
}

#[derive(Deserialize)]
pub struct InProject {
    #[serde(rename = "project")]
    _project: ProjectName,
    rule: String,
}

/// Trusts no more tokens by a rule. Those that were exchanged by it stay valid for the rest of their time.
#[utoipa::path(delete, path = "/v1/projects/{project}/trust/{rule}", tag = "projects",
    params(("project" = ProjectName, Path), ("rule" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub async fn remove(
    access: ProjectAccess<Admin>,
    Segments(InProject { rule, .. }): Segments<InProject>,
) -> Result<StatusCode, ApiError> {
    match access.app.store.remove_trust(&access.project, &rule).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!("there is no trust rule {rule} in project {}", access.project))),
    }
}

fn info_of(row: TrustRow) -> Option<TrustInfo> {
    let rule = rule_of(&row)?;
    Some(TrustInfo { id: row.id, rule, created_by: row.created_by, created_ms: row.created_ms })
}

/// A rule that a newer version kept and this one cannot read trusts nobody.
fn rule_of(row: &TrustRow) -> Option<TrustRule> {
    let rule = serde_json::from_str(&row.rule);
    rule.inspect_err(|error| tracing::error!(%error, rule = row.id, "a trust rule cannot be read")).ok()
}
