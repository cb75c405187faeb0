//! How to build: the Dockerfile, and the frontend that reads it.

use buildkit::Frontend;
use bytes::Bytes;
use workflows::contract::{BuildError, BuildInput, FailureClass};
use workflows::policy::{ReservedArgument, check_arguments};

use super::classify;
use crate::snapshots::SnapshotSource;

/// The largest Dockerfile that is read, bytes.
const DOCKERFILE_CAP: u64 = 4 << 20;
/// The names of a Dockerfile that is not named.
const IN_CONTEXT: [&str; 2] = ["Dockerfile", "dockerfile"];
/// The frontend images that the built-in frontend stands for.
const BUILT_IN: &str = "docker/dockerfile";

/// What the solve needs to know.
pub(super) struct Plan {
    /// The directory of the snapshot that has the Dockerfile and its ignore file; empty for the root.
    pub directory: String,
    /// The Dockerfile's name in it.
    pub filename: String,
    /// Its text.
    pub dockerfile: Bytes,
    pub frontend: Frontend,
    /// What the log says about the choice.
    pub notes: Vec<String>,
}

/// Reads the Dockerfile and chooses the frontend.
pub(super) async fn plan(source: &SnapshotSource, input: &BuildInput, allowed: &[String]) -> Result<Plan, BuildError> {
    let refuse = |error: ReservedArgument| BuildError::new(FailureClass::Refused, error.to_string());
    check_arguments(input.args.keys()).map_err(refuse)?;
    let path = find(source, input.dockerfile.as_deref())?;
    let text = read(source, &path).await?;
    let (frontend, notes) = choose_frontend(&text, input, allowed)?;
    let (directory, filename) = path.rsplit_once('/').unwrap_or(("", &path));
    let (directory, filename) = (directory.to_owned(), filename.to_owned());
    Ok(Plan { directory, filename, dockerfile: text, frontend, notes })
}

/// Where the Dockerfile is: as named, else in the root of the context, else what was sent beside the context: `kiln up` does that with
/// a Dockerfile from elsewhere, and with one that its own ignore file leaves out.
fn find(source: &SnapshotSource, named: Option<&str>) -> Result<String, BuildError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let in_context = IN_CONTEXT.iter().find(|path| source.has_file(path.as_bytes()));
    let found = in_context.map(|path| (*path).to_owned()).or_else(|| source.dockerfile_beside());
    found.ok_or_else(|| missing(IN_CONTEXT[0]))
}

async fn read(source: &SnapshotSource, path: &str) -> Result<Bytes, BuildError> {
    let read = source.read(path.as_bytes(), DOCKERFILE_CAP).await.map_err(|e| classify::snapshot_error(&e))?;
    read.ok_or_else(|| missing(path))
}

fn missing(path: &str) -> BuildError {
    let why = format!("the snapshot has no file {path:?}; name the Dockerfile with -f");
    BuildError::new(FailureClass::UserError, why)
}

/// `# syntax=docker/dockerfile…` runs on the built-in frontend unless the build asks for the image. An image has to be on the
/// operator's list, and runs by the digest that stands there, whatever its tag points at.
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
    let Some(pinned) = pinned(&image, allowed) else {
        let list = if allowed.is_empty() { "it is empty".to_owned() } else { allowed.join(", ") };
        let why = format!("frontend {image} is not on the list of allowed frontends (cell.frontends: {list})");
        return Err(BuildError::new(FailureClass::Refused, why));
    };
    Ok((Frontend::Image { reference: pinned.clone() }, vec![format!("syntax {image} is built by {pinned}")]))
}

/// The entry of the list that stands for an image: of its repository and tag, or without a tag, and of its digest if it names one.
fn pinned<'a>(image: &str, allowed: &'a [String]) -> Option<&'a String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let of_repository = allowed.iter().filter(|entry| repository_of(entry) == repository_of(name));
    let same_digest = |entry: &&String| digest.is_none_or(|digest| entry.ends_with(digest));
    let same_tag = |entry: &&String| tag_of(entry).is_none() || tag_of(entry) == tag_of(name) || digest.is_some();
    of_repository.filter(same_digest).filter(same_tag).max_by_key(|entry| tag_of(entry).is_some())
}

/// The tag of an image's name, without its digest.
fn tag_of(image: &str) -> Option<&str> {
    let name = image.split('@').next().unwrap_or(image);
    name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
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

    fn digest(of: char) -> String {
        format!("sha256:{}", of.to_string().repeat(64))
    }

    fn choose(text: &str, extra: &str) -> Result<(Frontend, Vec<String>), BuildError> {
        let any = format!("docker/dockerfile@{}", digest('a'));
        let one = format!("docker/dockerfile:1.4@{}", digest('b'));
        choose_frontend(text.as_bytes(), &input(extra), &[any, one])
    }

    #[test]
    fn dockers_own_syntax_is_built_in_and_said_so() {
        let (frontend, notes) = choose("# syntax=docker/dockerfile:1.7\nFROM x\n", "").unwrap();
        assert!(matches!(frontend, Frontend::BuiltIn));
        assert!(notes[0].contains("docker/dockerfile:1.7"), "{notes:?}");
        assert!(choose("FROM x\n", "").unwrap().1.is_empty());
    }

    #[test]
    fn the_image_that_is_asked_for_runs_by_the_lists_digest() {
        let run = |image: &str| choose(&format!("# syntax={image}\nFROM x\n"), ",\"registry_frontend\":true");
        for (image, name, of) in [
            ("docker/dockerfile:1", "docker/dockerfile", 'a'),
            ("docker/dockerfile", "docker/dockerfile", 'a'),
            ("docker.io/docker/dockerfile:1.4", "docker/dockerfile:1.4", 'b'),
            (&format!("docker/dockerfile@{}", digest('a')), "docker/dockerfile", 'a'),
        ] {
            let expected = format!("{name}@{}", digest(of));
            let (frontend, _) = run(image).unwrap();
            assert!(
                matches!(&frontend, Frontend::Image { reference } if *reference == expected),
                "{image}: {frontend:?}"
            );
        }
        let other = run(&format!("docker/dockerfile:1@{}", digest('c'))).err().unwrap();
        assert_eq!(other.class, FailureClass::Refused);
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
