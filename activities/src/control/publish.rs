//! Publish: outcome first, tags after. Idempotent: a tag already there is success, a second run adopts the first one's outcome.

use std::time::Instant;

use workflows::activities::{Publication, PublishInput};
use workflows::contract::{BuildError, BuildResult, BuildStatus, Digest, FailureClass, SecretsRef, TagResult};
use workflows::policy::{Sent, Warm};

use super::admit::check_tags;
use super::{Control, final_status, key_of, tell};
use crate::failpoint;
use crate::oci::{Credentials, ImageTag, RegistryError, Written};
use crate::sealed::SealedError;
use crate::store::{Outcome, StoreError, TagClaim};

/// Why publishing stops before its end.
enum Stop {
    Store(StoreError),
    Registry(RegistryError),
    Sealed(SealedError),
    Refused(BuildError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Control {
    pub(super) async fn publish_once(&self, input: &PublishInput) -> Result<Publication, StoreError> {
        match self.fix_and_tag(input).await {
            Ok(result) => Ok(Publication::Published { result: Box::new(result) }),
            Err(Stop::Store(error)) => Err(error),
            Err(Stop::Refused(error)) => Ok(Publication::Refused { error }),
            Err(Stop::Sealed(error)) if error.is_transient() => {
                Ok(Publication::Slow { reason: error.to_string(), retry_after_s: 1 })
            }
            Err(Stop::Sealed(error)) => Ok(Publication::Refused { error: error.to_build_error() }),
            Err(Stop::Registry(error)) => Ok(after_registry(&error)),
        }
    }

    async fn fix_and_tag(&self, input: &PublishInput) -> Result<BuildResult, Stop> {
        let begun = Instant::now();
        let outcome = self.store.fix_outcome(&self.proposal(input)?).await?;
        if outcome.input_digest != input.input_digest {
            let why =
                format!("key {:?} was published from another input meanwhile; use another key", outcome.key.as_str());
            return Err(Stop::Refused(BuildError::new(FailureClass::Refused, why)));
        }
        let mut result = final_status(&outcome.result);
        failpoint::reach("after_outcome");
        if !outcome.published {
            let digest = result.digest.clone().unwrap_or_else(|| input.platforms[0].digest.clone());
            let auth = self.credentials(input).await?;
            self.may_tag(input, &auth).await?;
            result.tags = self.write_tags(input, &outcome, &digest, &auth).await?;
            result.image = first_image(&input.input.tags, &digest);
            result.timings.publish = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            result.timings.total += result.timings.publish;
            self.store.mark_published(&outcome.project, &outcome.key, &result).await?;
        }
        result.from_outcome = outcome.run_id != input.run_id;
        self.remember_warmth(input).await?;
        let row = self.row(&input.workflow_id, &input.run_id, &input.input, input.started_ms, &result);
        self.store.record_build(&row.map_err(Stop::Refused)?).await?;
        if input.capped {
            tell::wake_longest_waiting(&self.store, &self.temporal, &input.input.project).await;
        }
        Ok(result)
    }

    /// The next build of the project goes where this one succeeded.
    async fn remember_warmth(&self, input: &PublishInput) -> Result<(), StoreError> {
        for built in &input.platforms {
            let warm = Warm { cell: built.cell.clone(), generation: input.generation };
            self.store.record_warm(&input.input.project, &built.platform, &warm).await?;
        }
        Ok(())
    }

    fn proposal(&self, input: &PublishInput) -> Result<Outcome, Stop> {
        Ok(Outcome {
            project: input.input.project.clone(),
            key: key_of(&input.workflow_id, &input.input).map_err(Stop::Refused)?,
            workflow_id: input.workflow_id.clone(),
            run_id: input.run_id.clone(),
            input_digest: input.input_digest.clone(),
            input: input.input.clone(),
            result: BuildResult { status: BuildStatus::Publishing, ..input.result.clone() },
            published: false,
            started_ms: input.started_ms,
        })
    }

    async fn credentials(&self, input: &PublishInput) -> Result<Credentials, Stop> {
        let reference: &SecretsRef = match &input.input.secrets_ref {
            Some(reference) => reference,
            None => return Ok(Credentials::new()),
        };
        let sealed = self.sealed.open(&input.project_id, reference).await.map_err(Stop::Sealed)?;
        Ok(sealed.registry_credentials())
    }

    /// Asks the project's rules once more: what was pushed under a former rule gets no tag.
    async fn may_tag(&self, input: &PublishInput, auth: &Credentials) -> Result<(), Stop> {
        let name = &input.input.project;
        let Some(project) = self.store.project(name).await? else {
            let error = BuildError::new(FailureClass::Refused, format!("project {name} was deleted"));
            return Err(Stop::Refused(error));
        };
        let sent = |host: &str| if auth.contains_key(host) { Sent::Yes } else { Sent::No };
        check_tags(&self.repositories, &project, &input.input, sent).map_err(Stop::Refused)
    }

    async fn write_tags(
        &self,
        input: &PublishInput,
        outcome: &Outcome,
        digest: &Digest,
        auth: &Credentials,
    ) -> Result<Vec<TagResult>, Stop> {
        let mut written = Vec::new();
        for text in &input.input.tags {
            let tag: ImageTag = text.parse().map_err(|e: crate::oci::InvalidTag| {
                Stop::Refused(BuildError::new(FailureClass::Refused, e.to_string()))
            })?;
            written
                .push(TagResult { tag: tag.to_string(), outcome: self.write_tag(&tag, outcome, digest, auth).await? });
        }
        Ok(written)
    }

    /// A tag's order is kept by its claim. It is claimed again after writing: a build that started later may have written the tag in
    /// between, and then its digest is written again.
    async fn write_tag(
        &self,
        tag: &ImageTag,
        outcome: &Outcome,
        digest: &Digest,
        auth: &Credentials,
    ) -> Result<String, Stop> {
        let name = tag.to_string();
        let claim = || self.store.claim_tag(&name, outcome.started_ms, &outcome.workflow_id, &outcome.run_id);
        if let TagClaim::Superseded { .. } = claim().await? {
            return Ok("superseded".to_owned());
        }
        failpoint::reach("before_tag");
        let written = self.registries.tag(tag, digest, auth).await.map_err(Stop::Registry)?;
        failpoint::reach("after_tag");
        if let TagClaim::Superseded { by, run_id } = claim().await? {
            self.restore(tag, &by, &run_id, auth).await?;
            return Ok("superseded".to_owned());
        }
        Ok(match written {
            Written::Written => "written".to_owned(),
            Written::Unchanged => "unchanged".to_owned(),
        })
    }

    /// Writes the digest of the build that has the tag, once that build has an outcome; until then it will write the tag itself.
    async fn restore(&self, tag: &ImageTag, workflow_id: &str, run_id: &str, auth: &Credentials) -> Result<(), Stop> {
        let run = crate::store::RunKey { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned() };
        let row = self.store.run(&run).await?;
        match row.and_then(|row| row.result).and_then(|result| result.digest) {
            Some(digest) => self.registries.tag(tag, &digest, auth).await.map(|_| ()).map_err(Stop::Registry),
            None => Ok(()),
        }
    }
}

fn after_registry(error: &RegistryError) -> Publication {
    match error {
        RegistryError::NotFound { .. } => Publication::ContentGone { reason: error.to_string() },
        transient if transient.is_transient() => {
            let wait = transient.wait().unwrap_or_default().as_secs().max(1);
            Publication::Slow { reason: transient.to_build_error().message, retry_after_s: wait }
        }
        refused => Publication::Refused { error: refused.to_build_error() },
    }
}

fn first_image(tags: &[String], digest: &Digest) -> Option<String> {
    tags.first()?.parse::<ImageTag>().ok().map(|tag| tag.pinned(digest))
}
