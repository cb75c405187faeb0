//! The audit log: every write of the api becomes a row and a log line, whatever came of it, before its answer is sent. Control adds the
//! signals that Cells and Pools get.
//!
//! What has no principal is not recorded: anybody could fill the log with it. Neither are the hints of cells, which are measurements.

use std::sync::Arc;

use activities::store::{AuditFilter, AuditRow, Store};
use axum::extract::{FromRequestParts as _, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodRouter;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use workflows::contract::ProjectName;

use super::access::{AuditAccess, Gate};
use super::error::{ApiError, ErrorBody, Failed};
use super::extract::Parameters;
use super::principal::Caller;

/// How many rows an answer has unless it is asked for another number, and at most.
const LIST: u32 = 200;
const LIST_MOST: u32 = 1000;
/// The writes that are no acts.
const NOT_RECORDED: &str = "/cells/hints";

/// What a handler adds to its request's row: what its answer made or named.
#[derive(Debug, Clone, Default)]
pub struct Note {
    pub text: String,
    /// Where the path does not name it.
    pub project: Option<ProjectName>,
}

impl Note {
    pub fn new(text: impl Into<String>) -> Extension<Self> {
        Extension(Self { text: text.into(), project: None })
    }

    pub fn of(project: Option<&ProjectName>, text: impl Into<String>) -> Extension<Self> {
        Extension(Self { text: text.into(), project: project.cloned() })
    }
}

/// An act, as the audit log holds it.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    pub id: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Who: a principal, or what a signal says of its sender.
    pub principal: String,
    /// The principal's token, by its id; empty for a signal that did not come through the api.
    pub token: String,
    /// The method and route of a request, or the name of a signal.
    pub action: String,
    /// What the path names.
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// `ok`, or how it failed.
    pub result: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        let AuditRow { id, at_ms, principal, token, action, subject, project, result, note } = row;
        Self { id, at_ms, principal, token, action, subject, project, result, note }
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only this project's.
    pub project: Option<ProjectName>,
    /// From this time on, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// With `after`: the time of the last entry of the former answer.
    pub after_ms: Option<i64>,
    /// Only what follows the entry with this id.
    pub after: Option<String>,
    /// Maximum number of entries; 200 when absent, never more than 1000.
    pub limit: Option<u32>,
}

/// The audit log that the caller may see, the oldest entry first. Entries of the last seconds may still be joined by earlier ones.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery), responses(
    (status = 200, body = [AuditEntry]), (status = "default", body = ErrorBody)))]
pub async fn list(
    AuditAccess { app, only }: AuditAccess,
    Parameters(query): Parameters<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    if only.as_ref().is_some_and(|own| query.project.as_ref().is_some_and(|asked| asked != own)) {
        return Ok(Json(Vec::new()));
    }
    let filter = AuditFilter {
        project: only.or(query.project),
        since_ms: query.since_ms.unwrap_or(i64::MIN),
        after: query.after_ms.zip(query.after),
        limit: query.limit.unwrap_or(LIST).min(LIST_MOST),
    };
    Ok(Json(app.store.audit(&filter).await?.into_iter().map(AuditEntry::from).collect()))
}

/// The routes below `/v1`, whose writes are recorded.
pub struct Routes {
    router: Router<Gate>,
    store: Store,
}

#[derive(Clone)]
struct Recorded {
    store: Store,
    route: &'static str,
}

impl Routes {
    pub fn new(store: &Store) -> Self {
        Self { router: Router::new(), store: store.clone() }
    }

    pub fn route(self, route: &'static str, method: MethodRouter<Gate>) -> Self {
        let recorded = Recorded { store: self.store.clone(), route };
        let router = self.router.route(route, method.layer(from_fn_with_state(recorded, record)));
        Self { router, ..self }
    }

    pub fn into_router(self) -> Router<Gate> {
        self.router
    }
}

/// Records a write, after its handler and before its answer.
///
/// It goes on when the client hangs up: what was done is recorded, whoever waits for the answer.
async fn record(State(Recorded { store, route }): State<Recorded>, request: Request, next: Next) -> Response {
    let (request, row) = begun(request, route).await;
    let Some(row) = row else { return next.run(request).await };
    let recorded = tokio::spawn(async move {
        let response = next.run(request).await;
        write(&store, ended(row, &response)).await;
        response
    });
    recorded.await.unwrap_or_else(|error| ApiError::unavailable("the request failed", &error).into_response())
}

/// The row of a request that is to be recorded, without its end.
async fn begun(request: Request, route: &str) -> (Request, Option<AuditRow>) {
    let (mut parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Arc<Caller>>().cloned();
    let is_read = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let row = match caller {
        Some(caller) if !is_read && route != NOT_RECORDED => {
            let params = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
            let params: Vec<(&str, &str)> = params.iter().flatten().collect();
            Some(row(&parts.method, route, &params, &caller))
        }
        _ => None,
    };
    (Request::from_parts(parts, body), row)
}

fn row(method: &Method, route: &str, params: &[(&str, &str)], caller: &Caller) -> AuditRow {
    let named = |name: &str| params.iter().find(|(param, _)| *param == name).map(|(_, value)| *value);
    let project = named("project").or_else(|| named("build")?.split_once('/').map(|(project, _)| project));
    let own = caller.principal.project().cloned();
    AuditRow {
        id: uuid::Uuid::now_v7().to_string(),
        at_ms: jiff::Timestamp::now().as_millisecond(),
        principal: caller.principal.to_string(),
        token: caller.token.clone(),
        action: format!("{method} /v1{route}"),
        subject: params.iter().map(|(_, value)| *value).collect::<Vec<_>>().join(" "),
        // What a project's token tries elsewhere is its own project's act.
        project: own.or_else(|| project?.parse().ok()),
        result: String::new(),
        note: String::new(),
    }
}

fn ended(row: AuditRow, response: &Response) -> AuditRow {
    let Note { text, project } = response.extensions().get::<Note>().cloned().unwrap_or_default();
    let (result, note) = match response.extensions().get::<Failed>() {
        Some(failed) => (failed.class.as_str().to_owned(), failed.message.clone()),
        None if response.status().is_success() => ("ok".to_owned(), text),
        None => (response.status().to_string(), text),
    };
    AuditRow { result, note, project: row.project.or(project), ..row }
}

async fn write(store: &Store, row: AuditRow) {
    let AuditRow { principal, token, action, subject, result, note, .. } = &row;
    tracing::info!(target: "kiln::audit", principal, token, action, subject, result, note, "audit");
    if let Err(error) = store.record_audit(&row).await {
        tracing::error!(error = &error as &dyn std::error::Error, ?row, "cannot write to the audit log");
    }
}
