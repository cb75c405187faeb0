//! What the api asks of Temporal: start a build, cancel it, say how it closed; signal a Cell or a Pool, ask how a Cell stands.
//!
//! The requests are made by hand rather than through typed workflow handles: the api names the workflow by its type only, as any
//! other client does, and the answer to a start says whether it started or joined a run.

use std::future::Future;
use std::time::Duration;

use activities::store::RunKey;
use activities::temporal::{ConnectError, Frontend, connect};
use serde::de::DeserializeOwned;
use temporalio_client::Client;
use temporalio_client::grpc::WorkflowService;
use temporalio_common::protos::temporal::api::common::v1::{
    Payload, Payloads, SearchAttributes, WorkflowExecution, WorkflowType,
};
use temporalio_common::protos::temporal::api::enums::v1::{
    HistoryEventFilterType, WorkflowExecutionStatus, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use temporalio_common::protos::temporal::api::failure::v1::failure::FailureInfo;
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::query::v1::WorkflowQuery;
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest, QueryWorkflowRequest,
    RequestCancelWorkflowExecutionRequest, SignalWithStartWorkflowExecutionRequest, SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
};
use tokio::sync::OnceCell;
use tonic::{Code, Request, Response, Status};
use workflows::PoolSeed;
use workflows::contract::{
    BuildError, BuildInput, BuildResult, BuildStatus, BuildView, CONTROL_TASK_QUEUE, CellStatus, ENTITIES_TASK_QUEUE,
    FailureClass, PoolName, pool_workflow_id,
};

/// The names that the workflows are registered under.
const BUILD: &str = "Build";
const POOL: &str = "Pool";
/// How long a client waits for Temporal, retries included.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a client waits for what is nice to know.
const VIEW_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("Temporal did not answer in {} s", PATIENCE.as_secs())]
    Silent,
    #[error("Temporal knows no such run")]
    NotFound,
    /// Temporal says that the request itself is wrong.
    #[error("Temporal refused: {0}")]
    Refused(String),
    #[error("Temporal answered with an error")]
    Rpc(#[source] Status),
    #[error("what is sent to Temporal cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    #[error("the workflow's answer cannot be read")]
    Decode(#[source] serde_json::Error),
}

/// A run that was started or joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub run_id: String,
    /// It ran already.
    pub attached: bool,
}

/// Where a run stands, as Temporal sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    Open,
    Closed(Box<BuildResult>),
    /// Never started, or older than Temporal's retention.
    Unknown,
}

/// The connection to Temporal, made when it is first needed: lists and logs are there without it.
pub struct Engine {
    frontend: Frontend,
    client: OnceCell<Client>,
}

impl Engine {
    pub fn new(frontend: Frontend) -> Self {
        Self { frontend, client: OnceCell::new() }
    }

