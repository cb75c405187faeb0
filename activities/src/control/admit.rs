//! Admit: is this to be built, and where. One round trip to the store; never waits.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use workflows::activities::{Admission, AdmitInput, Placed};
use workflows::contract::{BuildError, BuildInput, BuildKey, BuildStatus, CellHint, CellId, FailureClass};
use workflows::policy;

use super::{Control, differing_fields, input_digest, key_of};
use crate::oci::ImageTag;
use crate::store::{BuildRow, Outcome, ProjectRow, StoreError};

impl Control {
    pub(super) async fn decide_admission(&self, admit: &AdmitInput) -> Result<Admission, StoreError> {
        let input = &admit.input;
        let key = match key_of(&admit.workflow_id, input).and_then(|key| self.validate(input).map(|()| key)) {
            Ok(key) => key,
            Err(error) => return Ok(Admission::Refused { error }),
        };
        let digest = input_digest(input);
        if let Some(outcome) = self.store.outcome(&input.project, &key).await?
            && let Some(admission) = answer(&outcome, input, &digest)
        {
            if let Admission::Recorded { result } = &admission
                && let Ok(row) = self.row(&admit.workflow_id, &admit.run_id, input, admit.started_ms, result)
            {
                self.store.record_build(&row).await?;
            }
            return Ok(admission);
        }
        if let Some(refusal) = self.another_input(admit, &key).await? {
            return Ok(refusal);
        }
        let Some(project) = self.project(input).await? else {
            return Ok(refused(format!(
                "there is no project {}; create it with `kiln projects create`",
                input.project
            )));
        };
        self.place(admit, &key, project, digest).await
    }

    /// A key stands for the input it was first started with, also while nothing of it is published. Runs that were refused have not
    /// begun anything.
    async fn another_input(&self, admit: &AdmitInput, key: &BuildKey) -> Result<Option<Admission>, StoreError> {
        let runs = self.store.runs(&admit.workflow_id).await?;
        let begun = runs.iter().rev().find(|run| run.run_id != admit.run_id && !run.was_refused());
        let fields = begun.map(|run| differing_fields(&run.input, &admit.input)).unwrap_or_default();
        if fields.is_empty() {
            return Ok(None);
        }
        Ok(Some(refused(format!(
            "key {:?} of project {} was built from another input before; these fields differ: {}. Use another key",
            key.as_str(),
            admit.input.project,
            fields.join(", ")
        ))))
    }

    /// What can be told from the input alone.
    fn validate(&self, input: &BuildInput) -> Result<(), BuildError> {
        let refuse = |why: String| Err(BuildError::new(FailureClass::Refused, why));
        if input.tags.is_empty() {
            return refuse("the build names no tag to publish".to_owned());
        }
        for tag in &input.tags {
            if let Err(error) = tag.parse::<ImageTag>() {
                return refuse(error.to_string());
            }
        }
        match input.platforms.iter().find(|platform| **platform != self.platform) {
            Some(other) => {
                refuse(format!("platform {other} is not built here; the pool's cells are {}", self.platform))
            }
            None => Ok(()),
        }
    }

    async fn project(&self, input: &BuildInput) -> Result<Option<ProjectRow>, StoreError> {
        match self.store.project(&input.project).await? {
            Some(project) => Ok(Some(project)),
            None if self.create_projects => self.store.create_project(&input.project).await.map(Some),
            None => Ok(None),
        }
    }

    async fn place(
        &self,
        admit: &AdmitInput,
        key: &BuildKey,
        project: ProjectRow,
        input_digest: String,
    ) -> Result<Admission, StoreError> {
        let input = &admit.input;
        let platform = input.platforms.first().unwrap_or(&self.platform);
        let hints = with_lines(self.store.cells(&self.pool).await?, &self.store.open_by_cell(&admit.run_id).await?);
        let Some(choice) = policy::choose(&input.project, platform, &hints, now_ms(), &admit.exclude) else {
            return Ok(Admission::NoCell { reason: format!("no cell of pool {} is ready for {platform}", self.pool) });
        };
        self.store.record_build(&queued(admit, key, &choice.cell)).await?;
        Ok(Admission::Placed(Placed {
            project_id: project.id,
            platform: platform.clone(),
            cell: choice.cell,
            warm: false,
            free: choice.free,
            reason: choice.reason,
            input_digest,
        }))
    }
}

/// The recorded outcome's answer, or `None` when the build has to go on: nobody has published it yet.
fn answer(outcome: &Outcome, input: &BuildInput, digest: &str) -> Option<Admission> {
    if outcome.input_digest != digest {
        let fields = differing_fields(&outcome.input, input).join(", ");
        return Some(refused(format!(
            "key {:?} of project {} was published from another input; these fields differ: {fields}. Use another key",
            outcome.key.as_str(),
            outcome.project
        )));
    }
    if !outcome.published {
        return None;
    }
    let mut result = outcome.result.clone();
    result.from_outcome = true;
    Some(Admission::Recorded { result: Box::new(result) })
}

fn refused(why: String) -> Admission {
    Admission::Refused { error: BuildError::new(FailureClass::Refused, why) }
}

/// A cell's hint tells its busy slots; what was sent there and has not ended tells its line.
fn with_lines(mut hints: Vec<CellHint>, open: &BTreeMap<CellId, u32>) -> Vec<CellHint> {
    for hint in &mut hints {
        hint.busy = hint.busy.max(open.get(&hint.cell).copied().unwrap_or(0));
    }
    hints
}

fn queued(admit: &AdmitInput, key: &BuildKey, cell: &CellId) -> BuildRow {
    BuildRow {
        project: admit.input.project.clone(),
        key: key.clone(),
        workflow_id: admit.workflow_id.clone(),
        run_id: admit.run_id.clone(),
        status: BuildStatus::Queued,
        input: admit.input.clone(),
        result: None,
        cell: Some(cell.clone()),
        created_ms: admit.started_ms,
        started_ms: None,
        ended_ms: None,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
