//! Cells and Pools as seen from outside of their workflows: started where they do not run, asked, told who belongs to them.

use temporalio_client::errors::WorkflowInteractionError;
use temporalio_client::{
    Client, UntypedSignal, UntypedWorkflow, WorkflowDescribeOptions, WorkflowExecutionStatus, WorkflowIdConflictPolicy,
    WorkflowSignalOptions, WorkflowStartOptions,
};
use temporalio_common::MemoValues;
use temporalio_common::data_converters::{PayloadConverter, RawValue};
use workflows::contract::{
    CellId, ENTITIES_TASK_QUEUE, HostId, PoolMember, PoolName, RemoveMember, cell_workflow_id, pool_workflow_id,
};
use workflows::{Cell, CellSeed, Pool, PoolSeed};

#[derive(Debug, thiserror::Error)]
pub enum EntityError {
    #[error("the workflow {id:?} cannot be started")]
    Start { id: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the workflow {id:?} cannot be told")]
    Signal { id: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the workflow {id:?} cannot be looked at")]
    Describe { id: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cell {cell} belongs to host {by}, not to {host}: its Cell was started there")]
    Elsewhere { cell: CellId, host: HostId, by: String },
}

/// The memo of a Cell that names its host; it goes from run to run and is read without a worker.
const HOST_MEMO: &str = "host";

/// Starts the cell's entity where it does not run yet. The host that starts it has the cell: another one is refused.
pub async fn ensure_cell(client: &Client, seed: CellSeed) -> Result<(), EntityError> {
    let id = cell_workflow_id(&seed.pool, &seed.cell);
    let (pool, cell, host) = (seed.pool.clone(), seed.cell.clone(), seed.host.clone());
    let memo = host.as_ref().map(|host| {
        let mut memo = MemoValues::new();
        memo.insert(HOST_MEMO, host.to_string());
        memo
    });
    let options = WorkflowStartOptions::new(ENTITIES_TASK_QUEUE, id.clone())
        .id_conflict_policy(WorkflowIdConflictPolicy::UseExisting)
        .maybe_memo(memo)
        .build();
    let started = client.start_workflow(Cell::run, seed, options).await;
    started.map_err(|source| EntityError::Start { id, source: Box::new(source) })?;
    let Some(host) = host else { return Ok(()) };
    match host_of_cell(client, &pool, &cell).await? {
        Some(by) if by != host.as_str() => Err(EntityError::Elsewhere { cell, host, by }),
        _ => Ok(()),
    }
}

/// The host that the running Cell names; `None` when there is no Cell or it names none.
pub async fn host_of_cell(client: &Client, pool: &PoolName, cell: &CellId) -> Result<Option<String>, EntityError> {
    Ok(running_cell(client, pool, cell).await?.flatten())
}

/// The host of the running Cell, if it names one; `None` when there is no Cell.
pub async fn running_cell(
    client: &Client,
    pool: &PoolName,
    cell: &CellId,
) -> Result<Option<Option<String>>, EntityError> {
    let id = cell_workflow_id(pool, cell);
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| EntityError::Describe { id: id.clone(), source };
    let handle = client.get_workflow_handle::<UntypedWorkflow>(id.clone());
    let described = match handle.describe(WorkflowDescribeOptions::default()).await {
        Err(WorkflowInteractionError::NotFound(_)) => return Ok(None),
        described => described.map_err(|e| failed(Box::new(e)))?,
    };
    if !matches!(described.status(), WorkflowExecutionStatus::Running) {
        return Ok(None);
    }
    described.memo().get(HOST_MEMO).map(Some).map_err(|e| failed(Box::new(e)))
}

/// Makes a cell a member of its pool; the pool's entity is started by its first cell.
pub async fn join_pool(client: &Client, pool: &PoolName, member: &PoolMember) -> Result<(), EntityError> {
    let id = pool_workflow_id(pool);
    let options = WorkflowStartOptions::new(ENTITIES_TASK_QUEUE, id.clone())
        .id_conflict_policy(WorkflowIdConflictPolicy::UseExisting)
        .build();
    let seed = PoolSeed { pool: pool.clone(), carried: None };
    let member = RawValue::from_value(member, &PayloadConverter::serde_json());
    let joined = client.signal_with_start_workflow(Pool::run, seed, Pool::add, member, options).await;
    joined.map(|_| ()).map_err(|source| EntityError::Start { id, source: Box::new(source) })
}

/// Starts the pool's entity where it does not run: one that was terminated goes on from the view it wrote last.
pub async fn ensure_pool(client: &Client, pool: &PoolName) -> Result<(), EntityError> {
    let id = pool_workflow_id(pool);
    let options = WorkflowStartOptions::new(ENTITIES_TASK_QUEUE, id.clone())
        .id_conflict_policy(WorkflowIdConflictPolicy::UseExisting)
        .build();
    let started = client.start_workflow(Pool::run, PoolSeed { pool: pool.clone(), carried: None }, options).await;
    started.map(|_| ()).map_err(|source| EntityError::Start { id, source: Box::new(source) })
}

/// Takes a cell out of its pool. A pool whose entity does not run has nobody to tell; placement leaves deleted cells alone anyway.
pub async fn leave_pool(client: &Client, pool: &PoolName, cell: CellId) -> Result<(), EntityError> {
    let id = pool_workflow_id(pool);
    let handle = client.get_workflow_handle::<UntypedWorkflow>(id.clone());
    let member = RawValue::from_value(&RemoveMember { cell }, &PayloadConverter::serde_json());
    let told = handle.signal(UntypedSignal::new("remove"), member, WorkflowSignalOptions::default()).await;
    match told {
        Ok(()) | Err(WorkflowInteractionError::NotFound(_)) => Ok(()),
        Err(source) => Err(EntityError::Signal { id, source: Box::new(source) }),
    }
}
