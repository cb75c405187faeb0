//! Pools: who is in them, how their rings are made, and what is known of their cells now.

use std::collections::BTreeMap;

use activities::store::CellRow;
use axum::Json;
use axum::http::StatusCode;
use serde::Serialize;
use workflows::contract::{CellId, PoolMember, PoolName, PoolSettings, PoolView, RemoveMember, SetPool};

use super::App;
use super::access::OperatorAccess;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Segments};

/// A pool with what its cells last said.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PoolInfo {
    pub pool: PoolName,
    /// Raised at each change.
    pub version: u64,
    pub settings: PoolSettings,
    pub cells: Vec<PoolCell>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PoolCell {
    #[serde(flatten)]
    pub member: PoolMember,
    /// Busy slots by its last hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy: Option<u32>,
    /// When that was, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported_ms: Option<u64>,
}

impl PoolInfo {
    fn of(view: PoolView, cells: &BTreeMap<CellId, CellRow>) -> Self {
        let cells = view.members.into_iter().map(|mut member| match cells.get(&member.cell) {
            Some(CellRow { hint, detail, .. }) => {
                // These are newer than what the cell said when it joined, and its Cell's orders are in them.
                member.state = hint.state;
                member.host = detail.host.as_ref().map(ToString::to_string).or(member.host);
                member.image = detail.image.clone().or(member.image);
                PoolCell { member, busy: Some(hint.busy), reported_ms: Some(hint.reported_ms) }
            }
            None => PoolCell { member, busy: None, reported_ms: None },
        });
        Self { pool: view.pool, version: view.version, settings: view.settings, cells: cells.collect() }
    }
}

/// All pools, by name.
#[utoipa::path(get, path = "/v1/pools", tag = "pools", responses(
    (status = 200, body = [PoolInfo]), (status = "default", body = ErrorBody)))]
pub async fn list(OperatorAccess { app, .. }: OperatorAccess) -> Result<Json<Vec<PoolInfo>>, ApiError> {
    let cells = cells(&app).await?;
    let views = app.store.pool_views().await?;
    Ok(Json(views.into_iter().map(|view| PoolInfo::of(view, &cells)).collect()))
}

/// One pool.
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "pools", params(("pool" = PoolName, Path)), responses(
    (status = 200, body = PoolInfo), (status = "default", body = ErrorBody)))]
pub async fn show(
    OperatorAccess { app, .. }: OperatorAccess,
    Segments(pool): Segments<PoolName>,
) -> Result<Json<PoolInfo>, ApiError> {
    let view = known(&app, &pool).await?;
    Ok(Json(PoolInfo::of(view, &cells(&app).await?)))
}

/// Changes a pool's settings; what is left out stays. The pool takes it up within moments.
#[utoipa::path(put, path = "/v1/pools/{pool}/settings", tag = "pools", request_body = SetPool,
    params(("pool" = PoolName, Path)), responses(
    (status = 202, description = "Asked of the pool"), (status = "default", body = ErrorBody)))]
pub async fn set(
    OperatorAccess { app, .. }: OperatorAccess,
    Segments(pool): Segments<PoolName>,
    Body(set): Body<SetPool>,
) -> Result<StatusCode, ApiError> {
    let view = known(&app, &pool).await?;
    let settings = set.apply(&view).map_err(ApiError::refused)?;
    for other in &settings.overflow {
        known(&app, other).await?;
    }
    app.engine.signal_pool(&pool, "set", &set).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Takes a cell out of a pool for good: it gets no more builds. A builder that starts again joins again.
#[utoipa::path(delete, path = "/v1/pools/{pool}/cells/{cell}", tag = "pools",
    params(("pool" = PoolName, Path), ("cell" = CellId, Path)), responses(
    (status = 202, description = "Asked of the pool"), (status = "default", body = ErrorBody)))]
pub async fn remove(
    OperatorAccess { app, .. }: OperatorAccess,
    Segments((pool, cell)): Segments<(PoolName, CellId)>,
) -> Result<StatusCode, ApiError> {
    let view = known(&app, &pool).await?;
    if !view.members.iter().any(|member| member.cell == cell) {
        return Err(ApiError::not_found(format!("pool {pool} has no cell {cell}")));
    }
    app.engine.signal_pool(&pool, "remove", &RemoveMember { cell }).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The view of this pool; 404 that names the pools there are when there is none.
pub async fn known(app: &App, pool: &PoolName) -> Result<PoolView, ApiError> {
    let mut views = app.store.pool_views().await?;
    if let Some(at) = views.iter().position(|view| view.pool == *pool) {
        return Ok(views.swap_remove(at));
    }
    let there: Vec<&str> = views.iter().map(|view| view.pool.as_str()).collect();
    let there = if there.is_empty() { "there are none yet".into() } else { format!("there are: {}", there.join(", ")) };
    Err(ApiError::not_found(format!("there is no pool {pool}; {there}")))
}

async fn cells(app: &App) -> Result<BTreeMap<CellId, CellRow>, ApiError> {
    Ok(app.store.cell_rows().await?.into_iter().map(|row| (row.hint.cell.clone(), row)).collect())
}
