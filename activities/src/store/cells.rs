//! Hints of cells: what each last said of itself. They may be stale; the worker's slots are the truth.

use workflows::contract::{CellHint, PoolName};

use super::{Store, StoreError, encode, failed_to, json};

impl Store {
    /// Keeps a cell's hint unless a newer one (by `reported_ms`) is there.
    pub async fn report_cell(&self, hint: &CellHint) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO cells (cell, pool, hint, reported_ms) VALUES ($1, $2, $3, $4)
             ON CONFLICT (cell) DO UPDATE
             SET pool = excluded.pool, hint = excluded.hint, reported_ms = excluded.reported_ms
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
        let rows = sqlx::query("SELECT hint FROM cells WHERE pool = $1 ORDER BY cell")
            .bind(pool.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("list a pool's cells"))?;
        rows.iter().map(|row| json(row, "hint")).collect()
    }

    /// The hints of all cells, by pool and cell id.
    pub async fn all_cells(&self) -> Result<Vec<CellHint>, StoreError> {
        let rows = sqlx::query("SELECT hint FROM cells ORDER BY pool, cell")
            .fetch_all(&self.pool)
            .await
            .map_err(failed_to("list cells"))?;
        rows.iter().map(|row| json(row, "hint")).collect()
    }
}
