//! What a registry answered, by what follows from it.

use std::time::Duration;

use workflows::contract::{BuildError, FailureClass};

use crate::egress::EgressError;
use crate::failure::with_source;

/// `Display` names the reference and what to do; the source has the registry's own words.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{reference} is not in the registry")]
    NotFound { reference: String },
    #[error(
        "registry {host} refused access to {reference}; log in with `docker login {host}`, as somebody who may push there, and \
         start the build again"
    )]
    Denied { host: String, reference: String, source: Cause },
    #[error("the registry does not accept {reference}")]
    Rejected { reference: String, source: Cause },
    #[error("the registry did not answer for {reference} within {} ms", waited.as_millis())]
    Slow { reference: String, waited: Duration },
    #[error("the registry could not serve {reference}")]
    Unavailable { reference: String, source: Cause },
}

/// What went wrong with a request, as it is. Shows neither credential nor token.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("it answered {status}{}{words}", if .words.is_empty() { "" } else { ": " })]
    Answer {
        status: u16,
        words: String,
        /// How long it asks to be left alone.
        wait: Option<Duration>,
    },
    #[error(transparent)]
    Request(EgressError),
    #[error(transparent)]
    Token(buildkit::TokenError),
    #[error("its manifest has digest {actual}")]
    Altered { actual: String },
    #[error("its manifest's media type cannot be sent")]
    MediaType,
    #[error("its name makes no URL")]
    Url(#[source] url::ParseError),
}

impl RegistryError {
    pub(super) fn of(host: &str, reference: String, source: Cause) -> Self {
        let host = host.to_owned();
        let (status, by_token_server) = match &source {
            Cause::Answer { status, .. } => (Some(*status), false),
            Cause::Token(error) if error.is_refusal() => return Self::Rejected { reference, source },
            Cause::Token(error) => (error.status(), true),
            Cause::Request(error) if error.is_final() => return Self::Rejected { reference, source },
            Cause::Request(_) | Cause::Altered { .. } => (None, false),
            Cause::MediaType | Cause::Url(_) => return Self::Rejected { reference, source },
        };
        match status {
            Some(401 | 403) => Self::Denied { host, reference, source },
            // What OAuth2 says of a token that is no longer valid.
            Some(400) if by_token_server => Self::Denied { host, reference, source },
            Some(404) if !by_token_server => Self::NotFound { reference },
            None | Some(408 | 429 | 500..) => Self::Unavailable { reference, source },
            Some(_) => Self::Rejected { reference, source },
        }
    }

    /// Whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Slow { .. } | Self::Unavailable { .. })
    }

    /// How long the registry asks to be left alone.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { source: Cause::Answer { wait, .. }, .. } => *wait,
            _ => None,
        }
    }

    /// The error as a build tells it, with the registry's own words.
    pub fn to_build_error(&self) -> BuildError {
        let class = if self.is_transient() { FailureClass::Transient } else { FailureClass::UserError };
        BuildError::new(class, with_source(self))
    }
}
