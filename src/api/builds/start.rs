//! Starting builds: what is checked before Temporal is asked.
//!
//! The workflow checks its input as well, for it can be started without the api; here a mistake is told before anything is
//! started, and what the caller left out is filled in.

use std::collections::BTreeSet;

use activities::control::{differing_fields, variant};
use activities::oci::{ImageTag, InvalidTag};
use activities::store::{BuildRow, ProjectRow};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use workflows::contract::{BuildInput, BuildKey, BuildStatus, Platform, ProjectName, SecretsRef, build_workflow_id};
use workflows::policy::{Sent, check_arguments};

use super::BuildId;
use crate::api::App;
use crate::api::access::{Build, BuildAccess, ProjectAccess, Submit};
use crate::api::audit::Note;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{Body, RawBody, parse};
use crate::metrics;

/// A build to start.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct NewBuild {
    /// Names the build: the same key and input never build twice. A new one is made when it is absent.
    #[serde(default)]
    pub key: Option<BuildKey>,
    /// A build's input without its project. Without tags it gets `<registry>/<project>:<snapshot>-<variant>`: the first 12 digits
    /// of the snapshot, and 8 digits over the other fields that decide what the image holds.
    #[schema(value_type = BuildInput)]
    pub input: serde_json::Map<String, serde_json::Value>,
}

/// What a retry may bring along.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
pub struct RetryBuild {
    /// Credentials sealed anew; those of the former run are deleted a day after it failed.
    #[serde(default)]
    pub secrets_ref: Option<SecretsRef>,
}

/// A build that runs now.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BuildStarted {
    /// `<project>/<key>`.
    pub build_id: String,
    pub workflow_id: String,
    pub run_id: String,
    /// It ran already; this request has joined it.
    pub attached: bool,
}

/// Starts a build, or joins the one that runs under this key. A key that was built before with the same input gives its
/// recorded result.
#[utoipa::path(post, path = "/v1/projects/{project}/builds", tag = "builds", request_body = NewBuild,
    params(("project" = ProjectName, Path)), responses(
    (status = 201, description = "Started", body = BuildStarted),
    (status = 200, description = "Joined", body = BuildStarted),
    (status = 429, description = "The project is over a quota; see Retry-After", body = ErrorBody),
    (status = "default", body = ErrorBody)))]
pub async fn start(
    access: ProjectAccess<Submit>,
    Body(new): Body<NewBuild>,
) -> Result<(StatusCode, Extension<Note>, Json<BuildStarted>), ApiError> {
    let (app, project) = (&access.app, &access.project);
    let input = input_of(project, new.input)?;
    let key = match (access.only_build(), new.key) {
        (None, Some(key)) => key,
        (None, None) => new_key()?,
        (Some(only), asked) => app.only_start(project, only, asked).await?,
    };
    let row = app.project_in_use(project).await?;
    let input = app.completed(&row, input).await?;
    app.may_start(&row, &input).await?;
    app.start_build(BuildId { project: project.clone(), key }, input).await
}

/// Starts a build again with the key and input of its newest run.
#[utoipa::path(post, path = "/v1/builds/{build}/retry", tag = "builds", request_body = Option<RetryBuild>,
    params(("build" = String, Path, description = "`<project>/<key>`, percent-encoded")), responses(
    (status = 201, description = "Started", body = BuildStarted),
    (status = 200, description = "It still runs", body = BuildStarted),
    (status = "default", body = ErrorBody)))]
pub async fn retry(
    access: BuildAccess<Build>,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Extension<Note>, Json<BuildStarted>), ApiError> {
    let BuildAccess { app, id, .. } = access;
    let retry: RetryBuild = if body.is_empty() { RetryBuild::default() } else { parse(&body)? };
    let mut input = app.run_to_retry(&id).await?.input;
    if retry.secrets_ref.is_some() {
        input.secrets_ref = retry.secrets_ref;
    }
    if let Some(project) = app.store.project(&id.project).await? {
        app.may_start(&project, &input).await?;
    }
    app.start_build(id, input).await
}

fn input_of(
    project: &ProjectName,
    mut input: serde_json::Map<String, serde_json::Value>,
) -> Result<BuildInput, ApiError> {
    input.insert("project".into(), project.as_str().into());
    serde_json::from_value(input.into()).map_err(|error| ApiError::usage(format!("the build's input: {error}")))
}

/// Sorts by time, so that lists of objects and workflows do.
fn new_key() -> Result<BuildKey, ApiError> {
    let text = uuid::Uuid::now_v7().to_string();
    text.parse().map_err(|error| ApiError::unavailable("no key could be made", &error))
}

impl App {
    /// The key that a build's one-time token starts, if it has not been built yet. While it runs, a repeated start joins it.
    async fn only_start(
        &self,
        project: &ProjectName,
        only: &BuildKey,
        asked: Option<BuildKey>,
    ) -> Result<BuildKey, ApiError> {
        if asked.is_some_and(|asked| asked != *only) {
            return Err(ApiError::forbidden(format!("this token starts one build, with the key {only}")));
        }
        match self.store.build(&build_workflow_id(project, only)).await? {
            Some(row) if row.status.is_final() => {
                Err(ApiError::forbidden(format!("this token was for one build, {project}/{only}, which has ended")))
            }
            _ => Ok(only.clone()),
        }
    }

