//! The agent's activities: an order goes to its cell's keeper and comes back with what runs there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use workflows::CellSeed;
use workflows::contract::{
    BuildError, CellId, CloneOrder, FailureClass, HostCell, HostClone, HostId, HostOrder, HostWire, PoolName,
};

use super::cells::Cells;
use super::{Begin, DriverError, HostError, Keeper, clones, main_of};
use crate::entities::{self, EntityError};
use crate::failure::{failed, retryable, with_source};

/// A sign of life of a long order goes out so often.
const BEAT: Duration = Duration::from_secs(1);

/// Begins to keep the cell that lies in a directory. With [`Begin::Wanted`] it does what is usual for the agent's cells.
pub type Keep = Arc<dyn Fn(&CellId, &Path, Begin) -> Keeper + Send + Sync>;

/// The cells of one host.
#[derive(Clone)]
pub struct Host {
    id: HostId,
    /// Clones come and go.
    cells: Cells,
    keep: Keep,
}

/// What making a clone needs of the Cells' workflows.
trait CellWorkflows: Sync {
    /// As [`entities::running_cell`], whatever host it names.
    fn runs(&self, pool: &PoolName, cell: &CellId) -> impl Future<Output = Result<bool, EntityError>> + Send;

    /// As [`entities::ensure_cell`].
    fn ensure(&self, seed: CellSeed) -> impl Future<Output = Result<(), EntityError>> + Send;
}

impl CellWorkflows for Client {
    async fn runs(&self, pool: &PoolName, cell: &CellId) -> Result<bool, EntityError> {
        Ok(entities::running_cell(self, pool, cell).await?.is_some())
    }

    async fn ensure(&self, seed: CellSeed) -> Result<(), EntityError> {
        entities::ensure_cell(self, seed).await
    }
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

    #[activity(name = "clone_cell")]
    pub async fn clone_cell(
        self: Arc<Self>,
        ctx: ActivityContext,
        order: CloneOrder,
    ) -> Result<HostClone, ActivityError> {
        let client = ctx.client();
        let made = self.make_clone(&client, &order);
        beating(&ctx, made).await.map_err(|error| activity_error(&error))
    }

    #[activity(name = "delete_clone")]
    pub async fn delete_clone(
        self: Arc<Self>,
        ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        beating(&ctx, self.delete(&order)).await.map_err(|error| activity_error(&error))
    }

    #[activity(name = "replug_cell")]
    pub async fn replug_cell(
        self: Arc<Self>,
        ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostWire, ActivityError> {
        let mended = async { self.keeper(&order.cell)?.replug().await };
        beating(&ctx, mended).await.map_err(|error| activity_error(&error))
    }

    #[activity(name = "inspect_cell")]
    pub async fn inspect_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: HostOrder,
    ) -> Result<HostCell, ActivityError> {
        self.keeper(&order.cell).map(|keeper| keeper.inspect()).map_err(|error| activity_error(&error))
    }
}

impl Host {
    /// `max_cells`: clones among them; 0 for any number.
    pub fn new(id: HostId, keepers: BTreeMap<CellId, Keeper>, keep: Keep, max_cells: usize) -> Self {
        let max_cells = if max_cells == 0 { usize::MAX } else { max_cells };
        Self { id, cells: Cells::new(keepers, max_cells), keep }
    }

    /// Ends the cells whose Cell was started by another host: two hosts were told to run one cell, and this is the second.
    pub async fn give_up_foreign(&self, client: &Client, pool: &PoolName, grace: Duration) {
        for (cell, keeper) in self.cells.all() {
            if let Err(error @ HostError::Elsewhere { .. }) = self.not_elsewhere(client, pool, &cell).await {
                tracing::error!(%error, "not run here");
                keeper.rest(grace).await;
            }
        }
    }

    /// Ends all cells, side by side.
    pub async fn rest(&self, grace: Duration) {
        let all = self.cells.all();
        join_all(all.values().map(|keeper| keeper.rest(grace))).await;
    }

    /// The copy first, then its keeper, then the Cell, which has it started here at once: whoever is interrupted goes on where it was.
    async fn make_clone(&self, workflows: &impl CellWorkflows, asked: &CloneOrder) -> Result<HostClone, HostError> {
        let (order, clone) = (&asked.order, &asked.clone);
        let keeper = self.keeper(&order.cell)?;
        let dir = keeper.dir().with_file_name(clone.as_str());
        let _place = self.cells.take_place(asked)?;
        if !clones::is_made_by(&dir, &order.cell, &order.operation) {
            self.claim_name(workflows, asked, &dir).await?;
        }
        let made = keeper.clone_as(asked.clone()).await;
        if !clones::is_made_by(&dir, &order.cell, &order.operation) {
            // Or it was made before, and deleted since.
            return Err(made.err().unwrap_or_else(|| DriverError::NoDirectory { path: dir }.into()));
        }
        // Whatever comes of the order: what is there is counted and looked after.
        self.cells.keep(clone, || (self.keep)(clone, &dir, Begin::Wanted));
        let made = made?;
        match workflows.ensure(self.seed_of_clone(asked)).await {
            Ok(()) => Ok(made),
            Err(error) => Err(self.not_begun(asked, error).await),
        }
    }

