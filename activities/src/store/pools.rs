//! Pools as placement sees them; written by the Pool's workflow at each change.

use workflows::contract::{PoolName, PoolView};

use super::{Store, StoreError, encode, failed_to, json};

impl Store {
    /// Writes a pool's view unless a newer version is there, and returns the version that is there now.
    pub async fn write_pool(&self, view: &PoolView) -> Result<u64, StoreError> {
        let written = sqlx::query(
            "INSERT INTO pools (name, version, view, seq)
             VALUES ($1, $2, $3, (SELECT COALESCE(MAX(seq), 0) + 1 FROM pools))
             ON CONFLICT (name) DO UPDATE SET version = excluded.version, view = excluded.view, seq = excluded.seq
             WHERE excluded.version >= pools.version RETURNING version",
        )
        .bind(view.pool.as_str())
        .bind(i64::try_from(view.version).unwrap_or(i64::MAX))
        .bind(encode(view)?)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed_to("write a pool's view"))?;
        match written {
            Some(_) => Ok(view.version),
            None => Ok(self.pool_view(&view.pool).await?.map_or(view.version, |newer| newer.version)),
        }
    }

    /// A pool's view, or `None`.
    pub async fn pool_view(&self, name: &PoolName) -> Result<Option<PoolView>, StoreError> {
        let query = sqlx::query("SELECT view FROM pools WHERE name = $1").bind(name.as_str());
        let row = query.fetch_optional(&self.pool).await.map_err(failed_to("read a pool"))?;
        row.as_ref().map(|row| json(row, "view")).transpose()
    }

    /// All pools' views, by name.
    pub async fn pool_views(&self) -> Result<Vec<PoolView>, StoreError> {
        let rows = sqlx::query("SELECT view FROM pools ORDER BY name").fetch_all(&self.pool).await;
        rows.map_err(failed_to("list pools"))?.iter().map(|row| json(row, "view")).collect()
    }
}
