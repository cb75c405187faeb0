//! The activities of `kiln control`: admit, publish, conclude. They touch the store, registries and sealed credentials, never a
//! cell; each is idempotent, so that it may run again after any crash.

mod admit;
mod audit;
mod digest;
mod fleet;
pub mod metrics;
mod pools;
mod publish;
mod tell;

use std::sync::Arc;
use std::time::{Duration, Instant};

use temporalio_client::Client;
use temporalio_macros::activities;
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use tracing::{Instrument as _, info_span};
use workflows::activities::{
    Admission, AdmitInput, Announcement, ConcludeInput, Publication, PublishInput, SignalAudit, TellOrder,
};
use workflows::contract::{
    BuildError, BuildInput, BuildKey, BuildResult, BuildStatus, CellState, FailureClass, Platform, PoolName,
    parse_build_workflow_id,
};
use workflows::policy::RegistryPolicy;

use crate::entities::leave_pool;
use crate::failpoint;
use crate::failure::{failed, retryable, retryable_after, with_source};
use crate::oci::Registries;
use crate::sealed::SealedStore;
use crate::store::{BuildRow, Store, StoreError};

pub use digest::{differing_fields, input_digest, variant};
pub use fleet::{Ask, Decision, Fleet};
pub use pools::Pools;

/// What the activities need.
pub struct Control {
    pub store: Store,
    pub temporal: Client,
    pub registries: Registries,
    /// Who may use which repository.
    pub repositories: RegistryPolicy,
    pub sealed: SealedStore,
    /// Where builds go that name no pool of their own.
    pub pool: PoolName,
    /// The platform of a build that names none.
    pub platform: Platform,
    /// Make a project on its first build; otherwise an unknown project is refused.
    pub create_projects: bool,
    /// After how long a silence the server gives an attempt up.
    pub attempts_lost_after: Duration,
    /// What is remembered of pools and cells; starts empty.
    pub fleet: Fleet,
}

#[activities]
impl Control {
    #[activity(name = "admit")]
    pub async fn admit(self: Arc<Self>, _ctx: ActivityContext, input: AdmitInput) -> Result<Admission, ActivityError> {
        let span = info_span!("admit", workflow = input.workflow_id);
        let begun = Instant::now();
        let answer = self.decide_admission(&input).instrument(span).await;
        metrics::admitted(&answer, begun);
        let admission = answer.map_err(|e| store_error(&e))?;
        failpoint::reach("after_admit");
        Ok(admission)
    }

    #[activity(name = "publish")]
    pub async fn publish(
        self: Arc<Self>,
        _ctx: ActivityContext,
        input: PublishInput,
    ) -> Result<Publication, ActivityError> {
        let span = info_span!("publish", workflow = input.workflow_id);
        self.publish_counted(&input).instrument(span).await
    }

    #[activity(name = "publish_slowly")]
    pub async fn publish_slowly(
        self: Arc<Self>,
        _ctx: ActivityContext,
        input: PublishInput,
    ) -> Result<Publication, ActivityError> {
        let span = info_span!("publish_slowly", workflow = input.workflow_id);
        match self.publish_counted(&input).instrument(span).await? {
            Publication::Slow { reason, retry_after_s } => {
                let wait = Duration::from_secs(retry_after_s);
                Err(retryable_after(BuildError::new(FailureClass::Transient, reason), wait))
            }
            other => Ok(other),
        }
    }

    #[activity(name = "conclude")]
    pub async fn conclude(self: Arc<Self>, _ctx: ActivityContext, input: ConcludeInput) -> Result<(), ActivityError> {
        let Some(build) = &input.input else { return Ok(()) };
        let row = self.row(&input.workflow_id, &input.run_id, build, input.started_ms, &input.result);
        self.store.record_build(&row.map_err(failed)?).await.map_err(|e| store_error(&e))?;
        metrics::ended(&input.result);
        tell::wake_longest_waiting(&self.store, &self.temporal, &build.project).await;
        Ok(())
    }
}

