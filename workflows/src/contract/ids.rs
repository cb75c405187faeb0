//! A type for each kind of id, so that one never stands in for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the id it should be. `Display` names the kind, the text and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} {text:.80?}: {rule}")]
pub struct InvalidId {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
}

/// Declares a checked string id: `Display`, `FromStr`, serde as a plain string, `as_str`.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, text: text.to_owned(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_slug(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len()) && lower_alnum(bytes[0]) && bytes.iter().all(|&b| lower_alnum(b) || b == b'-')
}

text_id!(
    /// A project's name: `[a-z0-9][a-z0-9-]{0,62}`. The unit of cache, settings and access.
    ProjectName, "project", "must match [a-z0-9][a-z0-9-]{0,62}", is_slug
);
text_id!(
    /// A cell's id, unique within the installation: `[a-z0-9][a-z0-9-]{0,62}`.
    CellId, "cell id", "must match [a-z0-9][a-z0-9-]{0,62}", is_slug
);
text_id!(
    /// A host's id, unique within the installation: `[a-z0-9][a-z0-9-]{0,62}`.
    HostId, "host id", "must match [a-z0-9][a-z0-9-]{0,62}", is_slug
);
text_id!(
    /// A pool's name: `[a-z0-9][a-z0-9-]{0,62}`.
    PoolName, "pool", "must match [a-z0-9][a-z0-9-]{0,62}", is_slug
);
text_id!(
    /// The key of a build, chosen by its caller: 1 to 200 printable ASCII characters without space or `/` at either end.
    BuildKey,
    "build key",
    "must be 1 to 200 characters of [A-Za-z0-9._:@+/-], not starting or ending with '/'",
    |t| {
        (1..=200).contains(&t.len())
            && !t.starts_with('/')
            && !t.ends_with('/')
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@+/-".contains(&b))
    }
);
text_id!(
    /// A snapshot's id: the BLAKE3 of its canonical entry list, 64 lower-case hex digits.
    SnapshotId, "snapshot id", "must be 64 lower-case hex digits", is_hex64
);
text_id!(
    /// An OCI content digest, `sha256:` and 64 lower-case hex digits.
    Digest, "digest", "must be sha256: and 64 lower-case hex digits",
    is_sha256
);
text_id!(
    /// A cell image, `name@sha256:…`. Its host looks the name up among its own images and starts what it finds
    /// only if it has this digest; no host takes a path.
    CellImage,
    "cell image",
    "must be name@sha256:<64 hex digits>, as `kiln host images` on the cell's host lists them; no path is taken",
    |t| t.split_once('@').is_some_and(|(name, digest)| is_image_name(name) && is_sha256(digest))
);
text_id!(
    /// A platform as `os/arch[/variant]`, for example `linux/amd64`.
    Platform, "platform", "must be os/arch or os/arch/variant in lower case, at most 64 characters",
    |t| {
        let parts: Vec<&str> = t.split('/').collect();
        t.len() <= 64
            && (2..=3).contains(&parts.len())
            && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| lower_alnum(b) || b == b'_'))
    }
);
text_id!(
    /// Names sealed credentials and secrets in object storage; says nothing of their content.
    SecretsRef, "secrets reference", "must match [a-z0-9][a-z0-9-]{0,62}", is_slug
);
text_id!(
    /// A project's opaque id: 16 lower-case hex digits. Names the project's object prefix and its cache-mount namespace.
    ProjectId, "project id", "must be 16 lower-case hex digits",
    |t| t.len() == 16 && t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
);

text_id!(
    /// Repositories that a project may use: `own` (the project's namespace in the installation's registry), `outside` (other
    /// registries, with the build's own credentials), or `host[:port]/path` where `*` stands for a part of a path without `/` and
    /// `**` for anything. At most 255 characters.
    RepositoryPattern, "repository pattern",
    "must be own, outside, or host[:port]/path in lower case, with * and ** as wildcards",
    |t| {
        let of_names = |b: u8| lower_alnum(b) || b"._-:/*[]".contains(&b);
        t == "own" || t == "outside" || (t.len() <= 255 && t.contains(['/', '*']) && t.bytes().all(of_names))
    }
);

impl CellImage {
    /// Its name among its host's images: `[a-z0-9][a-z0-9._-]{0,62}`.
    pub fn name(&self) -> &str {
        self.0.split_once('@').map_or("", |(name, _)| name)
    }

    /// `sha256:` and 64 hex digits.
    pub fn digest(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, digest)| digest)
    }
}

/// Whether a cell image may have this name: one component of a path, and not a hidden one.
pub fn is_image_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && lower_alnum(bytes[0])
        && bytes.iter().all(|&b| lower_alnum(b) || b"._-".contains(&b))
}

fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl ProjectId {
    /// The host name of the project's RUN steps. It is part of BuildKit's cache key, so that no project is served the result
    /// of another's step. A hash: steps can read it and copy it into an image.
    pub fn sandbox_hostname(&self) -> String {
        let hash = blake3::derive_key("kiln 2026-12 host name of a project's steps", self.as_str().as_bytes());
        format!("kiln-{}", &blake3::Hash::from_bytes(hash).to_hex()[..32])
    }
}

/// One try of a build on one cell: workflow id, run id, platform and number. Its text is the BuildKit `ref`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptId {
    pub workflow_id: String,
    pub run_id: String,
    pub platform: Platform,
    /// Counts from 1 over all cells.
    pub number: u32,
}

impl AttemptId {
    /// The BuildKit `ref`: 40 hex digits, equal for equal attempts and for nothing else. A ref may not hold a slash and must
    /// stay short, so the parts are hashed.
    pub fn buildkit_ref(&self) -> String {
        let text = format!("{}\n{}\n{}\n{}", self.workflow_id, self.run_id, self.platform, self.number);
        blake3::hash(text.as_bytes()).to_hex()[..40].to_owned()
    }
}

/// The workflow id of a build: `build/<project>/<key>`.
pub fn build_workflow_id(project: &ProjectName, key: &BuildKey) -> String {
    format!("build/{project}/{key}")
}

/// The project and key of a build's workflow id, or `None` when it is not one.
pub fn parse_build_workflow_id(workflow_id: &str) -> Option<(ProjectName, BuildKey)> {
    let rest = workflow_id.strip_prefix("build/")?;
    let (project, key) = rest.split_once('/')?;
    Some((project.parse().ok()?, key.parse().ok()?))
}

/// The workflow id of a cell: `cell/<pool>/<id>`.
pub fn cell_workflow_id(pool: &PoolName, cell: &CellId) -> String {
    format!("cell/{pool}/{cell}")
}

/// The task queue whose activity slots are the cell's slots.
pub fn cell_task_queue(cell: &CellId) -> String {
    format!("cell-{cell}")
}

/// The task queue of the cell's small second worker: presence, stop, reconcile.
pub fn cell_ops_task_queue(cell: &CellId) -> String {
    format!("cell-{cell}-ops")
}

/// The task queue of a host's agent.
pub fn host_task_queue(host: &HostId) -> String {
    format!("host-{host}")
}

/// The task queue of Build workflows.
pub const CONTROL_TASK_QUEUE: &str = "control";
/// The task queue of Cell, Pool and Rollout workflows.
pub const ENTITIES_TASK_QUEUE: &str = "entities";
