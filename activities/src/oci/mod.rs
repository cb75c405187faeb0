//! Registries: what publishing needs of them. Manifests and tags only; layers are pushed by buildkitd.
//!
//! Every request has a deadline shorter than the step it belongs to. An error says which class it is: refused for good, content
//! gone, or worth another try.

mod error;
mod reference;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, manifest};
use reqwest::header::HeaderValue;
use workflows::contract::Digest;

pub use error::RegistryError;
pub use reference::{ImageTag, InvalidTag};

/// The deadline of one request; several fit into publish's local activity.
const REQUEST_DEADLINE: Duration = Duration::from_millis(1500);
/// What a tag may point at.
const ACCEPTED: &[&str] = &[
    manifest::OCI_IMAGE_MEDIA_TYPE,
    manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
    manifest::IMAGE_MANIFEST_MEDIA_TYPE,
    manifest::IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];

/// Credentials by registry host.
pub type Credentials = BTreeMap<String, RegistryAuth>;

/// A client for any number of registries. Cheap to clone.
#[derive(Clone)]
pub struct Registries {
    https: Client,
    http: Client,
    plain_http: Vec<String>,
}

/// What became of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Written,
    Unchanged,
}

impl Registries {
    /// `plain_http` names hosts (`host[:port]`) spoken to without TLS; loopback always is.
    pub fn new(plain_http: Vec<String>) -> Self {
        let client = |protocol| {
            Client::new(ClientConfig {
                protocol,
                connect_timeout: Some(REQUEST_DEADLINE),
                read_timeout: Some(REQUEST_DEADLINE),
                user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            })
        };
        Self { https: client(ClientProtocol::Https), http: client(ClientProtocol::Http), plain_http }
    }

    fn client(&self, host: &str) -> &Client {
        let plain = is_loopback(host) || self.plain_http.iter().any(|h| h == host);
        if plain { &self.http } else { &self.https }
    }

    /// Makes `tag` point at `digest`, whose manifest is in the tag's own repository. A tag already there is success.
    pub async fn tag(&self, tag: &ImageTag, digest: &Digest, auth: &Credentials) -> Result<Written, RegistryError> {
        let auth = auth.get(tag.host()).cloned().unwrap_or(RegistryAuth::Anonymous);
        if self.points_at(tag, &auth).await?.as_deref() == Some(digest.as_str()) {
            return Ok(Written::Unchanged);
        }
        let (content, media_type) = self.manifest(tag, digest, &auth).await?;
        let target = tag.reference();
        let push = self.client(tag.host()).push_manifest_raw(&target, content.to_vec(), media_type);
        deadline(&target, push).await?;
        Ok(Written::Written)
    }

    /// The digest that `tag` points at now, `None` when there is no such tag.
    async fn points_at(&self, tag: &ImageTag, auth: &RegistryAuth) -> Result<Option<String>, RegistryError> {
        let target = tag.reference();
        match deadline(&target, self.client(tag.host()).fetch_manifest_digest(&target, auth)).await {
            Ok(digest) => Ok(Some(digest)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn manifest(
        &self,
        tag: &ImageTag,
        digest: &Digest,
        auth: &RegistryAuth,
    ) -> Result<(Bytes, HeaderValue), RegistryError> {
        let source = tag.by_digest(digest);
        let (content, _) =
            deadline(&source, self.client(tag.host()).pull_manifest_raw(&source, auth, ACCEPTED)).await?;
        let media_type = media_type_of(&content);
        Ok((content, media_type))
    }
}

/// A manifest names its own media type; where it does not, an index is told by its list.
fn media_type_of(content: &[u8]) -> HeaderValue {
    let value: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let default = if value.get("manifests").is_some() { ACCEPTED[1] } else { ACCEPTED[0] };
    let named = value.get("mediaType").and_then(|m| m.as_str()).unwrap_or(default);
    HeaderValue::from_str(named).unwrap_or_else(|_| HeaderValue::from_static(ACCEPTED[0]))
}

/// Loopback registries speak plain HTTP, as with docker.
pub fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || name.starts_with("127.")
}

async fn deadline<T>(
    reference: &Reference,
    request: impl Future<Output = Result<T, oci_client::errors::OciDistributionError>>,
) -> Result<T, RegistryError> {
    match tokio::time::timeout(REQUEST_DEADLINE * 2, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(RegistryError::classify(reference, error)),
        Err(_) => Err(RegistryError::Slow { reference: reference.to_string(), waited: REQUEST_DEADLINE * 2 }),
    }
}
