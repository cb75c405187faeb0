//! A tag to publish: `host[:port]/repository:tag`.

use std::fmt;
use std::str::FromStr;

use oci_client::Reference;
use workflows::contract::Digest;

/// Why a text is not a tag that can be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid tag {text:?}: {why}")]
pub struct InvalidTag {
    pub text: String,
    pub why: String,
}

/// A checked tag. A name without a host means Docker Hub, one without a tag means `latest`, as with docker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTag(Reference);

impl FromStr for ImageTag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let invalid = |why: &str| InvalidTag { text: text.to_owned(), why: why.to_owned() };
        let reference: Reference = text.parse().map_err(|e: oci_client::ParseError| invalid(&e.to_string()))?;
        match (reference.digest(), reference.tag()) {
            (Some(_), _) => Err(invalid("a digest cannot be published to; name a tag")),
            (None, Some(_)) => Ok(Self(reference)),
            (None, None) => Err(invalid("it has no tag")),
        }
    }
}

impl fmt::Display for ImageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl ImageTag {
    /// `host[:port]` as credentials are keyed by it.
    pub fn host(&self) -> &str {
        self.0.registry()
    }

    /// `host[:port]/repository`, what buildkitd pushes to by digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.0.registry(), self.0.repository())
    }

    /// The host and the repository's path in it.
    pub fn parts(&self) -> (&str, &str) {
        (self.0.registry(), self.0.repository())
    }

    /// `host[:port]/repository@sha256:…`
    pub fn pinned(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// The tag alone.
    pub fn name(&self) -> &str {
        self.0.tag().unwrap_or("latest")
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.0
    }
}

/// An image that a build takes something from: by tag, by digest, or by both, of which the digest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage(Reference);

impl FromStr for BaseImage {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let reference = text.parse();
        reference
            .map(Self)
            .map_err(|e: oci_client::ParseError| InvalidTag { text: text.to_owned(), why: e.to_string() })
    }
}

impl fmt::Display for BaseImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl BaseImage {
    /// The host and the repository's path in it.
    pub fn parts(&self) -> (&str, &str) {
        (self.0.registry(), self.0.repository())
    }

    /// What its manifest is asked for by.
    pub(super) fn version(&self) -> &str {
        self.0.digest().or(self.0.tag()).unwrap_or("latest")
    }

    /// The same image at another host, for example a mirror.
    pub(super) fn at(&self, host: &str) -> Reference {
        let repository = self.0.repository().to_owned();
        match self.0.digest() {
            Some(digest) => Reference::with_digest(host.to_owned(), repository, digest.to_owned()),
            None => Reference::with_tag(host.to_owned(), repository, self.version().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_tag() {
        let tag: ImageTag = "127.0.0.1:5000/shop/web:v1".parse().unwrap();
        assert_eq!((tag.host(), tag.repository().as_str()), ("127.0.0.1:5000", "127.0.0.1:5000/shop/web"));
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        assert_eq!(tag.pinned(&digest), format!("127.0.0.1:5000/shop/web@{digest}"));
    }

    #[test]
    fn a_name_without_host_or_tag_is_dockers() {
        let tag: ImageTag = "busybox".parse().unwrap();
        assert_eq!((tag.host(), tag.to_string().as_str()), ("docker.io", "docker.io/library/busybox:latest"));
    }

    #[test]
    fn a_base_is_the_same_image_at_a_mirror() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, version, at) in [
            ("busybox", "latest", "m.example:5000/library/busybox:latest".to_owned()),
            ("r.example/a/b:v1", "v1", "m.example:5000/a/b:v1".to_owned()),
            (&format!("a/b:v1@{digest}"), &digest, format!("m.example:5000/a/b@{digest}")),
        ] {
            let base: BaseImage = text.parse().unwrap();
            assert_eq!((base.version(), base.at("m.example:5000").to_string()), (version, at));
        }
    }

    #[test]
    fn digests_and_nonsense_are_refused() {
        let pinned = format!("a.example/b@sha256:{}", "a".repeat(64));
        for text in ["", "shop/UPPER:x", "a b", "a.example/b:ta g", pinned.as_str()] {
            assert!(text.parse::<ImageTag>().is_err(), "{text:?} was taken for a tag");
        }
    }
}
