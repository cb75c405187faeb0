//! Admit: is this to be built, and where. One round trip to the store to know, one to note what is decided; never waits.

use std::time::{SystemTime, UNIX_EPOCH};

use workflows::activities::{Admission, AdmitInput, Placed};
use workflows::contract::{BuildError, BuildInput, BuildKey, BuildStatus, CellId, FailureClass, INPUT_LIMIT, PoolName};
use workflows::policy::{Choice, RegistryPolicy, Sent, check_arguments};

use super::fleet::{Ask, Decision, Reading};
use super::{Control, differing_fields, input_digest, key_of, tell};
use crate::oci::{ImageTag, InvalidTag};
use crate::store::{BuildRow, Facts, Outcome, ProjectRow, Question, StoreError};

impl Control {
    pub(super) async fn decide_admission(&self, admit: &AdmitInput) -> Result<Admission, StoreError> {
        let input = &admit.input;
        let key = match key_of(&admit.workflow_id, input).and_then(|key| self.validate(input).map(|()| key)) {
            Ok(key) => key,
            Err(error) => return Ok(Admission::Refused { error }),
        };
        let digest = input_digest(input);
        let reading = self.fleet.begin();
        let platform = input.platforms.first().unwrap_or(&self.platform);
        let question = Question {
            project: &input.project,
            key: &key,
            platform,
            run_id: &admit.run_id,
            started_ms: admit.started_ms,
            seen: reading.seen,
        };
        let mut facts = self.store.facts(&question).await?;
        if let Some(admission) = facts.outcome.as_ref().and_then(|outcome| answer(outcome, input, &digest)) {
            if let Admission::Recorded { result } = &admission
                && let Ok(row) = self.row(&admit.workflow_id, &admit.run_id, input, admit.started_ms, result)
            {
                self.store.record_build(&row).await?;
            }
            return Ok(admission);
        }
        if let Some(refusal) = another_input(&facts, input, &key) {
            return Ok(refusal);
        }
        let project = match facts.project.take() {
            Some(project) => project,
            None if self.create_projects => self.store.create_project(&input.project).await?,
            None => {
                let name = &input.project;
                return Ok(refused(format!("there is no project {name}; create it with `kiln projects create`")));
            }
        };
        if let Err(error) = self.may_publish(input, &project) {
            return Ok(Admission::Refused { error });
        }
        if let Err(why) = project.settings.quotas.check_tags(input.tags.len()) {
            return Ok(refused(why));
        }
        self.place(admit, &key, &project, digest, reading, &facts).await
    }

    /// What can be told from the input alone.
    fn validate(&self, input: &BuildInput) -> Result<(), BuildError> {
        let refuse = |why: String| Err(BuildError::new(FailureClass::Refused, why));
        let size = serde_json::to_vec(input).map_or(0, |json| json.len());
        if size > INPUT_LIMIT {
            return refuse(format!("the build's input has {size} bytes of JSON and may have {INPUT_LIMIT}"));
        }
        if input.tags.is_empty() {
            return refuse("the build names no tag to publish".to_owned());
        }
        if let Err(error) = check_arguments(input.args.keys()) {
            return refuse(error.to_string());
        }
        for tag in &input.tags {
            if let Err(error) = tag.parse::<ImageTag>() {
                return refuse(error.to_string());
            }
        }
        if input.platforms.len() > 1 {
            return refuse("a build is for one platform; start one for each".to_owned());
        }
        Ok(())
    }

    /// Whether the project may publish to all of the build's tags. Which registries its credentials are for, the cell sees.
    fn may_publish(&self, input: &BuildInput, project: &ProjectRow) -> Result<(), BuildError> {
        let sent = if input.secrets_ref.is_some() { Sent::Unknown } else { Sent::No };
        check_tags(&self.repositories, project, input, |_| sent)
    }