/// What the entities' workflows need of the store.
pub struct Entities {
    pub store: Store,
    pub temporal: Client,
}

#[activities]
impl Entities {
    #[activity(name = "announce_cell")]
    pub async fn announce_cell(
        self: Arc<Self>,
        _ctx: ActivityContext,
        said: Announcement,
    ) -> Result<(), ActivityError> {
        self.store.order_cell(&said.cell, said.state, &said.detail).await.map_err(|e| store_error(&e))?;
        if let Some(main) = said.detail.clone_of.as_ref().filter(|_| said.state != CellState::Deleted) {
            self.store.introduce_clone(&said.cell, main).await.map_err(|e| store_error(&e))?;
        }
        match said.pool {
            Some(pool) if said.state == CellState::Deleted => {
                let left = leave_pool(&self.temporal, &pool, said.cell).await;
                left.map_err(|e| retryable(BuildError::new(FailureClass::Transient, with_source(&e))))
            }
            _ => Ok(()),
        }
    }

    #[activity(name = "tell_builds")]
    pub async fn tell_builds(self: Arc<Self>, _ctx: ActivityContext, order: TellOrder) -> Result<u32, ActivityError> {
        let told = tell::tell_builds(&self.store, &self.temporal, &order).await;
        told.map_err(|e| retryable(BuildError::new(FailureClass::Transient, with_source(&e))))
    }

    #[activity(name = "audit_signals")]
    pub async fn audit_signals(
        self: Arc<Self>,
        _ctx: ActivityContext,
        order: SignalAudit,
    ) -> Result<(), ActivityError> {
        audit::signals(&self.store, &order).await.map_err(|e| store_error(&e))
    }
}

impl Control {
    async fn publish_counted(&self, input: &PublishInput) -> Result<Publication, ActivityError> {
        let begun = Instant::now();
        let answer = self.publish_once(input).await;
        metrics::published(&answer, begun);
        answer.map_err(|e| store_error(&e))
    }

    /// The final row of a run.
    fn row(
        &self,
        workflow_id: &str,
        run_id: &str,
        input: &BuildInput,
        started_ms: i64,
        result: &BuildResult,
    ) -> Result<BuildRow, BuildError> {
        let key = key_of(workflow_id, input)?;
        let ended_ms = started_ms.saturating_add(i64::try_from(result.timings.total).unwrap_or(0));
        Ok(BuildRow {
            project: input.project.clone(),
            key,
            workflow_id: workflow_id.to_owned(),
            run_id: run_id.to_owned(),
            status: result.status,
            input: input.clone(),
            result: Some(result.clone()),
            cell: result.attempts.last().map(|attempt| attempt.cell.clone()),
            created_ms: started_ms,
            started_ms: Some(started_ms),
            ended_ms: result.status.is_final().then_some(ended_ms),
        })
    }
}

/// The build's key, from its workflow id `build/<project>/<key>`; the project there and in the input must be one.
fn key_of(workflow_id: &str, input: &BuildInput) -> Result<BuildKey, BuildError> {
    let refuse = |why: String| BuildError::new(FailureClass::Refused, why);
    match parse_build_workflow_id(workflow_id) {
        Some((project, key)) if project == input.project => Ok(key),
        Some((project, _)) => Err(refuse(format!(
            "the workflow id {workflow_id:?} names project {project}, the input names {}; they must be the same",
            input.project
        ))),
        None => Err(refuse(format!("the workflow id {workflow_id:?} must be build/<project>/<key>"))),
    }
}

/// The store is asked again by the activity's policy; what the row says cannot be half-written.
fn store_error(error: &StoreError) -> ActivityError {
    retryable(BuildError::new(FailureClass::Transient, with_source(error)))
}

fn final_status(result: &BuildResult) -> BuildResult {
    BuildResult { status: BuildStatus::Succeeded, ..result.clone() }
}
