//! What a registry asks for.

use std::fmt;

use age::secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

/// How to log in to one registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Credential {
    /// For basic authentication, or to get a token from the registry's token service.
    Password { username: String, password: Hidden },
    /// An OAuth2 refresh token, exchanged at the registry's token service.
    IdentityToken { identity_token: Hidden },
    /// A bearer token sent to the registry as it is.
    RegistryToken { registry_token: Hidden },
}

/// A text that is not shown: `Debug` hides it, dropping overwrites it, serde keeps it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Hidden(Zeroizing<String>);

impl Hidden {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The value itself; call it only where it is used.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<Hidden> for String {
    fn from(hidden: Hidden) -> String {
        hidden.reveal().to_owned()
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
