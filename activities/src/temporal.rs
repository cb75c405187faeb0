//! The connection to Temporal, the same way in every role.

use std::time::Duration;

use temporalio_client::grpc::WorkflowService as _;
use temporalio_client::tonic::{Code, Request};
use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, GrpcCompression};
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::enums::v1::PendingActivityState;
use temporalio_common::protos::temporal::api::workflow::v1::PendingActivityInfo;
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeWorkflowExecutionRequest;
use workflows::contract::CellId;

use crate::failure::with_source;

/// Why there is no connection to Temporal.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address:?} is no host:port of a Temporal frontend")]
    Address { address: String, source: url::ParseError },
    #[error("Temporal at {address} does not answer")]
    Connect { address: String, source: temporalio_client::errors::ClientConnectError },
    #[error("Temporal's client cannot be made")]
    Client(#[source] temporalio_client::errors::ClientNewError),
}

/// How long a role waits for Temporal when both start at the same time.
pub const START_PATIENCE: Duration = Duration::from_secs(60);

/// What Temporal knows a builder by: its cell, and which of that cell's builders it is.
pub fn builder_identity(cell: &CellId, epoch: u64) -> String {
    format!("kiln-builder {cell} {epoch}")
}

/// The epoch of a builder of `cell`; `None` of anybody else.
pub(crate) fn builder_epoch(identity: &str, cell: &CellId) -> Option<u64> {
    let (name, epoch) = identity.rsplit_once(' ')?;
    (name.strip_prefix("kiln-builder ")? == cell.as_str()).then(|| epoch.parse().ok())?
}

/// The activities of a workflow that workers were given and have not answered.
pub(crate) struct Taken {
    pub run_id: String,
    pub activities: Vec<PendingActivityInfo>,
}

/// What the server knows to be taken; `None` when there is no such workflow. The latest run where `run_id` is empty.
pub(crate) async fn taken_activities(
    client: &Client,
    workflow_id: &str,
    run_id: &str,
) -> Result<Option<Taken>, String> {
    let execution = WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned() };
    let request =
        DescribeWorkflowExecutionRequest { namespace: client.options().namespace.clone(), execution: Some(execution) };
    let described = match client.clone().describe_workflow_execution(Request::new(request)).await {
        Ok(described) => described.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(with_source(&status)),
    };
    let run = described.workflow_execution_info.and_then(|info| info.execution);
    let mut activities = described.pending_activities;
    activities.retain(|activity| activity.state() == PendingActivityState::Started);
    Ok(Some(Taken { run_id: run.map_or_else(|| run_id.to_owned(), |run| run.run_id), activities }))
}

/// Connects to the frontend at `address` (`host:port`). `identity` is shown in histories: the role, and for a builder
/// what [`builder_identity`] says.
///
/// Compression is off: the SDK's default gzip costs more than it saves within a data centre.
pub async fn connect(address: &str, namespace: &str, identity: &str) -> Result<Client, ConnectError> {
    let url = url::Url::parse(&format!("http://{address}"))
        .map_err(|source| ConnectError::Address { address: address.to_owned(), source })?;
    let options = ConnectionOptions::new(url).identity(identity).grpc_compression(GrpcCompression::None).build();
    let connection = Connection::connect(options)
        .await
        .map_err(|source| ConnectError::Connect { address: address.to_owned(), source })?;
    Client::new(connection, ClientOptions::new(namespace).build()).map_err(ConnectError::Client)
}

/// As [`connect`], trying again while Temporal does not answer, for [`START_PATIENCE`].
pub async fn connect_patiently(address: &str, namespace: &str, identity: &str) -> Result<Client, ConnectError> {
    let deadline = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        match connect(address, namespace, identity).await {
            Err(error @ ConnectError::Connect { .. }) if tokio::time::Instant::now() < deadline => {
                tracing::info!(error = &error as &dyn std::error::Error, "waiting for Temporal");
            }
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_is_known_by_its_cell_and_epoch() {
        let (cell, other): (CellId, CellId) = ("c-1".parse().unwrap(), "c".parse().unwrap());
        let identity = builder_identity(&cell, 7);
        assert_eq!(builder_epoch(&identity, &cell), Some(7));
        assert_eq!(builder_epoch(&identity, &other), None);
        for nobody in ["", "kiln-control", "kiln-builder c-1", "kiln-builder c-1 x"] {
            assert_eq!(builder_epoch(nobody, &cell), None, "{nobody:?}");
        }
    }
}
