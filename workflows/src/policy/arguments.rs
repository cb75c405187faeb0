//! Which build arguments a build may set. Most are the Dockerfile's own; those that start with `BUILDKIT_` instruct
//! BuildKit, and some of them would undo what keeps projects apart on a shared daemon.
//!
//! Checked by the command line, the api, admit and the cell: a workflow can be started without the first two.

/// What BuildKit reserves for itself.
const PREFIX: &str = "BUILDKIT_";

/// Arguments for BuildKit that concern only the build that sets them. `BUILDKIT_SYNTAX` is checked against the allowed
/// frontends where the Dockerfile is read.
///
/// <https://github.com/moby/buildkit/blob/v0.33.1/frontend/dockerfile/docs/reference.md#buildkit-built-in-build-args>
const ALLOWED: [&str; 9] = [
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_GIT_ADVICE",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    "BUILDKIT_SYNTAX",
];

/// A build argument that a build may not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the build argument {name} is not allowed; of BuildKit's own, builds may set {}", ALLOWED.join(", "))]
pub struct ReservedArgument {
    pub name: String,
}

/// Checks the names of a build's arguments.
///
/// # Errors
/// The first one that is reserved.
pub fn check_arguments<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), ReservedArgument> {
    let reserved = |name: &&String| name.starts_with(PREFIX) && !ALLOWED.contains(&name.as_str());
    match names.into_iter().find(reserved) {
        Some(name) => Err(ReservedArgument { name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> bool {
        check_arguments(&[name.to_owned()]).is_err()
    }

    #[test]
    fn arguments_that_reach_into_other_projects_are_refused() {
        for name in [
            "BUILDKIT_SANDBOX_HOSTNAME",
            "BUILDKIT_CACHE_MOUNT_NS",
            "BUILDKIT_SCAN_DESTINATION",
            "BUILDKIT_",
            "BUILDKIT_OF_A_LATER_VERSION",
        ] {
            assert!(refused(name), "{name}");
        }
    }

    #[test]
    fn the_dockerfiles_own_and_harmless_arguments_are_allowed() {
        for name in ALLOWED.into_iter().chain(["VERSION", "HTTP_PROXY", "SOURCE_DATE_EPOCH", "BUILDKIT", ""]) {
            assert!(!refused(name), "{name}");
        }
    }
}
