//! The images that a build takes things from, and whether its project may read them.
//!
//! buildkitd gives whatever it has pulled, for any project, to a build that names it by digest. So a solve may take images only
//! from repositories whose registry has just answered for one with the build's own credentials:
//!
//! ```text
//! Dockerfile ─► images it names ─► registry, with the build's credentials ─► allowed ─► solve
//!                                                   ▲                                      │
//!                                                   └── denied: an image that was not ◄────┘
//!                                                       looked up, or could not be read
//! ```
//!
//! The second way round is for what cannot be read off the Dockerfile: `ONBUILD` of a base, a name from a computed argument.
//! Only a solve that needs an image fails for it; an unreadable base of a stage that is not built does no harm.

use std::collections::BTreeSet;

use buildkit::Frontend;
use buildkit::dockerfile::base_images;
use futures::future::join_all;
use workflows::contract::{AttemptInput, BuildError, FailureClass};

use super::{BuilderSettings, causes};
use crate::failure::with_source;
use crate::oci::{BaseImage, Credentials, Registries, RegistryError};

/// The most images of one build that are looked up.
const IMAGES: usize = 128;
/// Docker Hub, as image references call it.
const HUB: &str = "docker.io";

/// Which repositories a build may take images from.
pub(super) struct Bases<'a> {
    registries: &'a Registries,
    settings: &'a BuilderSettings,
    attempt: &'a AttemptInput,
    auth: Credentials,
    /// `host/path`.
    allowed: BTreeSet<String>,
    looked_up: usize,
}

impl<'a> Bases<'a> {
    /// Nothing is allowed yet but the frontend, whose image the operator chose.
    pub(super) fn new(
        registries: &'a Registries,
        settings: &'a BuilderSettings,
        attempt: &'a AttemptInput,
        auth: Credentials,
        frontend: &Frontend,
    ) -> Self {
        let frontend = match frontend {
            Frontend::Image { reference } => reference.parse().ok().as_ref().map(repository),
            Frontend::BuiltIn | Frontend::Dockerfile => None,
        };
        Self { registries, settings, attempt, auth, allowed: frontend.into_iter().collect(), looked_up: 0 }
    }

    /// Looks up what the Dockerfile names. What cannot be read is not allowed, and told when the build turns out to need it.
    pub(super) async fn look_up_all(&mut self, dockerfile: &[u8]) {
        let named = base_images(&String::from_utf8_lossy(dockerfile), &self.attempt.input.args);
        let images: Vec<BaseImage> = named.iter().filter_map(|text| text.parse().ok()).take(IMAGES).collect();
        self.looked_up += images.len();
        let read = join_all(images.iter().map(|image| self.read(image))).await;
        let readable = images.iter().zip(read).filter(|(_, read)| read.is_ok());
        self.allowed.extend(readable.map(|(image, _)| repository(image)));
    }

    /// Looks up an image that a solve was denied, so that the next one may have it.
    ///
    /// # Errors
    /// Why the project may not have it.
    pub(super) async fn look_up(&mut self, image: &str) -> Result<(), BuildError> {
        let unusable = |why: String| BuildError::new(FailureClass::UserError, format!("base image {image}: {why}"));
        let base: BaseImage = image.parse().map_err(|error: crate::oci::InvalidTag| unusable(error.why))?;
        self.looked_up += 1;
        if self.looked_up > IMAGES * 2 || self.allowed.contains(&repository(&base)) {
            return Err(unusable(format!("buildkitd denied it; at most {IMAGES} images can be used")));
        }
        self.read(&base).await?;
        self.allowed.insert(repository(&base));
        Ok(())
    }

    pub(super) fn allowed(&self) -> impl Iterator<Item = &str> {
        self.allowed.iter().map(String::as_str)
    }

    /// Asks where buildkitd would ask: a mirror first for images of Docker Hub, then the registry itself.
    async fn read(&self, image: &BaseImage) -> Result<(), BuildError> {
        let (host, path) = image.parts();
        self.may_read(host, path)?;
        let mirror = self.settings.mirror.as_str();
        if host == HUB && !mirror.is_empty() && self.may_read(mirror, path).is_ok() {
            let at_mirror = self.registries.read(mirror, image, self.auth.get(mirror)).await;
            let Err(missing) = at_mirror else { return Ok(()) };
            // What the mirror says of an image counts where Docker Hub itself cannot be reached.
            return match self.registries.read(host, image, self.auth.get(host)).await {
                Err(error) if error.is_transient() && !missing.is_transient() => Err(told(host, image, &missing)),
                ended => ended.map_err(|error| told(host, image, &error)),
            };
        }
        self.registries.read(host, image, self.auth.get(host)).await.map_err(|error| told(host, image, &error))
    }

    fn may_read(&self, host: &str, path: &str) -> Result<(), BuildError> {
        let (project, patterns) = (&self.attempt.input.project, &self.attempt.repositories);
        let allowed = self.settings.repositories.may_read(project, patterns, (host, path));
        allowed.map_err(|error| BuildError::new(FailureClass::Refused, error.to_string()))
    }
}

/// `host/path`, as buildkitd spells it.
fn repository(image: &BaseImage) -> String {
    let (host, path) = image.parts();
    format!("{host}/{path}")
}

/// A registry's answer as the build tells it, with what to do about it.
fn told(host: &str, image: &BaseImage, error: &RegistryError) -> BuildError {
    let message = match error {
        RegistryError::NotFound { .. } => format!(
            "registry {host} has no image {image}: check the name; some registries also say so to those who are not logged in"
        ),
        RegistryError::Denied { source, .. } => format!(
            "registry {host} refused to let this build read {image} ({source}): log in with `docker login {host}` and start the \
             build again"
        ),
        other => format!("base image {image}: {}", causes::named(with_source(other))),
    };
    let class = if error.is_transient() { FailureClass::Transient } else { FailureClass::UserError };
    BuildError::new(class, message)
}
