//! Cells: what they say of themselves, what their Cells say of them, and what operators order.

use std::time::Duration;

use activities::store::CellRow;
use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use workflows::contract::{
    BuildStatus, CellDetail, CellFacts, CellHint, CellId, CellImage, CellState, CellStatus, CloneRequest, DrainRequest,
    FailureClass, SignalRecord, UpdateRequest, cell_workflow_id,
};
use workflows::policy::STALE_MS;

use super::App;
use super::access::{CellAccess, OperatorAccess};
use super::engine::EngineError;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Segments};
use super::principal::Caller;

/// How long a signal may take until its Cell says what became of it.
const VERDICT: Duration = Duration::from_secs(8);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A cell in a list.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellInfo {
    #[serde(flatten)]
    pub hint: CellHint,
    /// Builds that were sent there and wait for a slot.
    pub line: u32,
    #[serde(default)]
    pub facts: CellFacts,
    #[serde(default)]
    pub detail: CellDetail,
}

/// Everything about a cell.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellView {
    #[serde(flatten)]
    pub info: CellInfo,
    /// What its Cell says; absent while that does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<CellStatus>,
    /// Builds that were sent there and have not ended.
    pub builds: Vec<BuildThere>,
}

/// A build on a cell.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildThere {
    /// `<project>/<key>`
    pub build_id: String,
    pub status: BuildStatus,
}

/// An order; `image` is for `update` alone.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CellOrder {
    #[serde(flatten)]
    pub drain: DrainRequest,
    pub image: Option<String>,
    /// Drain a cell although it is the last one of its pool that takes builds.
    pub force: bool,
}

/// What became of an order so far.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellOrdered {
    pub cell: CellId,
    pub record: SignalRecord,
}

/// What a builder reports.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellReported {
    #[serde(flatten)]
    pub hint: CellHint,
    #[serde(default)]
    pub facts: Option<CellFacts>,
}

/// The cells and what each last said of itself, by pool and id.
#[utoipa::path(get, path = "/v1/cells", tag = "cells", responses(
    (status = 200, body = [CellInfo]), (status = "default", body = ErrorBody)))]
pub async fn list(OperatorAccess { app, .. }: OperatorAccess) -> Result<Json<Vec<CellInfo>>, ApiError> {
    let open = app.store.open_by_cell("").await?;
    let rows = app.store.cell_rows().await?;
    Ok(Json(rows.into_iter().map(|row| info(&open, row)).collect()))
}

fn info(open: &std::collections::BTreeMap<CellId, u32>, row: CellRow) -> CellInfo {
    let line = open.get(&row.hint.cell).copied().unwrap_or(0).saturating_sub(row.hint.busy);
    CellInfo { line, hint: row.hint, facts: row.facts, detail: row.detail }
}

/// One cell: what it and its Cell say, and the builds there.
#[utoipa::path(get, path = "/v1/cells/{cell}", tag = "cells", params(("cell" = CellId, Path)), responses(
    (status = 200, body = CellView), (status = "default", body = ErrorBody)))]
pub async fn show(
    OperatorAccess { app, .. }: OperatorAccess,
    Segments(cell): Segments<CellId>,
) -> Result<Json<CellView>, ApiError> {
    let (row, _) = app.cell(&cell).await?;
    let open = app.store.open_by_cell("").await?;
    let runs = app.store.open_on_cell(&cell).await?;
    let there = |workflow_id: String| workflow_id.strip_prefix("build/").map(str::to_owned).unwrap_or(workflow_id);
    let builds =
        runs.into_iter().map(|(run, status)| BuildThere { build_id: there(run.workflow_id), status }).collect();
    let status = app.engine.cell_status(&cell_workflow_id(&row.hint.pool, &cell)).await.ok();
    Ok(Json(CellView { info: info(&open, row), status, builds }))
}

/// Stops a cell from taking builds; running ones finish, or move to other cells at the deadline.
#[utoipa::path(post, path = "/v1/cells/{cell}/drain", tag = "cells", request_body = CellOrder, params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn drain(
    OperatorAccess { app, caller }: OperatorAccess,
    Segments(cell): Segments<CellId>,
    Body(order): Body<CellOrder>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, rows) = app.cell(&cell).await?;
    app.may_stop_taking_builds(&row.hint, &rows, order.force).await?;
    app.order(row, "drain", serde_json::to_value(valid(order.drain, &caller)?)).await
}

