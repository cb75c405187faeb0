//! Temporal's dev server: its command line, and when it is ready.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use activities::search_attributes::SEARCH_ATTRIBUTES;
use temporalio_client::Client;
use temporalio_common::protos::temporal::api::enums::v1::TaskQueueType;
use temporalio_common::protos::temporal::api::namespace::v1::NamespaceConfig;
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::workflowservice::v1::{DescribeTaskQueueRequest, UpdateNamespaceRequest};

use super::ports::Ports;
use crate::settings::Settings;

/// How long closed workflows are kept: as long as an installation's minimum.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Settings the dev server does not come with.
const DYNAMIC_CONFIG: [&str; 5] = [
    // The default of 20 polls a second and shard puts every hop of a build on a 50 ms grid.
    "history.transferProcessorMaxPollRPS=2000",
    "history.timerProcessorMaxPollRPS=2000",
    // A cell's queue is the waiting line of its builds: first come, first served needs one partition.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    // … and a project with many builds in it does not keep the others waiting for all of them.
    "matching.enableFairness=true",
];

/// The server's arguments; its state is one SQLite file.
pub fn arguments(data: &Path, ports: &Ports) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["server", "start-dev", "--ip", "127.0.0.1", "--log-level", "warn"].map(Into::into).into();
    args.extend(["--port".into(), ports.temporal.to_string().into()]);
    args.extend(["--ui-port".into(), ports.temporal_ui.to_string().into()]);
    args.extend(["--db-filename".into(), data.join("temporal/temporal.db").into()]);
    args.extend(DYNAMIC_CONFIG.iter().flat_map(|setting| ["--dynamic-config-value".into(), setting.into()]));
    args.extend(
        SEARCH_ATTRIBUTES.iter().flat_map(|name| ["--search-attribute".into(), format!("{name}=Keyword").into()]),
    );
    args
}

/// Waits until the server answers for the namespace, and gives it its retention.
///
/// # Errors
/// When the address is none.
pub async fn ready(settings: &Settings) -> anyhow::Result<Client> {
    let frontend = settings.frontend();
    loop {
        if let Ok(client) = activities::temporal::connect(&frontend, "kiln-dev").await
            && set_retention(&client, &frontend.namespace).await.is_ok()
        {
            return Ok(client);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn set_retention(client: &Client, namespace: &str) -> Result<(), tonic::Status> {
    let config =
        NamespaceConfig { workflow_execution_retention_ttl: RETENTION.try_into().ok(), ..NamespaceConfig::default() };
    let request = UpdateNamespaceRequest { namespace: namespace.into(), config: Some(config), ..Default::default() };
    client.connection().workflow_service().update_namespace(tonic::Request::new(request)).await.map(drop)
}

/// Whether a worker asks `queue` for work of this kind.
pub async fn has_poller(client: &Client, namespace: &str, queue: &str, kind: TaskQueueType) -> bool {
    let request = DescribeTaskQueueRequest {
        namespace: namespace.into(),
        task_queue: Some(TaskQueue { name: queue.into(), ..Default::default() }),
        task_queue_type: kind.into(),
        ..Default::default()
    };
    let answer = client.connection().workflow_service().describe_task_queue(tonic::Request::new(request)).await;
    answer.is_ok_and(|answer| !answer.into_inner().pollers.is_empty())
}