    fn seed_of_clone(&self, CloneOrder { order, clone, slots }: &CloneOrder) -> CellSeed {
        CellSeed {
            host: Some(self.id.clone()),
            provision: true,
            clone_of: Some(order.cell.clone()),
            ..CellSeed::new(clone.clone(), order.pool.clone(), *slots)
        }
    }

    /// Whether the order may have the name. What another order has left under it is this one's, if it is a clone of the same cell and no Cell
    /// goes with it: nobody could use or delete it otherwise.
    async fn claim_name(
        &self,
        workflows: &impl CellWorkflows,
        CloneOrder { order, clone, .. }: &CloneOrder,
        dir: &Path,
    ) -> Result<(), HostError> {
        let left_over = main_of(dir).is_some_and(|main| main == order.cell);
        let taken = self.cells.get(clone).is_some() && !left_over;
        if taken || workflows.runs(&order.pool, clone).await? {
            return Err(HostError::Taken { cell: clone.clone() });
        }
        if left_over {
            tracing::warn!(%clone, main = %order.cell, "a clone without a Cell is there already: it is not made again");
            clones::hand_over(dir, &order.cell, &order.operation)?;
        }
        Ok(())
    }

    /// Another host was quicker: the copy is nobody's.
    async fn not_begun(&self, CloneOrder { order, clone, .. }: &CloneOrder, error: EntityError) -> HostError {
        if matches!(error, EntityError::Elsewhere { .. }) {
            let undo = HostOrder { cell: clone.clone(), ..order.clone() };
            if let Err(error) = self.delete(&undo).await {
                tracing::error!(%clone, error = with_source(&error), "a clone that is another host's cell stays");
            }
        }
        error.into()
    }

    async fn delete(&self, order: &HostOrder) -> Result<HostCell, HostError> {
        let known = self.cells.get(&order.cell);
        let Some(keeper) = known.clone().map_or_else(|| self.find(order), |keeper| Ok(Some(keeper)))? else {
            // Done before, and the answer was lost.
            let cell = order.cell.clone();
            return Ok(HostCell { cell, running: false, pid: None, started_ms: None, image: None, generation: 0 });
        };
        let answer = keeper.delete(order.clone()).await;
        // Another agent has it, or another attempt has deleted it in this moment.
        let is_not_here =
            matches!(answer, Err(HostError::Claimed { .. } | HostError::Driver(DriverError::NoDirectory { .. })));
        if answer.is_ok() || (known.is_none() && is_not_here) {
            self.cells.forget(&order.cell, &keeper);
        }
        answer
    }

    /// The keeper of a clone that lies beside the host's cells although the host does not have it, as when its main cell was taken out of the
    /// settings; `None` when there is none.
    ///
    /// # Errors
    /// That cannot be told.
    fn find(&self, order: &HostOrder) -> Result<Option<Keeper>, HostError> {
        let all = self.cells.all();
        let parents: BTreeSet<_> = all.values().filter_map(|keeper| keeper.dir().parent()).collect();
        let places: Vec<_> = parents.into_iter().map(|parent| parent.join(order.cell.as_str())).collect();
        if let Some(dir) = places.iter().find(|dir| main_of(dir).is_some() || clones::is_half_gone(dir)) {
            let keep = || (self.keep)(&order.cell, dir, Begin::Resting);
            return Ok(Some(self.cells.keep(&order.cell, keep)));
        }
        let is_beside = |main: &CellId| all.get(main).is_some_and(|keeper| keeper.dir().is_dir());
        let is_told = order.clone_of.as_ref().map_or(!places.is_empty(), is_beside);
        let nothing_there = places.iter().all(|dir| matches!(dir.try_exists(), Ok(false)));
        if is_told && nothing_there { Ok(None) } else { Err(self.unknown(&order.cell)) }
    }

    fn keeper(&self, cell: &CellId) -> Result<Keeper, HostError> {
        self.cells.get(cell).ok_or_else(|| self.unknown(cell))
    }

    fn unknown(&self, cell: &CellId) -> HostError {
        let known = self.cells.all().keys().map(CellId::as_str).collect::<Vec<_>>().join(", ");
        HostError::UnknownCell { host: self.id.clone(), cell: cell.clone(), known }
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

#[cfg(test)]
mod tests;
