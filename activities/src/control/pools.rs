//! What the Pools' workflows need of the store.

use std::sync::Arc;

use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use workflows::contract::{PoolName, PoolView};

use super::store_error;
use crate::store::Store;

pub struct Pools {
    pub store: Store,
}

#[activities]
impl Pools {
    #[activity(name = "write_pool")]
    pub async fn write_pool(self: Arc<Self>, _ctx: ActivityContext, view: PoolView) -> Result<u64, ActivityError> {
        self.store.write_pool(&view).await.map_err(|e| store_error(&e))
    }

    #[activity(name = "read_pool")]
    pub async fn read_pool(
        self: Arc<Self>,
        _ctx: ActivityContext,
        pool: PoolName,
    ) -> Result<Option<PoolView>, ActivityError> {
        self.store.pool_view(&pool).await.map_err(|e| store_error(&e))
    }
}