/// Lets a cell take builds again.
#[utoipa::path(post, path = "/v1/cells/{cell}/undrain", tag = "cells", params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn undrain(
    OperatorAccess { app, .. }: OperatorAccess,
    Segments(cell): Segments<CellId>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, _) = app.cell(&cell).await?;
    app.order(row, "undrain", Ok(serde_json::Value::Null)).await
}

/// Drains a cell, stops and starts it through its host, and lets it take builds again when it solves.
#[utoipa::path(post, path = "/v1/cells/{cell}/restart", tag = "cells", request_body = CellOrder,
    params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn restart(
    OperatorAccess { app, caller }: OperatorAccess,
    Segments(cell): Segments<CellId>,
    Body(order): Body<CellOrder>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, _) = app.cell(&cell).await?;
    app.order(row, "restart", serde_json::to_value(valid(order.drain, &caller)?)).await
}

/// A restart with another image.
#[utoipa::path(post, path = "/v1/cells/{cell}/update", tag = "cells", request_body = CellOrder,
    params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn update(
    OperatorAccess { app, caller }: OperatorAccess,
    Segments(cell): Segments<CellId>,
    Body(order): Body<CellOrder>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, _) = app.cell(&cell).await?;
    let image = order.image.ok_or_else(|| ApiError::usage("an update names an image"))?;
    image.parse::<CellImage>().map_err(|error| ApiError::usage(error.to_string()))?;
    app.order(row, "update", serde_json::to_value(UpdateRequest { image, drain: valid(order.drain, &caller)? })).await
}

/// Has the cell's host make another cell whose cache begins as a copy of this one's. This one goes on; the new one starts by itself.
#[utoipa::path(post, path = "/v1/cells/{cell}/clone", tag = "cells", request_body = CloneRequest,
    params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn clone(
    OperatorAccess { app, caller }: OperatorAccess,
    Segments(cell): Segments<CellId>,
    Body(mut request): Body<CloneRequest>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, rows) = app.cell(&cell).await?;
    let taken = |row: &&CellRow| row.hint.cell == request.name && row.hint.state != CellState::Deleted;
    if let Some(other) = rows.iter().find(taken) {
        let (name, state) = (&other.hint.cell, other.hint.state.as_str());
        return Err(ApiError::refused(format!(
            "there is a cell {name} already, it is {state}: name the clone otherwise"
        )));
    }
    request.by = Some(asked_by(request.by, &caller));
    app.order(row, "clone", serde_json::to_value(request)).await
}

/// Drains a clone, stops it, and deletes it with its disk. Only clones are deleted.
#[utoipa::path(post, path = "/v1/cells/{cell}/delete", tag = "cells", request_body = CellOrder,
    params(("cell" = CellId, Path)),
    responses((status = 202, body = CellOrdered), (status = "default", body = ErrorBody)))]
pub async fn delete(
    OperatorAccess { app, caller }: OperatorAccess,
    Segments(cell): Segments<CellId>,
    Body(order): Body<CellOrder>,
) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
    let (row, rows) = app.cell(&cell).await?;
    app.may_stop_taking_builds(&row.hint, &rows, order.force).await?;
    app.order(row, "delete", serde_json::to_value(valid(order.drain, &caller)?)).await
}

/// Who asked for an order: the principal, after what the client says of its user.
fn asked_by(user: Option<String>, caller: &Caller) -> String {
    match user {
        Some(user) => format!("{user}, {caller}"),
        None => caller.to_string(),
    }
}

fn valid(request: DrainRequest, caller: &Caller) -> Result<DrainRequest, ApiError> {
    match request.deadline {
        Some(deadline) if deadline <= jiff::Timestamp::now() => {
            Err(ApiError::usage(format!("the deadline {deadline} is in the past")))
        }
        _ => Ok(DrainRequest { by: Some(asked_by(request.by, caller)), ..request }),
    }
}

/// A cell's hint and facts, sent by its builder on every change; an earlier one than the last, by epoch and sequence, is dropped. Taken
/// from the cell itself alone.
#[utoipa::path(post, path = "/v1/cells/hints", tag = "cells", request_body = CellReported, responses(
    (status = 204, description = "Kept"), (status = "default", body = ErrorBody)))]
