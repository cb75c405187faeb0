//! Base images for machines that reach no registry but the embedded one: made from what this machine has, under the names they have on
//! docker.io, so that the same Dockerfile works with and without a network.
//!
//! The same machine makes the same bytes each time; what an image was made from is recorded in its manifest, and an image that is
//! there already costs one request a tag.

mod busybox;
mod golang;
mod layer;
mod push;

use anyhow::Context;

use layer::Layer;

/// An image `kiln dev --seed` knows how to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Image {
    /// Debian's statically linked busybox
    Busybox,
    /// busybox and this machine's Go, with CGO_ENABLED=0 and GOTOOLCHAIN=local
    Golang,
}

/// What an image is made from, known before the work of making it is done.
struct Recipe {
    /// `library/<name>`.
    repository: &'static str,
    tags: Vec<String>,
    /// Of everything that goes in.
    fingerprint: String,
    env: Vec<&'static str>,
    cmd: &'static [&'static str],
    workdir: &'static str,
    /// Reads the machine; may take seconds.
    layers: Box<dyn FnOnce() -> anyhow::Result<Vec<Layer>> + Send>,
}

/// Puts the image into the registry at `address` (`host:port`); nothing is made or sent when it is there.
///
/// # Errors
/// When what it is made from is missing on this machine, or the registry refuses it.
pub async fn push(address: &str, image: Image) -> anyhow::Result<()> {
    let recipe = match image {
        Image::Busybox => busybox::recipe()?,
        Image::Golang => golang::recipe()?,
    };
    let repository = recipe.repository;
    push::push(address, recipe).await.with_context(|| format!("cannot put {repository} into the registry"))
}

/// `major.minor.patch` and everything it is an instance of: `1.26.8`, `1.26`, `1`, `latest`.
fn tags_of(version: &str) -> Vec<String> {
    let mut tags = vec!["latest".to_owned()];
    tags.extend(version.match_indices('.').map(|(dot, _)| version[..dot].to_owned()));
    tags.push(version.to_owned());
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_a_tag_for_each_of_its_parts() {
        assert_eq!(tags_of("1.26.8"), ["latest", "1", "1.26", "1.26.8"]);
        assert_eq!(tags_of("1.27"), ["latest", "1", "1.27"]);
    }
}
