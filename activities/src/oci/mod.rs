//! Registries: what publishing needs of them. Manifests and tags only; layers are pushed by buildkitd.
//!
//! Every request has a deadline shorter than the step it belongs to. An error says which class it is: refused for good, content
//! gone, or worth another try. Each build's requests carry that build's credentials and nothing else: nothing is remembered of them.

mod error;
mod reference;
mod requests;

use std::collections::BTreeMap;
use std::time::Duration;

use oci_client::Reference;
use workflows::contract::Digest;

use crate::egress::Egress;

pub use buildkit::Credential;
pub use error::{Cause, RegistryError};
pub use reference::{BaseImage, ImageTag, InvalidTag};
#[cfg(any(test, fuzzing))]
pub(crate) use requests::exercise;
use requests::{ACCEPTED, Requests};
pub use workflows::policy::is_loopback;

/// The deadline of one operation on a tag, with its token and its redirects: shorter than publish's local activity.
const DEADLINE: Duration = Duration::from_secs(3);
/// The same where a build waits for its bases.
const PATIENT_DEADLINE: Duration = Duration::from_secs(30);

/// Credentials by registry host.
pub type Credentials = BTreeMap<String, Credential>;

/// A client for any number of registries. Cheap to clone.
#[derive(Clone)]
pub struct Registries {
    egress: Egress,
    plain_http: Vec<String>,
    /// For one operation and what it takes to be authorised for it.
    deadline: Duration,
}

/// What became of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Written,
    Unchanged,
}

impl Registries {
    /// `plain_http` names hosts (`host[:port]`) spoken to without TLS; loopback always is. Which hosts may be reached, `egress` decides.
    pub fn new(plain_http: Vec<String>, egress: Egress) -> Self {
        Self { egress, plain_http, deadline: DEADLINE }
    }

    /// The same with more patience, for an activity that waits for registries anyway.
    pub fn patient(plain_http: Vec<String>, egress: Egress) -> Self {
        Self { egress, plain_http, deadline: PATIENT_DEADLINE }
    }

    /// Asks the registry at `host` for an image with these credentials.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when there is no such image, or the credentials do not show it; else why it cannot be read.
    pub async fn read(
        &self,
        host: &str,
        image: &BaseImage,
        credential: Option<&Credential>,
    ) -> Result<(), RegistryError> {
        let reference = image.at(host);
        let mut requests = self.requests(host, &reference, "pull", credential);
        let name = || reference.to_string();
        match self.in_time(host, name, requests.has(image.version())).await? {
            true => Ok(()),
            false => Err(RegistryError::NotFound { reference: name() }),
        }
    }

    fn requests<'a>(
        &'a self,
        host: &str,
        reference: &Reference,
        actions: &str,
        credential: Option<&'a Credential>,
    ) -> Requests<'a> {
        Requests::new((&self.egress, self.deadline), self.scheme(host), reference, actions, credential)
    }

    fn scheme(&self, host: &str) -> &'static str {
        let plain = is_loopback(host) || self.plain_http.iter().any(|h| h == host);
        if plain { "http" } else { "https" }
    }

    /// Makes `tag` point at `digest`, whose manifest is in the tag's own repository. A tag already there is success.
    pub async fn tag(&self, tag: &ImageTag, digest: &Digest, auth: &Credentials) -> Result<Written, RegistryError> {
        let host = tag.host();
        let mut requests = self.requests(host, tag.reference(), "pull,push", auth.get(host));
        let now = self.in_time(host, || tag.to_string(), requests.digest(tag.name())).await?;
        if now.as_deref() == Some(digest.as_str()) {
            return Ok(Written::Unchanged);
        }
        let content = self.in_time(host, || tag.pinned(digest), requests.manifest(digest)).await?;
        let media_type = media_type_of(&content);
        self.in_time(host, || tag.to_string(), requests.write(tag.name(), &content, &media_type)).await?;
        Ok(Written::Written)
    }

    async fn in_time<T>(
        &self,
        host: &str,
        reference: impl Fn() -> String,
        request: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, RegistryError> {
        match tokio::time::timeout(self.deadline, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => Err(RegistryError::of(host, reference(), cause)),
            Err(_) => Err(RegistryError::Slow { reference: reference(), waited: self.deadline }),
        }
    }
}

/// A manifest names its own media type; where it does not, an index is told by its list.
fn media_type_of(content: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let default = if value.get("manifests").is_some() { ACCEPTED[1] } else { ACCEPTED[0] };
    value.get("mediaType").and_then(|m| m.as_str()).unwrap_or(default).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Policy;

    #[test]
    fn plain_http_is_a_matter_of_each_host() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let egress = Egress::new(Policy::default(), "kiln-test").unwrap();
        let registries = Registries::new(vec!["plain.example:5000".into()], egress);
        assert_eq!(registries.scheme("plain.example:5000"), "http");
        for host in ["plain.example", "plain.example:5001", "other.plain.example:5000", "127.evil.example"] {
            assert_eq!(registries.scheme(host), "https", "{host}");
        }
    }
}