    /// Starts a Build, or joins the one that runs under this workflow id.
    pub async fn start(&self, workflow_id: &str, input: &BuildInput) -> Result<Started, EngineError> {
        let payload = json_payload(input).map_err(EngineError::Encode)?;
        let request = StartWorkflowExecutionRequest {
            namespace: self.frontend.namespace.clone(),
            // Temporal gives equal requests one run, so that a retried call starts nothing twice.
            request_id: uuid::Uuid::new_v4().to_string(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: Some(WorkflowType { name: BUILD.into() }),
            task_queue: Some(TaskQueue { name: CONTROL_TASK_QUEUE.into(), ..TaskQueue::default() }),
            input: Some(Payloads { payloads: vec![payload] }),
            identity: "kiln-api".into(),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::AllowDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            workflow_execution_timeout: input.execution_timeout().try_into().ok(),
            search_attributes: Some(search_attributes(input)),
            ..StartWorkflowExecutionRequest::default()
        };
        let answer = self.call(async |mut client, request| client.start_workflow_execution(request).await, request);
        let answer = answer.await?;
        Ok(Started { run_id: answer.run_id, attached: !answer.started })
    }

    /// Asks a run to cancel; it closes when its cell has let go.
    pub async fn cancel(&self, run: &RunKey, reason: &str) -> Result<(), EngineError> {
        let request = RequestCancelWorkflowExecutionRequest {
            namespace: self.frontend.namespace.clone(),
            workflow_execution: Some(execution(run)),
            identity: "kiln-api".into(),
            request_id: uuid::Uuid::new_v4().to_string(),
            reason: reason.to_owned(),
            ..RequestCancelWorkflowExecutionRequest::default()
        };
        let call = async |mut client: Client, request| client.request_cancel_workflow_execution(request).await;
        self.call(call, request).await.map(|_| ())
    }

    /// What an open run says of itself: its choices of a cell so far, and why it waits. `None` when it does not answer soon.
    pub async fn view(&self, run: &RunKey) -> Option<BuildView> {
        tokio::time::timeout(VIEW_PATIENCE, self.status(execution(run))).await.ok()?.ok()
    }

    /// Where a run stands. Never waits for it.
    pub async fn standing(&self, run: &RunKey) -> Result<Standing, EngineError> {
        let request = DescribeWorkflowExecutionRequest {
            namespace: self.frontend.namespace.clone(),
            execution: Some(execution(run)),
        };
        let call = async |mut client: Client, request| client.describe_workflow_execution(request).await;
        let info = match self.call(call, request).await {
            Ok(answer) => answer.workflow_execution_info.unwrap_or_default(),
            Err(EngineError::NotFound) => return Ok(Standing::Unknown),
            Err(error) => return Err(error),
        };
        match info.status() {
            WorkflowExecutionStatus::Running | WorkflowExecutionStatus::Unspecified => Ok(Standing::Open),
            _ => Ok(Standing::Closed(Box::new(self.result(run).await?))),
        }
    }

    /// Sends a signal to the open run of a workflow.
    pub async fn signal(
        &self,
        workflow_id: &str,
        name: &str,
        payload: &impl serde::Serialize,
    ) -> Result<(), EngineError> {
        let payload = json_payload(payload).map_err(EngineError::Encode)?;
        let request = SignalWorkflowExecutionRequest {
            namespace: self.frontend.namespace.clone(),
            workflow_execution: Some(newest(workflow_id)),
            signal_name: name.to_owned(),
            input: Some(Payloads { payloads: vec![payload] }),
            identity: "kiln-api".into(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..SignalWorkflowExecutionRequest::default()
        };
        let call = async |mut client: Client, request| client.signal_workflow_execution(request).await;
        self.call(call, request).await.map(|_| ())
    }

    /// Sends a signal to a pool's entity. One that was terminated is started again by it, and goes on from the view in the store.
    pub async fn signal_pool(
        &self,
        pool: &PoolName,
        name: &str,
        payload: &impl serde::Serialize,
    ) -> Result<(), EngineError> {
        let seed = PoolSeed { pool: pool.clone(), carried: None };
        let [seed, payload] =
            [json_payload(&seed), json_payload(payload)].map(|made| made.map_err(EngineError::Encode));
        let request = SignalWithStartWorkflowExecutionRequest {
            namespace: self.frontend.namespace.clone(),
            workflow_id: pool_workflow_id(pool),
            workflow_type: Some(WorkflowType { name: POOL.into() }),
            task_queue: Some(TaskQueue { name: ENTITIES_TASK_QUEUE.into(), ..TaskQueue::default() }),
            input: Some(Payloads { payloads: vec![seed?] }),
            signal_name: name.to_owned(),
            signal_input: Some(Payloads { payloads: vec![payload?] }),
            identity: "kiln-api".into(),
            request_id: uuid::Uuid::new_v4().to_string(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            ..SignalWithStartWorkflowExecutionRequest::default()
        };
        let call = async |mut client: Client, request| client.signal_with_start_workflow_execution(request).await;
        self.call(call, request).await.map(|_| ())
    }

    /// What a Cell says of its cell.
    pub async fn cell_status(&self, workflow_id: &str) -> Result<CellStatus, EngineError> {
        self.status(newest(workflow_id)).await
    }

    /// The answer of a workflow's query `status`.
    async fn status<T: DeserializeOwned>(&self, of: WorkflowExecution) -> Result<T, EngineError> {
        let request = QueryWorkflowRequest {
            namespace: self.frontend.namespace.clone(),
            execution: Some(of),
            query: Some(WorkflowQuery { query_type: "status".into(), ..WorkflowQuery::default() }),
            ..QueryWorkflowRequest::default()
        };
        let call = async |mut client: Client, request| client.query_workflow(request).await;
        let payloads = self.call(call, request).await?.query_result.unwrap_or_default().payloads;
        let data = payloads.first().map(|payload| payload.data.as_slice()).unwrap_or_default();
        serde_json::from_slice(data).map_err(EngineError::Decode)
    }

    /// How a closed run closed.
    async fn result(&self, run: &RunKey) -> Result<BuildResult, EngineError> {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: self.frontend.namespace.clone(),
            execution: Some(execution(run)),
            history_event_filter_type: HistoryEventFilterType::CloseEvent.into(),
            skip_archival: true,
            ..GetWorkflowExecutionHistoryRequest::default()
        };
        let call = async |mut client: Client, request| client.get_workflow_execution_history(request).await;
        let history = self.call(call, request).await?.history.unwrap_or_default();
        Ok(result_of(history.events.into_iter().next_back().and_then(|event| event.attributes)))
    }

    async fn call<Q, A, F>(&self, rpc: impl FnOnce(Client, Request<Q>) -> F, request: Q) -> Result<A, EngineError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answer = async {
            let client = self.client.get_or_try_init(|| connect(&self.frontend, "kiln-api")).await?;
            rpc(client.clone(), Request::new(request)).await.map(Response::into_inner).map_err(error_of)
        };
        tokio::time::timeout(PATIENCE, answer).await.map_err(|_| EngineError::Silent)?
    }
}

fn error_of(status: Status) -> EngineError {
    match status.code() {
        Code::NotFound => EngineError::NotFound,
        Code::InvalidArgument => EngineError::Refused(status.message().to_owned()),
        _ => EngineError::Rpc(status),
    }
}

fn execution(run: &RunKey) -> WorkflowExecution {
    WorkflowExecution { workflow_id: run.workflow_id.clone(), run_id: run.run_id.clone() }
}

/// The newest run of a workflow id.
fn newest(workflow_id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }
}

