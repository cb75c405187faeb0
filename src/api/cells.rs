//! Cells: what they say of themselves.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use workflows::contract::CellHint;

use super::Shared;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;

/// The cells and what each last said of itself, by pool and id.
#[utoipa::path(get, path = "/v1/cells", tag = "cells", responses(
    (status = 200, body = [CellHint]), (status = "default", body = ErrorBody)))]
pub async fn list(State(app): State<Shared>) -> Result<Json<Vec<CellHint>>, ApiError> {
    Ok(Json(app.store.all_cells().await?))
}

/// A cell's hint, sent by its builder on every change; an older one than the last is dropped.
#[utoipa::path(post, path = "/v1/cells/hints", tag = "cells", request_body = CellHint, responses(
    (status = 204, description = "Kept"), (status = "default", body = ErrorBody)))]
pub async fn report(State(app): State<Shared>, Body(hint): Body<CellHint>) -> Result<StatusCode, ApiError> {
    app.store.report_cell(&hint).await?;
    Ok(StatusCode::NO_CONTENT)
}
