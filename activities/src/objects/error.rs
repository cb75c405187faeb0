//! What can go wrong with an object.

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An operation on an object that did not succeed. `Display` names the key and what was wrong with it, never a URL.
#[derive(Debug, thiserror::Error)]
#[error("object {key}: {problem}")]
pub struct ObjectError {
    pub key: String,
    pub problem: Problem,
    /// Without a URL, which may carry a signature.
    #[source]
    pub source: Option<BoxError>,
}

/// What was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the storage settings are unusable: {0}")]
    Settings(String),
    #[error("not found")]
    NotFound,
    /// Storage could not be reached, or the connection broke, until patience ran out.
    #[error("storage is not reachable after {attempts} tries")]
    Unreachable { attempts: u32 },
    /// Storage answered, for example 503 `SlowDown`, until patience ran out.
    #[error("storage answered {status} {code} after {attempts} tries")]
    Busy { status: u16, code: String, attempts: u32 },
    /// An answer that trying again does not change, for example 403 `AccessDenied`.
    #[error("storage answered {status} {code}")]
    Refused { status: u16, code: String },
    #[error("is {actual} bytes long, expected {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("has digest {actual}, expected {expected}")]
    Digest { expected: String, actual: String },
    #[error("there are no credentials for storage")]
    NoCredentials,
}

impl ObjectError {
    pub fn new(key: &str, problem: Problem) -> Self {
        Self { key: key.to_owned(), problem, source: None }
    }

    /// Whether storage answers, but not with what was stored: no other try helps, another upload does.
    pub fn is_damage(&self) -> bool {
        matches!(self.problem, Problem::NotFound | Problem::Size { .. } | Problem::Digest { .. })
    }

    /// Whether the same operation may succeed later: storage was busy or away.
    pub fn is_transient(&self) -> bool {
        matches!(self.problem, Problem::Unreachable { .. } | Problem::Busy { .. } | Problem::NoCredentials)
    }
}
