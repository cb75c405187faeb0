//! Telling builds that their cell is no place for them any more, and waiting ones that there may be a place.
//!
//! By signal to each Build, from an activity: so nothing of it is in the Cell's history but one marker, however many builds there are;
//! the Build itself knows best whether its attempt has to be waited for, and its admission chooses the next cell. Failing the attempt
//! from here instead would need its task token, which only the builder has; cancelling the workflow would end the build.
//!
//! Who has an attempt that a builder has not heard of is asked of Temporal: it keeps the identity of the worker that it gave a task to,
//! and a builder's has its epoch in it.

use futures::future::join_all;
use temporalio_client::Client;
use temporalio_client::grpc::WorkflowService;
use temporalio_client::tonic::{Code, Request};
use temporalio_common::protos::temporal::api::common::v1::{Payload, Payloads, WorkflowExecution};
use temporalio_common::protos::temporal::api::workflowservice::v1::SignalWorkflowExecutionRequest;
use workflows::activities::TellOrder;
use workflows::contract::{BuildStatus, CellId, MoveNotice, ProjectName};

use crate::failure::with_source;
use crate::store::{RunKey, Store, StoreError};
use crate::temporal::{builder_epoch, taken_activities};

/// Signals at once.
const AT_ONCE: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum TellError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a notice cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("{workflow_id} could not be asked for the builder that has it: {why}")]
    Describe { workflow_id: String, why: String },
    #[error("{untold} builds could not be told: {why}")]
    Signal { untold: usize, why: String },
}

/// Tells the builds of `order`, and returns how many there were.
pub async fn tell_builds(store: &Store, client: &Client, order: &TellOrder) -> Result<u32, TellError> {
    let notice = MoveNotice { cell: order.cell.clone(), lost: order.lost, reason: order.reason.clone() };
    let data = serde_json::to_vec(&notice)?;
    let runs = store.open_on_cell(&order.cell).await?;
    let mut told: Vec<RunKey> =
        runs.into_iter().filter(|(run, status)| has_to_move(order, run, *status)).map(|(run, _)| run).collect();
    if let Some(epoch) = order.unknown_to {
        told = taken_by_a_former_builder(client, told, &order.cell, epoch).await?;
    }
    let mut failed = Vec::new();
    for some in told.chunks(AT_ONCE) {
        let ended = join_all(some.iter().map(|run| signal(client, run, "move_on", &data))).await;
        failed.extend(ended.into_iter().filter_map(Result::err));
    }
    match failed.first() {
        None => Ok(u32::try_from(told.len()).unwrap_or(u32::MAX)),
        Some(why) => Err(TellError::Signal { untold: failed.len(), why: why.clone() }),
    }
}

/// Those of `runs` whose attempt is with a builder of `cell` of another epoch.
async fn taken_by_a_former_builder(
    client: &Client,
    runs: Vec<RunKey>,
    cell: &CellId,
    epoch: u64,
) -> Result<Vec<RunKey>, TellError> {
    let mut taken = Vec::new();
    for some in runs.chunks(AT_ONCE) {
        let asked = join_all(some.iter().map(|run| takers(client, run))).await;
        for (run, takers) in some.iter().zip(asked) {
            let takers = takers.map_err(|why| TellError::Describe { workflow_id: run.workflow_id.clone(), why })?;
            if takers.iter().filter_map(|identity| builder_epoch(identity, cell)).any(|taken| taken != epoch) {
                taken.push(run.clone());
            }
        }
    }
    Ok(taken)
}

/// The identities of the workers that the run's activities were given to; none when it has ended.
async fn takers(client: &Client, run: &RunKey) -> Result<Vec<String>, String> {
    let taken = taken_activities(client, &run.workflow_id, &run.run_id).await?;
    let activities = taken.into_iter().flat_map(|taken| taken.activities);
    Ok(activities.map(|activity| activity.last_worker_identity).collect())
}

fn execution(run: &RunKey) -> WorkflowExecution {
    WorkflowExecution { workflow_id: run.workflow_id.clone(), run_id: run.run_id.clone() }
}

/// Of a lost cell all; else those in its line: what its builder says it runs is left alone. A build that publishes is past its cell.
fn has_to_move(order: &TellOrder, run: &RunKey, status: BuildStatus) -> bool {
    let runs = order.except.iter().any(|a| a.workflow_id == run.workflow_id && a.run_id == run.run_id);
    status != BuildStatus::Publishing && !runs
}

/// Wakes the build of a project that waits longest for a cell. Only sooner than it would look by itself: what fails is logged.
pub async fn wake_longest_waiting(store: &Store, client: &Client, project: &ProjectName) {
    let woken = match store.longest_waiting(project).await {
        Ok(Some(run)) => signal(client, &run, "look_again", b"null").await,
        Ok(None) => Ok(()),
        Err(error) => Err(with_source(&error)),
    };
    if let Err(why) = woken {
        tracing::warn!(%project, why, "a build that waits could not be woken");
    }
}

async fn signal(client: &Client, run: &RunKey, name: &str, data: &[u8]) -> Result<(), String> {
    let metadata = [("encoding".to_owned(), b"json/plain".to_vec())].into();
    let payload = Payload { metadata, data: data.to_vec(), ..Payload::default() };
    let request = SignalWorkflowExecutionRequest {
        namespace: client.options().namespace.clone(),
        workflow_execution: Some(execution(run)),
        signal_name: name.to_owned(),
        input: Some(Payloads { payloads: vec![payload] }),
        identity: "kiln-control".to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..SignalWorkflowExecutionRequest::default()
    };
    match client.clone().signal_workflow_execution(Request::new(request)).await {
        Ok(_) => Ok(()),
        // It has ended, or never began.
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(with_source(&status)),
    }
}
