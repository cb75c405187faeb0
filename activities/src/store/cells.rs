//! Hints of cells: what each last said of itself, and what its Cell workflow has ordered, which overrules it. Hints may be stale; the
//! worker's slots are the truth.

use sqlx::any::AnyRow;
use workflows::contract::{CellHint, CellId, CellState, PoolName};

use super::{Store, StoreError, corrupt, encode, failed_to, json, optional_text};

impl Store {
    /// Keeps a cell's hint unless a newer one (by `reported_ms`) is there.
    pub async fn report_cell(&self, hint: &CellHint) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO cells (cell, pool, hint, reported_ms, seq)
             VALUES ($1, $2, $3, $4, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cells))
             ON CONFLICT (cell) DO UPDATE
             SET pool = excluded.pool, hint = excluded.hint, reported_ms = excluded.reported_ms, seq = excluded.seq
             WHERE excluded.reported_ms >= cells.reported_ms",
        )
        .bind(hint.cell.as_str())
        .bind(hint.pool.as_str())
        .bind(encode(hint)?)
        .bind(i64::try_from(hint.reported_ms).unwrap_or(i64::MAX))
        .execute(&self.pool)
        .await
        .map_err(failed_to("keep a cell's hint"))?;
        Ok(())
    }

    /// The hints of a pool's cells, by cell id.
    pub async fn cells(&self, pool: &PoolName) -> Result<Vec<CellHint>, StoreError> {
        let rows = sqlx::query(
            "SELECT hint, cell_orders.state AS ordered FROM cells LEFT JOIN cell_orders ON cell_orders.cell = cells.cell
             WHERE pool = $1 ORDER BY cells.cell",
        )
        .bind(pool.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("list a pool's cells"))?;
        rows.iter().map(hint_of).collect()
    }

    /// The hints of all cells, by pool and cell id.
    pub async fn all_cells(&self) -> Result<Vec<CellHint>, StoreError> {
        let rows = sqlx::query(
            "SELECT hint, cell_orders.state AS ordered FROM cells LEFT JOIN cell_orders ON cell_orders.cell = cells.cell
             ORDER BY pool, cells.cell",
        )
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("list cells"))?;
        rows.iter().map(hint_of).collect()
    }

    /// Notes the state that a Cell's workflow has ordered for its cell.
    pub async fn order_cell(&self, cell: &CellId, state: CellState) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO cell_orders (cell, state, seq)
             VALUES ($1, $2, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cell_orders))
             ON CONFLICT (cell) DO UPDATE SET state = excluded.state, seq = excluded.seq",
        )
        .bind(cell.as_str())
        .bind(state.as_str())
        .execute(&self.pool)
        .await
        .map_err(failed_to("note what is ordered for a cell"))?;
        Ok(())
    }
}

/// The hint, with the ordered state in place of a cell's own "ready".
fn hint_of(row: &AnyRow) -> Result<CellHint, StoreError> {
    let mut hint: CellHint = json(row, "hint")?;
    if let Some(ordered) = optional_text(row, "ordered")?
        && hint.state == CellState::Ready
    {
        let name = serde_json::Value::String(ordered);
        hint.state = serde_json::from_value(name).map_err(|source| corrupt("ordered", source))?;
    }
    Ok(hint)
}
