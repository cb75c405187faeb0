//! Hints of cells: what each last said of itself, and what its Cell workflow has ordered, which overrules it. Hints may be stale; the
//! worker's slots are the truth.

use sqlx::any::AnyRow;
use workflows::contract::{CellDetail, CellFacts, CellHint, CellId, CellState, PoolName};
use workflows::policy::STALE_MS;

use super::{Store, StoreError, corrupt, encode, failed_to, json, optional_text};

impl Store {
    /// Keeps a cell's hint unless a later one is there; whether it was kept. Hints are ordered by epoch and sequence. `reported_ms` is
    /// the caller's own time: where the last hint kept is more than [`STALE_MS`] away from it, in either direction, the new one is
    /// kept whatever its numbers are, so that a cell with a new disk, whose epochs begin again, is not ignored.
    pub async fn report_cell(&self, hint: &CellHint) -> Result<bool, StoreError> {
        let kept = sqlx::query(
            "INSERT INTO cells (cell, pool, hint, reported_ms, epoch, sequence, seq)
             VALUES ($1, $2, $3, $4, $5, $6, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cells))
             ON CONFLICT (cell) DO UPDATE
             SET pool = excluded.pool, hint = excluded.hint, reported_ms = excluded.reported_ms,
                 epoch = excluded.epoch, sequence = excluded.sequence, seq = excluded.seq
             WHERE excluded.epoch > cells.epoch
                OR (excluded.epoch = cells.epoch AND excluded.sequence >= cells.sequence)
                OR ABS(excluded.reported_ms - cells.reported_ms) > $7",
        )
        .bind(hint.cell.as_str())
        .bind(hint.pool.as_str())
        .bind(encode(hint)?)
        .bind(signed(hint.reported_ms))
        .bind(signed(hint.epoch))
        .bind(signed(hint.sequence))
        .bind(signed(STALE_MS))
        .execute(&self.pool)
        .await
        .map_err(failed_to("keep a cell's hint"))?;
        Ok(kept.rows_affected() > 0)
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
    pub async fn order_cell(&self, cell: &CellId, state: CellState, detail: &CellDetail) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO cell_orders (cell, state, detail, seq)
             VALUES ($1, $2, $3, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cell_orders))
             ON CONFLICT (cell) DO UPDATE
             SET state = excluded.state, detail = excluded.detail, seq = excluded.seq",
        )
        .bind(cell.as_str())
        .bind(state.as_str())
        .bind(encode(detail)?)
        .execute(&self.pool)
        .await
        .map_err(failed_to("note what is ordered for a cell"))?;
        Ok(())
    }
}

impl Store {
    /// Makes a clone known before it has said anything itself: by what the cell it was copied from last said, but not as one that takes
    /// builds. A clone that is known already, or whose main cell is not, is left alone, and whatever it says itself stands.
    pub async fn introduce_clone(&self, clone: &CellId, main: &CellId) -> Result<(), StoreError> {
        let known = self.all_cells().await?;
        let Some(main) = known.into_iter().find(|hint| hint.cell == *main) else { return Ok(()) };
        let state = CellState::Provisioning;
        let hint = CellHint { cell: clone.clone(), state, busy: 0, epoch: 0, sequence: 0, generation: 0, ..main };
        sqlx::query(
            "INSERT INTO cells (cell, pool, hint, reported_ms, seq)
             VALUES ($1, $2, $3, 0, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cells))
             ON CONFLICT (cell) DO NOTHING",
        )
        .bind(hint.cell.as_str())
        .bind(hint.pool.as_str())
        .bind(encode(&hint)?)
        .execute(&self.pool)
        .await
        .map_err(failed_to("make a clone known"))?;
        Ok(())
    }
}

/// A cell as lists show it.
#[derive(Debug, Clone, PartialEq)]
pub struct CellRow {
    /// With the ordered state.
    pub hint: CellHint,
    pub facts: CellFacts,
    pub detail: CellDetail,
}

impl Store {
    /// Keeps what a cell told of itself beside its hint.
    pub async fn report_facts(&self, cell: &CellId, facts: &CellFacts) -> Result<(), StoreError> {
        sqlx::query("UPDATE cells SET facts = $2 WHERE cell = $1")
            .bind(cell.as_str())
            .bind(encode(facts)?)
            .execute(&self.pool)
            .await
            .map_err(failed_to("keep a cell's facts"))?;
        Ok(())
    }

    /// All cells with all that is known of them, by pool and cell id.
    pub async fn cell_rows(&self) -> Result<Vec<CellRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT hint, facts, cell_orders.state AS ordered, cell_orders.detail AS detail
             FROM cells LEFT JOIN cell_orders ON cell_orders.cell = cells.cell ORDER BY pool, cells.cell",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed_to("list cells"))?;
        rows.iter().map(row_of).collect()
    }
}

fn row_of(row: &AnyRow) -> Result<CellRow, StoreError> {
    let facts = optional_text(row, "facts")?.map(|_| json(row, "facts")).transpose()?.unwrap_or_default();
    let detail = optional_text(row, "detail")?.map(|_| json(row, "detail")).transpose()?.unwrap_or_default();
    Ok(CellRow { hint: hint_of(row)?, facts, detail })
}

/// The hint, with the ordered state in place of a cell's own, unless the cell itself says that it does not take builds: then its own
/// counts where the order knows nothing of it yet.
fn hint_of(row: &AnyRow) -> Result<CellHint, StoreError> {
    let mut hint: CellHint = json(row, "hint")?;
    if let Some(ordered) = optional_text(row, "ordered")? {
        let name = serde_json::Value::String(ordered);
        let ordered: CellState = serde_json::from_value(name).map_err(|source| corrupt("ordered", source))?;
        if ordered != CellState::Ready || hint.state == CellState::Ready {
            hint.state = ordered;
        }
    }
    Ok(hint)
}

/// A number as databases keep it; the contract's bounds leave room.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
