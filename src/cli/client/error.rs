//! Why the api did not do what was asked.

use std::error::Error;

use activities::trust::TrustError;
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;
use workflows::contract::FailureClass;

use super::is_passing;
use crate::cli::Failure;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("it is not known where the api is: api.url is empty")]
    NoAddress,
    #[error("tls.ca cannot be used")]
    Trust(#[from] TrustError),
    #[error("no HTTP client can be made")]
    Setup(#[source] reqwest::Error),
    #[error("cannot reach the api at {url}: {why}")]
    Unreachable { url: Url, why: String },
    /// The api's own words.
    #[error("{message}")]
    Answered { status: StatusCode, class: FailureClass, message: String },
    #[error("the api at {url} wants a token: {}", if *.none_sent { "none is set" } else { "the one that is set is not valid" })]
    Token { url: Url, none_sent: bool },
    #[error("{url} does not answer as kiln api does: {what}")]
    Unreadable { url: Url, what: String },
}

#[derive(Deserialize)]
struct Body {
    error: Detail,
}

#[derive(Deserialize)]
struct Detail {
    class: FailureClass,
    message: String,
}

impl ClientError {
    pub fn unreachable(url: &Url, source: &(dyn Error + 'static)) -> Self {
        Self::Unreachable { url: url.clone(), why: innermost(source) }
    }

    pub(super) fn answered(url: &Url, status: StatusCode, body: &[u8], none_sent: bool) -> Self {
        if status == StatusCode::UNAUTHORIZED {
            return Self::Token { url: url.clone(), none_sent };
        }
        match serde_json::from_slice::<Body>(body) {
            Ok(Body { error }) => Self::Answered { status, class: error.class, message: error.message },
            Err(_) if is_passing(status) => Self::Answered {
                status,
                class: FailureClass::Transient,
                message: format!("the api at {url} answered {status}"),
            },
            Err(_) => Self::Unreadable { url: url.clone(), what: format!("it answered {status}") },
        }
    }

    pub fn class(&self) -> FailureClass {
        match self {
            Self::NoAddress | Self::Trust(_) => FailureClass::Usage,
            Self::Token { .. } => FailureClass::Refused,
            Self::Answered { class, .. } => *class,
            Self::Setup(_) | Self::Unreachable { .. } | Self::Unreadable { .. } => FailureClass::Transient,
        }
    }

    /// Whether what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status: StatusCode::NOT_FOUND, .. })
    }

    /// Whether asking again later may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Answered { status, .. } => is_passing(*status),
            Self::NoAddress | Self::Trust(_) | Self::Setup(_) | Self::Token { .. } | Self::Unreadable { .. } => false,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::Unreachable { .. } => {
                "start one with `kiln dev`, or name another one with --api or KILN_API_URL"
            }
            ClientError::Token { .. } => "store one with `kiln login`, or set --token-file or KILN_API_TOKEN",
            ClientError::NoAddress => "set --api or KILN_API_URL",
            ClientError::Unreadable { .. } => "name the address of an api with --api or KILN_API_URL",
            ClientError::Trust(_) | ClientError::Setup(_) | ClientError::Answered { .. } => "",
        };
        let failure = Failure::new(error.class(), crate::cli::failure::chain(&error));
        if hint.is_empty() { failure } else { failure.hint(hint) }
    }
}

/// The cause under a request's error, which says what happened: `Connection refused`.
fn innermost(error: &(dyn Error + 'static)) -> String {
    if error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
        return "no answer in time".into();
    }
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
