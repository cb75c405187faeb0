//! The agent's activities: an order goes to its cell's keeper and comes back with what runs there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use workflows::contract::{BuildError, CellId, FailureClass, HostCell, HostId, HostOrder, PoolName};

use super::{HostError, Keeper};
use crate::entities;
use crate::failure::{failed, retryable};

/// A sign of life of a long order goes out so often.
const BEAT: Duration = Duration::from_secs(1);

/// The cells of one host.
#[derive(Debug, Clone)]
pub struct Host {
    id: HostId,
    keepers: BTreeMap<CellId, Keeper>,
}

#[activities]
impl Host {
    #[activity(name = "start_cell")]
    pub async fn start_cell(
        self: Arc<Self>,
        ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        let client = ctx.client();
        let started = async {
            let keeper = self.keeper(&order.cell)?;
            self.not_elsewhere(&client, &order.pool, &order.cell).await?;
            keeper.start(order.clone()).await
        };
        beating(&ctx, started).await.map_err(|error| activity_error(&error))
    }

    #[activity(name = "stop_cell")]
    pub async fn stop_cell(self: Arc<Self>, ctx: ActivityContext, order: HostOrder) -> Result<HostCell, ActivityError> {
        let stopped = async { self.keeper(&order.cell)?.stop(order.clone()).await };
        beating(&ctx, stopped).await.map_err(|error| activity_error(&error))
    }

    #[activity(name = "inspect_cell")]
    pub async fn inspect_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        self.keeper(&order.cell).map(Keeper::inspect).map_err(|error| activity_error(&error))
    }
}

impl Host {
    pub fn new(id: HostId, keepers: BTreeMap<CellId, Keeper>) -> Self {
        Self { id, keepers }
    }

    /// Ends the cells whose Cell was started by another host: two hosts were told to run one cell, and this is the second.
    pub async fn give_up_foreign(&self, client: &Client, pool: &PoolName, grace: Duration) {
        for (cell, keeper) in &self.keepers {
            if let Err(error @ HostError::Elsewhere { .. }) = self.not_elsewhere(client, pool, cell).await {
                tracing::error!(%error, "not run here");
                keeper.rest(grace).await;
            }
        }
    }

    /// Ends all cells, side by side.
    pub async fn rest(&self, grace: Duration) {
        join_all(self.keepers.values().map(|keeper| keeper.rest(grace))).await;
    }

    fn keeper(&self, cell: &CellId) -> Result<&Keeper, HostError> {
        self.keepers.get(cell).ok_or_else(|| HostError::UnknownCell {
            host: self.id.clone(),
            cell: cell.clone(),
            known: self.keepers.keys().map(CellId::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    async fn not_elsewhere(&self, client: &Client, pool: &PoolName, cell: &CellId) -> Result<(), HostError> {
        match entities::host_of_cell(client, pool, cell).await? {
            Some(by) if by != self.id.as_str() => Err(HostError::Elsewhere { cell: cell.clone(), by }),
            _ => Ok(()),
        }
    }
}

/// Heartbeats while `work` is under way. A cancel request changes nothing: an order that was begun is carried out.
async fn beating<T>(ctx: &ActivityContext, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = beat.tick() => {
                let _ = ctx.record_heartbeat(()).await;
            }
        }
    }
}

fn activity_error(error: &HostError) -> ActivityError {
    let error = BuildError::from(error);
    if error.class == FailureClass::Refused { failed(error) } else { retryable(error) }
}
