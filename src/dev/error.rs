//! Why `kiln dev` ends without having been asked to.

use workflows::contract::FailureClass;

/// Both messages are whole sentences for the person at the terminal, causes included.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Nothing was started: a prerequisite is missing, or the data directory is in use.
    #[error("{0:#}")]
    Refused(anyhow::Error),
    /// What was started did not come up; it is ended again.
    #[error("{0:#}")]
    NotUp(anyhow::Error),
}

impl DevError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Refused(_) => FailureClass::Refused,
            Self::NotUp(_) => FailureClass::Transient,
        }
    }
}
