//! Sealed credentials where they are used: fetched from object storage, opened, and given to registries and to buildkitd.

use std::io;
use std::path::Path;

use buildkit::{Credentials, Secrets};
use workflows::contract::{BuildError, FailureClass, ProjectId, SecretsRef};

use super::{Credential, Identity, KeyError, OpenError, Sealed, SealedFor, open};
use crate::objects::{ObjectError, ObjectStore};

/// More than a build can need: registry credentials and secrets of half a megabyte each.
const CAP: u64 = 64 << 20;
/// What the daemon calls Docker Hub.
const HUB_HOSTS: &[&str] = &["registry-1.docker.io", "index.docker.io", "docker.io"];

/// Why sealed credentials are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    #[error(
        "the credentials and secrets of this build are gone ({reference}): they are deleted when a build has succeeded with them, or a \
         day after the last one failed. Start it with `kiln up` again, which sends them anew"
    )]
    Gone { reference: SecretsRef },
    #[error("the credentials and secrets of this build cannot be read")]
    Storage(#[source] ObjectError),
    #[error(
        "the credentials and secrets of this build cannot be opened; start it with `kiln up` again, which sends them anew"
    )]
    Open(#[source] OpenError),
}

impl SealedError {
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_transient())
    }

    /// The error as a build tells it.
    pub fn to_build_error(&self) -> BuildError {
        let class = if self.is_transient() { FailureClass::Transient } else { FailureClass::Refused };
        BuildError::new(class, crate::failure::with_source(self))
    }
}

/// Opens what the api has sealed. Only cells and control have the private key.
#[derive(Clone)]
pub struct SealedStore {
    objects: ObjectStore,
    identity: Identity,
}

impl SealedStore {
    /// Reads the fleet's private key.
    pub fn new(objects: ObjectStore, identity_file: &Path) -> Result<Self, KeyError> {
        Ok(Self { objects, identity: Identity::read(identity_file)? })
    }

    pub async fn open(&self, project: &ProjectId, reference: &SecretsRef) -> Result<Sealed, SealedError> {
        let key = format!("p/{project}/sealed/{reference}");
        let sealed = self.objects.get(&key, CAP).await.map_err(SealedError::Storage)?;
        let sealed = sealed.ok_or_else(|| SealedError::Gone { reference: reference.clone() })?;
        let owner = SealedFor { project: project.clone(), reference: reference.clone() };
        open(&self.identity, &owner, &sealed).map_err(SealedError::Open)
    }
}

impl Sealed {
    /// For the requests that publish makes itself.
    pub fn registry_credentials(&self) -> crate::oci::Credentials {
        self.registry_auth.iter().map(|(host, credential)| (host.clone(), revealed(credential))).collect()
    }
}

impl Credentials for Sealed {
    fn credential(&self, host: &str) -> io::Result<Option<buildkit::Credential>> {
        let hub = HUB_HOSTS.contains(&host).then_some("docker.io");
        let credential = self.registry_auth.get(host).or_else(|| self.registry_auth.get(hub?));
        Ok(credential.map(revealed))
    }
}

fn revealed(credential: &Credential) -> buildkit::Credential {
    match credential {
        Credential::Password { username, password } => {
            buildkit::Credential::Basic { username: username.clone(), password: password.reveal().to_owned() }
        }
        Credential::IdentityToken { identity_token } => {
            buildkit::Credential::IdentityToken(identity_token.reveal().to_owned())
        }
        Credential::RegistryToken { registry_token } => {
            buildkit::Credential::BearerToken(registry_token.reveal().to_owned())
        }
    }
}

impl Secrets for Sealed {
    fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.secrets.get(id).map(|secret| secret.reveal().to_vec()))
    }
}
