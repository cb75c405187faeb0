//! What a registry answered, by what follows from it.

use std::time::Duration;

use oci_client::Reference;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use workflows::contract::{BuildError, FailureClass};

use crate::failure::with_source;

/// `Display` names the reference and what to do; the source has the registry's own words.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{reference} is not in the registry")]
    NotFound { reference: String },
    #[error("the registry refused access to {reference}; check the credentials for its host and that they may push")]
    Denied { reference: String, source: OciDistributionError },
    #[error("the registry does not accept {reference}")]
    Rejected { reference: String, source: OciDistributionError },
    #[error("the registry did not answer for {reference} within {} ms", waited.as_millis())]
    Slow { reference: String, waited: Duration },
    #[error("the registry could not serve {reference}")]
    Unavailable { reference: String, source: OciDistributionError },
}

impl RegistryError {
    pub(super) fn classify(reference: &Reference, error: OciDistributionError) -> Self {
        let reference = reference.to_string();
        match status_of(&error) {
            Status::NotFound => Self::NotFound { reference },
            Status::Denied => Self::Denied { reference, source: error },
            Status::Rejected => Self::Rejected { reference, source: error },
            Status::Unavailable => Self::Unavailable { reference, source: error },
        }
    }

    /// Whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Slow { .. } | Self::Unavailable { .. })
    }

    /// The error as a build tells it, with the registry's own words.
    pub fn to_build_error(&self) -> BuildError {
        let class = if self.is_transient() { FailureClass::Transient } else { FailureClass::UserError };
        BuildError::new(class, with_source(self))
    }
}

enum Status {
    NotFound,
    Denied,
    Rejected,
    Unavailable,
}

fn status_of(error: &OciDistributionError) -> Status {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => Status::NotFound,
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            Status::Denied
        }
        OciDistributionError::ServerError { code, .. } => of_code(*code),
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.first().map_or(Status::Unavailable, |first| of_oci_code(&first.code))
        }
        OciDistributionError::RequestError(error) => {
            error.status().map_or(Status::Unavailable, |s| of_code(s.as_u16()))
        }
        _ => Status::Unavailable,
    }
}

fn of_code(code: u16) -> Status {
    match code {
        404 => Status::NotFound,
        401 | 403 => Status::Denied,
        429 | 500.. => Status::Unavailable,
        _ => Status::Rejected,
    }
}

fn of_oci_code(code: &OciErrorCode) -> Status {
    match code {
        OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::BlobUnknown
        | OciErrorCode::ManifestBlobUnknown
        | OciErrorCode::NotFound => Status::NotFound,
        OciErrorCode::Unauthorized | OciErrorCode::Denied => Status::Denied,
        OciErrorCode::Toomanyrequests => Status::Unavailable,
        _ => Status::Rejected,
    }
}
