//! Registry credentials and build secrets, sealed to the fleet's key so that object storage and workflows never see them.
//!
//! ```text
//! kiln up ── POST …/secrets ──► api: seal(recipient) ──► object storage, named by a secrets reference
//!                                                              │
//!                                cell and publish: open(identity) ◄── reference in the build's input
//! ```
//!
//! The format is age's (x25519 and ChaCha20-Poly1305) around JSON. Only the api needs the public key and only cells and control
//! need the private one. This module encrypts and decrypts bytes; who stores them, and for how long, is decided elsewhere.
//! Nothing here shows a value: `Debug` hides them, and the memory of a value is overwritten when it is dropped.

mod credential;
mod key;
mod stored;

use std::collections::BTreeMap;
use std::fmt;

use age::secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};
use workflows::contract::{ProjectId, SecretsRef};

pub use credential::{Credential, Hidden};
pub use key::{Identity, KeyError, Recipient};
pub use stored::{SealedError, SealedStore};

/// What a build may need to know and nobody else: by registry host and by secret id.
///
/// As JSON this is the body the api takes: `{"registry_auth": {"host": {…}}, "secrets": {"id": "<base64>"}}`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sealed {
    /// By `host[:port]` as in an image reference; Docker Hub is `docker.io`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registry_auth: BTreeMap<String, Credential>,
    /// By the id a `RUN --mount=type=secret,id=…` names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretBytes>,
}

impl Sealed {
    pub fn is_empty(&self) -> bool {
        self.registry_auth.is_empty() && self.secrets.is_empty()
    }
}

impl fmt::Debug for Sealed {
    /// Hosts and ids only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("registry_auth", &self.registry_auth.keys())
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

/// A build secret's bytes: hidden from `Debug`, overwritten when dropped, base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The value itself; call it only where it is used.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(self.reveal()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
        // The decoder's own error would quote a byte of the value.
        bytes.map(Self::new).map_err(|_| serde::de::Error::custom("a secret must be base64"))
    }
}

/// Whose credentials these are, and under which reference. It is sealed together with them, so that an object that was copied to
/// another project's key, or to another reference, is not opened there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFor {
    pub project: ProjectId,
    pub reference: SecretsRef,
}

/// What is encrypted.
#[derive(Deserialize)]
struct Opened {
    #[serde(rename = "for")]
    owner: SealedFor,
    content: Sealed,
}

#[derive(Serialize)]
struct ToSeal<'a> {
    #[serde(rename = "for")]
    owner: &'a SealedFor,
    content: &'a Sealed,
}

/// Why something could not be sealed.
#[derive(Debug, thiserror::Error)]
#[error("cannot seal credentials to the fleet's key")]
pub struct SealError(#[source] SealSource);

#[derive(Debug, thiserror::Error)]
enum SealSource {
    #[error(transparent)]
    Encode(serde_json::Error),
    #[error(transparent)]
    Encrypt(age::EncryptError),
}

/// Why something sealed could not be opened. Says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Altered, cut short, or sealed to another fleet's key.
    #[error("cannot open sealed credentials: they are damaged or were sealed to another key")]
    Decrypt(#[source] age::DecryptError),
    /// Sealed by another version: a newer one, or one that did not seal the owner with them.
    #[error("sealed credentials have a content this version does not know")]
    Content,
    /// Sealed for another project or under another reference.
    #[error("sealed credentials belong to another project or reference")]
    Foreign,
}

/// Seals to the fleet's public key. Two calls never give the same bytes.
pub fn seal(recipient: &Recipient, owner: &SealedFor, content: &Sealed) -> Result<Vec<u8>, SealError> {
    let plain = serde_json::to_vec(&ToSeal { owner, content });
    let plain = plain.map(Zeroizing::new).map_err(|e| SealError(SealSource::Encode(e)))?;
    age::encrypt(&recipient.0, &plain).map_err(|e| SealError(SealSource::Encrypt(e)))
}

/// Opens with the fleet's private key what was sealed for this project and reference.
pub fn open(identity: &Identity, owner: &SealedFor, sealed: &[u8]) -> Result<Sealed, OpenError> {
    let plain = age::decrypt(&identity.0, sealed).map(Zeroizing::new).map_err(OpenError::Decrypt)?;
    // serde's error would quote the content.
    let opened: Opened = serde_json::from_slice(&plain).map_err(|_| OpenError::Content)?;
    if opened.owner == *owner { Ok(opened.content) } else { Err(OpenError::Foreign) }
}

#[cfg(test)]
mod tests;