pub async fn report(access: CellAccess, Body(said): Body<CellReported>) -> Result<StatusCode, ApiError> {
    let CellAccess { app, cell } = access;
    if said.hint.cell != cell {
        return Err(ApiError::forbidden(format!("cell {cell} does not report for cell {}", said.hint.cell)));
    }
    let hint = CellHint { reported_ms: now_ms(), ..said.hint.clone() };
    let kept = app.store.report_cell(&hint).await?;
    if let Some(facts) = said.facts.as_ref().filter(|_| kept) {
        app.store.report_facts(&said.hint.cell, facts).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

impl App {
    /// The cell of this id, and all cells; 404 when there is none of this id.
    async fn cell(&self, cell: &CellId) -> Result<(CellRow, Vec<CellRow>), ApiError> {
        let rows = self.store.cell_rows().await?;
        let row = rows.iter().find(|row| row.hint.cell == *cell).cloned();
        let row = row.ok_or_else(|| ApiError::not_found(format!("there is no cell {cell}; see `kiln cells ls`")))?;
        Ok((row, rows))
    }

    /// Refused for the last cell of its pool that takes builds, unless that is meant.
    async fn may_stop_taking_builds(&self, cell: &CellHint, rows: &[CellRow], force: bool) -> Result<(), ApiError> {
        if force || cell.state != CellState::Ready || self.others_take_builds(cell, rows).await? {
            return Ok(());
        }
        Err(ApiError::refused(format!(
            "cell {} is the last of pool {} that takes builds: with it drained, builds wait; add --force to drain it",
            cell.cell, cell.pool
        )))
    }

    /// Whether the pool has other members that are ready and were heard of lately. The last word of a cell that was switched off may
    /// have been that it is ready.
    async fn others_take_builds(&self, cell: &CellHint, rows: &[CellRow]) -> Result<bool, ApiError> {
        let view = self.store.pool_view(&cell.pool).await?;
        let is_member = |other: &CellId| view.as_ref().is_none_or(|view| view.members.iter().any(|m| m.cell == *other));
        let now_ms = now_ms();
        let takes_builds = |hint: &CellHint| {
            hint.state == CellState::Ready
                && now_ms.saturating_sub(hint.reported_ms) <= STALE_MS
                && is_member(&hint.cell)
        };
        let mut others =
            rows.iter().map(|row| &row.hint).filter(|other| other.pool == cell.pool && other.cell != cell.cell);
        Ok(others.any(takes_builds))
    }

    /// Signals the Cell and waits for what it makes of it.
    async fn order(
        &self,
        row: CellRow,
        signal: &str,
        payload: serde_json::Result<serde_json::Value>,
    ) -> Result<(StatusCode, Json<CellOrdered>), ApiError> {
        let cell = row.hint.cell;
        let id = cell_workflow_id(&row.hint.pool, &cell);
        let payload = payload.map_err(|e| ApiError::from(EngineError::Encode(e)))?;
        let gone = |error| match error {
            EngineError::NotFound => {
                ApiError::not_found(format!("cell {cell} has no Cell workflow {id}; is its builder up?"))
            }
            error => error.into(),
        };
        let before = latest(&self.engine.cell_status(&id).await.map_err(gone)?, signal);
        self.engine.signal(&id, signal, &payload).await.map_err(gone)?;
        let asked = tokio::time::Instant::now();
        while asked.elapsed() < VERDICT {
            let now = latest(&self.engine.cell_status(&id).await.map_err(gone)?, signal);
            if let Some(record) = now.filter(|now| Some(now.at_ms) != before.as_ref().map(|before| before.at_ms)) {
                return Ok((StatusCode::ACCEPTED, Json(CellOrdered { cell, record })));
            }
            tokio::time::sleep(LOOK).await;
        }
        let message = format!("the Cell of {cell} has not answered yet; see `kiln cells show {cell}`");
        Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, FailureClass::Transient, message))
    }
}

/// The last record of a signal.
fn latest(status: &CellStatus, signal: &str) -> Option<SignalRecord> {
    status.signals.iter().rev().find(|record| record.signal == signal).cloned()
}