    /// Checks an input and fills in what the caller left to the installation and the project.
    async fn completed(&self, project: &ProjectRow, mut input: BuildInput) -> Result<BuildInput, ApiError> {
        input.provenance = provenance(input.provenance.or_else(|| project.settings.provenance.clone()))?;
        if input.tags.is_empty() {
            input.tags.push(self.default_tag(&input)?);
        }
        self.check_tags(project, &input)?;
        check_arguments(input.args.keys()).map_err(|error| ApiError::refused(error.to_string()))?;
        self.check_platforms(&input.platforms).await?;
        Ok(input)
    }

    /// Whether the project may publish to these tags, as far as that is known before the build's credentials are opened.
    fn check_tags(&self, project: &ProjectRow, input: &BuildInput) -> Result<(), ApiError> {
        let registry = self.settings.registry.policy();
        let sent = if input.secrets_ref.is_some() { Sent::Unknown } else { Sent::No };
        for text in &input.tags {
            let tag: ImageTag = text.parse().map_err(|error: InvalidTag| ApiError::usage(error.to_string()))?;
            let allowed = registry.may_publish(&project.name, &project.settings.repositories, tag.parts(), sent);
            allowed.map_err(|error| ApiError::refused(error.to_string()))?;
        }
        Ok(())
    }

    fn default_tag(&self, input: &BuildInput) -> Result<String, ApiError> {
        let registry = &self.settings.registry.address;
        if registry.is_empty() {
            return Err(ApiError::usage("name at least one tag: this installation has no registry of its own"));
        }
        Ok(format!("{registry}/{}:{}-{}", input.project, &input.snapshot.as_str()[..12], variant(input)))
    }

    /// Cells build for their own platform only.
    async fn check_platforms(&self, asked: &[Platform]) -> Result<(), ApiError> {
        if asked.is_empty() {
            return Ok(());
        }
        let mut own: BTreeSet<String> =
            self.store.all_cells().await?.into_iter().map(|hint| hint.platform.to_string()).collect();
        if own.is_empty() {
            own.insert(self.settings.default_platform().to_owned());
        }
        let own_text = own.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match asked.iter().find(|platform| !own.contains(platform.as_str())) {
            Some(other) => {
                let text = format!(
                    "platform {other} cannot be built here: the cells are {own_text}, and none emulates another"
                );
                Err(ApiError::usage(text))
            }
            None if asked.len() > 1 => Err(ApiError::usage("a build is for one platform; start one for each")),
            None => Ok(()),
        }
    }

    async fn start_build(
        &self,
        id: BuildId,
        input: BuildInput,
    ) -> Result<(StatusCode, Extension<Note>, Json<BuildStarted>), ApiError> {
        self.check_secrets(&id.project, &input).await?;
        let workflow_id = build_workflow_id(&id.project, &id.key);
        let started = self.engine.start(&workflow_id, &input).await?;
        let row = new_row(&id, &workflow_id, &started.run_id, input);
        let status = match started.attached {
            true => {
                self.check_same_input(&row).await?;
                StatusCode::OK
            }
            false => {
                metrics::BUILDS_STARTED.inc();
                self.store.record_start(&row).await?;
                StatusCode::CREATED
            }
        };
        let BuildRow { run_id, .. } = row;
        let answer = BuildStarted { build_id: id.to_string(), workflow_id, run_id, attached: started.attached };
        Ok((status, Note::new(format!("{} {}", answer.build_id, answer.run_id)), Json(answer)))
    }

    /// Credentials that are deleted are asked for again before anything starts.
    async fn check_secrets(&self, project: &ProjectName, input: &BuildInput) -> Result<(), ApiError> {
        let Some(secrets_ref) = &input.secrets_ref else { return Ok(()) };
        if self.store.has_sealed(project, secrets_ref).await? {
            return Ok(());
        }
        let secrets = match input.secret_ids.as_slice() {
            [] => String::new(),
            ids => format!(" and the secrets {}", ids.join(", ")),
        };
        Err(ApiError::conflict(format!("send the registry credentials{secrets} again: those of before are deleted")))
    }

    /// A run that was joined must be of the same input; the workflow itself sees only the input it was started with.
    async fn check_same_input(&self, row: &BuildRow) -> Result<(), ApiError> {
        let Some(running) = self.store.run(&row.run()).await? else { return Ok(()) };
        let fields = differing_fields(&running.input, &row.input);
        if fields.is_empty() {
            return Ok(());
        }
        let (key, fields) = (&row.key, fields.join(", "));
        Err(ApiError::conflict(format!(
            "key {key} is being built from another input; these fields differ: {fields}. Use another key"
        )))
    }
}

fn new_row(id: &BuildId, workflow_id: &str, run_id: &str, input: BuildInput) -> BuildRow {
    BuildRow {
        project: id.project.clone(),
        key: id.key.clone(),
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.to_owned(),
        status: BuildStatus::Queued,
        input,
        result: None,
        cell: None,
        created_ms: jiff::Timestamp::now().as_millisecond(),
        started_ms: None,
        ended_ms: None,
    }
}

/// As docker takes it: `true` is `min`, `false` and `none` are no provenance.
pub fn provenance(text: Option<String>) -> Result<Option<String>, ApiError> {
    match text.as_deref() {
        None | Some("false" | "none") => Ok(None),
        Some("true" | "min") => Ok(Some("min".into())),
        Some("max") => Ok(Some("max".into())),
        Some(other) => Err(ApiError::usage(format!("provenance {other:?}: must be min, max or none"))),
    }
}