    async fn place(
        &self,
        admit: &AdmitInput,
        key: &BuildKey,
        project: &ProjectRow,
        input_digest: String,
        reading: Reading<'_>,
        facts: &Facts,
    ) -> Result<Admission, StoreError> {
        let input = &admit.input;
        let platform = input.platforms.first().unwrap_or(&self.platform);
        let pool = project.settings.pool.as_ref().unwrap_or(&self.pool);
        // A build that moves to another cell holds its place already.
        let cap = project.settings.max_concurrent_builds.filter(|_| admit.round == 0);
        let (name, exclude) = (&input.project, admit.exclude.as_slice());
        let ask = Ask { pool, project: name, platform, now_ms: now_ms(), exclude, cap };
        let (decision, placement) = reading.decide(facts, &ask);
        let choice = match decision {
            Decision::Chosen(choice) => choice,
            Decision::OverCap { running, ahead } => {
                let cap = cap.unwrap_or(running);
                if running < cap {
                    tell::wake_longest_waiting(&self.store, &self.temporal, name).await;
                }
                return self.waits(admit, key, Admission::OverCap { running, cap, ahead }).await;
            }
            Decision::NoCell(reason) => return self.waits(admit, key, Admission::NoCell { reason }).await,
            Decision::NoPlatform(reason) => return Ok(refused(reason)),
            Decision::NoPool(there) if project.settings.pool.is_some() => return Ok(no_pool(pool, &there)),
            Decision::NoPool(_) => {
                let reason = format!("pool {pool} has no cells yet");
                return self.waits(admit, key, Admission::NoCell { reason }).await;
            }
        };
        self.store.record_build(&queued(admit, key, Some(&choice.cell))).await?;
        drop(placement);
        if let Some(cap) = cap
            && let Some(running) = self.lost_race(admit, cap).await?
        {
            return self.waits(admit, key, Admission::OverCap { running, cap, ahead: 0 }).await;
        }
        let capped = project.settings.max_concurrent_builds.is_some();
        let Choice { cell, pool: chosen, isolation, warm, free, generation, reason } = choice;
        Ok(Admission::Placed(Placed {
            project_id: project.id.clone(),
            platform: platform.clone(),
            cell,
            warm,
            free,
            reason,
            input_digest,
            pool: Some(chosen).filter(|chosen| chosen != pool),
            generation,
            capped,
            isolation,
            repositories: project.settings.repositories.clone(),
            lost_after_ms: u64::try_from(self.attempts_lost_after.as_millis()).ok(),
        }))
    }

    /// The build waits without a cell; lists show it, and it counts for no cell any more.
    async fn waits(&self, admit: &AdmitInput, key: &BuildKey, why: Admission) -> Result<Admission, StoreError> {
        self.store.record_waiting(&queued(admit, key, None)).await?;
        Ok(why)
    }

    /// Another control may have let a build of the project in at the same moment: whoever finds too many steps back. Who finds room
    /// left lets the next one know.
    async fn lost_race(&self, admit: &AdmitInput, cap: u32) -> Result<Option<u32>, StoreError> {
        let running = self.store.placed_runs(&admit.input.project).await?;
        if running <= cap {
            if running < cap {
                tell::wake_longest_waiting(&self.store, &self.temporal, &admit.input.project).await;
            }
            return Ok(None);
        }
        Ok(Some(running - 1))
    }
}

/// Whether a project may publish to all of a build's tags; `sent` says whether the build has credentials for a host.
///
/// # Errors
/// Refused, with the first tag that breaks a rule.
pub(super) fn check_tags(
    registry: &RegistryPolicy,
    project: &ProjectRow,
    input: &BuildInput,
    sent: impl Fn(&str) -> Sent,
) -> Result<(), BuildError> {
    let refuse = |why: String| BuildError::new(FailureClass::Refused, why);
    for text in &input.tags {
        let tag: ImageTag = text.parse().map_err(|error: InvalidTag| refuse(error.to_string()))?;
        let allowed =
            registry.may_publish(&project.name, &project.settings.repositories, tag.parts(), sent(tag.host()));
        allowed.map_err(|error| refuse(error.to_string()))?;
    }
    Ok(())
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

/// A key stands for the input it was first started with, also while nothing of it is published.
fn another_input(facts: &Facts, input: &BuildInput, key: &BuildKey) -> Option<Admission> {
    let fields = facts.begun.as_ref().map(|begun| differing_fields(&begun.input, input))?;
    if fields.is_empty() {
        return None;
    }
    Some(refused(format!(
        "key {:?} of project {} was built from another input before; these fields differ: {}. Use another key",
        key.as_str(),
        input.project,
        fields.join(", ")
    )))
}

fn refused(why: String) -> Admission {
    Admission::Refused { error: BuildError::new(FailureClass::Refused, why) }
}

fn no_pool(pool: &PoolName, there: &[PoolName]) -> Admission {
    let there = match there {
        [] => "there are none yet".to_owned(),
        some => format!("there are: {}", some.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ")),
    };
    refused(format!("the project's pool {pool} does not exist; {there}"))
}

fn queued(admit: &AdmitInput, key: &BuildKey, cell: Option<&CellId>) -> BuildRow {
    BuildRow {
        project: admit.input.project.clone(),
        key: key.clone(),
        workflow_id: admit.workflow_id.clone(),
        run_id: admit.run_id.clone(),
        status: BuildStatus::Queued,
        input: admit.input.clone(),
        result: None,
        cell: cell.cloned(),
        created_ms: admit.started_ms,
        started_ms: None,
        ended_ms: None,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
