//! What is known of registries' credentials, and by whom.

use std::{fmt, io};

/// Who knows the credentials of registries. Called on a thread that may block, each time the daemon needs them.
pub trait Credentials: Send + Sync + 'static {
    /// The credential for a registry, by the `host[:port]` the daemon talks to (`registry-1.docker.io` for Docker Hub);
    /// `None` to go without.
    ///
    /// # Errors
    /// When it cannot be told: the build fails.
    fn credential(&self, host: &str) -> io::Result<Option<Credential>>;
}

/// How to authenticate at a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password, or user name and access token.
    Basic { username: String, password: String },
    /// A refresh token of the registry's token server, as `docker login` stores it.
    IdentityToken(String),
    /// A bearer token to be used as it is.
    BearerToken(String),
}

/// Shows the kind only.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic { .. }",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::BearerToken(_) => "BearerToken(..)",
        })
    }
}

impl Credential {
    /// User name and secret as the daemon's `Credentials` call and the token protocol take them.
    pub(super) fn parts(&self) -> (&str, &str) {
        match self {
            Self::Basic { username, password } => (username, password),
            Self::IdentityToken(token) | Self::BearerToken(token) => ("", token),
        }
    }
}

/// No credentials at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn credential(&self, _host: &str) -> io::Result<Option<Credential>> {
        Ok(None)
    }
}