fn json_payload(value: &impl serde::Serialize) -> Result<Payload, serde_json::Error> {
    let metadata = [("encoding".to_owned(), b"json/plain".to_vec())].into();
    Ok(Payload { metadata, data: serde_json::to_vec(value)?, ..Payload::default() })
}

fn search_attributes(input: &BuildInput) -> SearchAttributes {
    let keyword = |text: &str| Payload {
        metadata: [("encoding".to_owned(), b"json/plain".to_vec()), ("type".to_owned(), b"Keyword".to_vec())].into(),
        data: serde_json::Value::from(text).to_string().into_bytes(),
        ..Payload::default()
    };
    let fields = [("KilnProject", input.project.as_str()), ("KilnStatus", BuildStatus::Queued.as_str())];
    SearchAttributes { indexed_fields: fields.map(|(name, text)| (name.to_owned(), keyword(text))).into() }
}

/// The result a run carries: as its result, as its failure's details, or, when it could say nothing any more, from how it ended.
fn result_of(close: Option<Attributes>) -> BuildResult {
    match close {
        Some(Attributes::WorkflowExecutionCompletedEventAttributes(completed)) => first(completed.result)
            .unwrap_or_else(|| ended(BuildStatus::Succeeded, FailureClass::Transient, "the result cannot be read")),
        Some(Attributes::WorkflowExecutionFailedEventAttributes(failed)) => {
            let failure = failed.failure.unwrap_or_default();
            let (class, details) = match failure.failure_info {
                Some(FailureInfo::ApplicationFailureInfo(info)) => {
                    (FailureClass::from_name(&info.r#type), info.details)
                }
                _ => (None, None),
            };
            let class = class.unwrap_or(FailureClass::Transient);
            first(details).unwrap_or_else(|| ended(BuildStatus::Failed, class, &failure.message))
        }
        Some(Attributes::WorkflowExecutionCanceledEventAttributes(cancelled)) => first(cancelled.details)
            .unwrap_or_else(|| ended(BuildStatus::Cancelled, FailureClass::Cancelled, "the build was cancelled")),
        Some(Attributes::WorkflowExecutionTerminatedEventAttributes(terminated)) => {
            let message = format!("the build's workflow was terminated: {}", terminated.reason);
            ended(BuildStatus::Failed, FailureClass::Cancelled, &message)
        }
        Some(Attributes::WorkflowExecutionTimedOutEventAttributes(_)) => {
            ended(BuildStatus::Failed, FailureClass::TimedOut, "the build's workflow ran into its time limit")
        }
        _ => ended(BuildStatus::Failed, FailureClass::Transient, "the build's workflow closed without a result"),
    }
}

fn first(payloads: Option<Payloads>) -> Option<BuildResult> {
    serde_json::from_slice(&payloads?.payloads.first()?.data).ok()
}

/// The result of a run that Temporal does not know (any more).
pub fn forgotten() -> BuildResult {
    let message = "Temporal knows nothing of this build (any more), so how it ended is not known; start it again";
    ended(BuildStatus::Failed, FailureClass::Transient, message)
}

fn ended(status: BuildStatus, class: FailureClass, message: &str) -> BuildResult {
    BuildResult { error: Some(BuildError::new(class, message)), ..BuildResult::blank(status) }
}
