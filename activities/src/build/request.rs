//! What buildkitd is asked for: the frontend's options with docker's meaning of the build's input, and where the image goes.

use buildkit::{Export, Image, Solve};
use workflows::contract::{AttemptInput, BuildError, FailureClass, Isolation};
use workflows::policy::{RegistryPolicy, Sent};

use super::bases::Bases;
use super::plan::Plan;
use crate::oci::{ImageTag, InvalidTag};
use crate::sealed::Sealed;

/// The solve's request. `number` counts the solves of one attempt: each has a ref of its own, derived from the attempt's.
pub(super) fn solve(attempt: &AttemptInput, plan: &Plan, bases: &Bases<'_>, export: Image, number: u32) -> Solve {
    let reference = match number {
        1 => attempt.attempt.buildkit_ref(),
        n => format!("{}-{n}", attempt.attempt.buildkit_ref()),
    };
    let mut solve = Solve::new(reference, plan.frontend.clone()).attr("filename", plan.filename.clone());
    for (name, value) in attrs(attempt) {
        solve = solve.attr(name, value);
    }
    solve.images_from(bases.allowed()).export(Export::Image(export))
}

/// By digest to every repository among the tags; tags are written by publish alone. Which registry is spoken to over plain HTTP
/// stands in buildkitd's configuration, host by host: the exporter has one switch for all of its names.
///
/// # Errors
/// Refused, when the project may not publish to one of the tags.
pub(super) fn image(attempt: &AttemptInput, rules: &RegistryPolicy, sealed: &Sealed) -> Result<Image, BuildError> {
    let refuse = |why: String| BuildError::new(FailureClass::Refused, why);
    let mut repositories = Vec::new();
    for text in &attempt.input.tags {
        let tag: ImageTag = text.parse().map_err(|error: InvalidTag| refuse(error.to_string()))?;
        let sent = if sealed.registry_auth.contains_key(tag.host()) { Sent::Yes } else { Sent::No };
        let allowed = rules.may_publish(&attempt.input.project, &attempt.repositories, tag.parts(), sent);
        allowed.map_err(|error| refuse(error.to_string()))?;
        repositories.push(tag.repository());
    }
    repositories.sort();
    repositories.dedup();
    Ok(repositories.into_iter().fold(Image::default(), Image::and_named).push_by_digest())
}

/// What a synced directory depends on: another key means that everything travels, the same key for other content that files are
/// deleted and sent again.
pub(super) fn shared_key(input: &AttemptInput, plan: &Plan) -> String {
    let target = input.input.target.as_deref().unwrap_or_default();
    format!("{}:{}/{}:{target}", input.project_id, plan.directory, plan.filename)
}

/// The frontend's attributes with docker's meaning of the input.
fn attrs(attempt: &AttemptInput) -> Vec<(String, String)> {
    let (input, project) = (&attempt.input, &attempt.project_id);
    let mut attrs = Vec::new();
    let mut set = |name: String, value: &str| attrs.push((name, value.to_owned()));
    for (name, value) in &input.args {
        set(format!("build-arg:{name}"), value);
    }
    for (name, value) in &input.labels {
        set(format!("label:{name}"), value);
    }
    if let Some(target) = &input.target {
        set("target".to_owned(), target);
    }
    if input.no_cache {
        set("no-cache".to_owned(), "");
    }
    if input.pull {
        set("image-resolve-mode".to_owned(), "pull");
    }
    if let Some(mode) = &input.provenance {
        set("attest:provenance".to_owned(), &format!("mode={mode}"));
    }
    if attempt.isolation == Isolation::Project {
        set("hostname".to_owned(), &project.sandbox_hostname());
    }
    // Cache mounts of one name are one mount for the whole daemon; the project's namespace keeps them apart.
    set("build-arg:BUILDKIT_CACHE_MOUNT_NS".to_owned(), project.as_str());
    attrs
}

#[cfg(test)]
mod tests {
    use workflows::contract::ProjectId;

    use super::*;

    fn hostname(project: &str, isolation: &str) -> Option<String> {
        let attempt: AttemptInput = serde_json::from_value(serde_json::json!({
            "attempt": {"workflow_id": "build/p/k", "run_id": "r", "platform": "linux/amd64", "number": 1},
            "project_id": project,
            "cell": "c1",
            "input": {"project": "p", "snapshot": "0".repeat(64), "tags": ["a:b"]},
            "isolation": isolation,
        }))
        .unwrap();
        attrs(&attempt).into_iter().find(|(name, _)| name == "hostname").map(|(_, value)| value)
    }

    #[test]
    fn steps_of_each_project_have_a_host_name_of_their_own() {
        let name = hostname("0123456789abcdef", "project").unwrap();
        assert_eq!(name.len(), 37, "a host name has at most 63 characters");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
        assert!(!name.contains("0123456789abcdef"), "{name}");
        assert_eq!(hostname("0123456789abcdef", "project"), Some(name.clone()));
        assert_ne!(hostname("0123456789abcdee", "project"), Some(name));
        assert_eq!(hostname("0123456789abcdef", "none"), None);
    }

    #[test]
    fn an_attempt_without_isolation_is_isolated() {
        let project: ProjectId = "0123456789abcdef".parse().unwrap();
        let mut value = serde_json::json!({
            "attempt": {"workflow_id": "build/p/k", "run_id": "r", "platform": "linux/amd64", "number": 1},
            "project_id": project.as_str(),
            "cell": "c1",
            "input": {"project": "p", "snapshot": "0".repeat(64), "tags": ["a:b"]},
        });
        let attempt: AttemptInput = serde_json::from_value(value.take()).unwrap();
        assert!(attrs(&attempt).contains(&("hostname".to_owned(), project.sandbox_hostname())));
    }
}
