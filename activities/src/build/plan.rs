//! How to build: the Dockerfile, and the frontend that reads it.

use buildkit::Frontend;
use bytes::Bytes;
use workflows::contract::{BuildError, BuildInput, FailureClass};
use workflows::policy::{ReservedArgument, check_arguments};

use super::classify;
use crate::snapshots::SnapshotSource;

/// The largest Dockerfile that is read, bytes.
const DOCKERFILE_CAP: u64 = 4 << 20;
/// The frontend images that the built-in frontend stands for.
const BUILT_IN: &str = "docker/dockerfile";

/// What the solve needs to know.
pub(super) struct Plan {
    /// The directory of the snapshot that has the Dockerfile and its ignore file; empty for the root.
    pub directory: String,
    /// The Dockerfile's name in it.
    pub filename: String,
    pub frontend: Frontend,
    /// What the log says about the choice.
    pub notes: Vec<String>,
}

/// Reads the Dockerfile and chooses the frontend.
pub(super) async fn plan(source: &SnapshotSource, input: &BuildInput, allowed: &[String]) -> Result<Plan, BuildError> {
    let refuse = |error: ReservedArgument| BuildError::new(FailureClass::Refused, error.to_string());
    check_arguments(input.args.keys()).map_err(refuse)?;
    let path = input.dockerfile.as_deref().unwrap_or("Dockerfile");
    let text = read(source, path).await?;
    let (frontend, notes) = choose_frontend(&text, input, allowed)?;
    let (directory, filename) = path.rsplit_once('/').unwrap_or(("", path));
    Ok(Plan { directory: directory.to_owned(), filename: filename.to_owned(), frontend, notes })
}

async fn read(source: &SnapshotSource, path: &str) -> Result<Bytes, BuildError> {
    let missing = || {
        let why = format!("the snapshot has no file {path:?}; name the Dockerfile with -f");
        BuildError::new(FailureClass::UserError, why)
    };
    let read = source.read(path.as_bytes(), DOCKERFILE_CAP).await.map_err(|e| classify::snapshot_error(&e))?;
    read.ok_or_else(missing)
}

/// `# syntax=docker/dockerfile…` runs on the built-in frontend unless the build asks for the image; others have to be allowed.
fn choose_frontend(text: &[u8], input: &BuildInput, allowed: &[String]) -> Result<(Frontend, Vec<String>), BuildError> {
    let named = match input.args.get("BUILDKIT_SYNTAX") {
        Some(image) => Some(image.clone()),
        None => buildkit::syntax::syntax_line(text).map(|line| line.image),
    };
    let Some(image) = named else { return Ok((Frontend::BuiltIn, Vec::new())) };
    let repository = repository_of(&image);
    if repository == BUILT_IN && !input.registry_frontend {
        let note =
            format!("syntax {image} is built by buildkitd's built-in frontend (--frontend=registry pulls the image)");
        return Ok((Frontend::BuiltIn, vec![note]));
    }
    if !allowed.contains(&repository) {
        let why = format!("frontend {image} is not on the list of allowed frontends ({})", allowed.join(", "));
        return Err(BuildError::new(FailureClass::Refused, why));
    }
    Ok((Frontend::Image { reference: image.clone() }, vec![format!("syntax {image} is built by that image")]))
}

/// The repository of a frontend image without host for Docker Hub, tag and digest.
fn repository_of(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("index.docker.io/").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(extra: &str) -> BuildInput {
        let snapshot = "0".repeat(64);
        serde_json::from_str(&format!("{{\"project\":\"p\",\"snapshot\":\"{snapshot}\",\"tags\":[\"a:b\"]{extra}}}"))
            .unwrap()
    }

    fn choose(text: &str, extra: &str) -> Result<(Frontend, Vec<String>), BuildError> {
        choose_frontend(text.as_bytes(), &input(extra), &["docker/dockerfile".to_owned()])
    }

    #[test]
    fn dockers_own_syntax_is_built_in_and_said_so() {
        let (frontend, notes) = choose("# syntax=docker/dockerfile:1.7\nFROM x\n", "").unwrap();
        assert!(matches!(frontend, Frontend::BuiltIn));
        assert!(notes[0].contains("docker/dockerfile:1.7"), "{notes:?}");
        assert!(choose("FROM x\n", "").unwrap().1.is_empty());
    }

    #[test]
    fn the_image_is_used_when_asked_for() {
        let (frontend, _) = choose("# syntax=docker/dockerfile:1\nFROM x\n", ",\"registry_frontend\":true").unwrap();
        assert!(matches!(frontend, Frontend::Image { reference } if reference == "docker/dockerfile:1"));
    }

    #[test]
    fn other_frontends_are_refused_by_line_and_by_argument() {
        for (text, extra) in [
            ("# syntax=evil/frontend:1\nFROM x\n", ""),
            ("FROM x\n", ",\"args\":{\"BUILDKIT_SYNTAX\":\"evil/frontend\"}"),
        ] {
            let error = choose(text, extra).err().unwrap();
            assert_eq!(error.class, FailureClass::Refused);
            assert!(error.message.contains("evil/frontend"), "{}", error.message);
        }
    }

    #[test]
    fn repositories_of_frontend_images() {
        for image in ["docker/dockerfile", "docker.io/docker/dockerfile:1", "docker/dockerfile:1@sha256:ab"] {
            assert_eq!(repository_of(image), "docker/dockerfile", "{image}");
        }
        assert_eq!(repository_of("host:5000/x/y"), "host:5000/x/y");
    }
}
