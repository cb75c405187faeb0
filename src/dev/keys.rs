//! The secrets of a development installation, made once and kept in its data directory.

use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::files;
use crate::settings::Secret;

/// Tokens and keys, as `keys.json` holds them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Keys {
    /// The bearer token of the api.
    pub api_token: Secret,
    pub s3_access_key: String,
    pub s3_secret_key: Secret,
    /// Signs the registry's upload sessions.
    pub registry_secret: Secret,
}

impl Keys {
    /// Those of the directory, made where there are none yet.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let file = data.join("keys.json");
        if let Some(kept) = files::read_json(&file).with_context(|| format!("cannot read {}", file.display()))? {
            return Ok(kept);
        }
        let made = Self {
            api_token: Secret::new(format!("kiln_{}", random_hex::<32>())),
            s3_access_key: random_hex::<10>(),
            s3_secret_key: Secret::new(random_hex::<32>()),
            registry_secret: Secret::new(random_hex::<32>()),
        };
        files::write_json(&file, &made)?;
        Ok(made)
    }
}

/// The key pair that credentials and build secrets are sealed with.
pub struct SealKeys {
    pub recipient: String,
    pub identity_file: PathBuf,
}

impl SealKeys {
    /// That of the directory, made where there is none yet.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let identity_file = data.join("seal.key");
        let identity = match std::fs::read_to_string(&identity_file) {
            Ok(text) => {
                let parsed: Result<Identity, &str> = text.trim().parse();
                parsed.map_err(|why| anyhow::anyhow!("{} holds no age identity: {why}", identity_file.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = Identity::generate();
                files::write(&identity_file, made.to_string().expose_secret().as_bytes())?;
                made
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", identity_file.display())),
        };
        Ok(Self { recipient: identity.to_public().to_string(), identity_file })
    }
}

/// `N` random bytes in hexadecimal.
fn random_hex<const N: usize>() -> String {
    let bytes: [u8; N] = std::array::from_fn(|_| rand::random());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::of(dir.path()).unwrap();
        let second = Keys::of(dir.path()).unwrap();
        assert_eq!(first.api_token, second.api_token);
        assert_eq!(first.s3_access_key, second.s3_access_key);
        let seal = SealKeys::of(dir.path()).unwrap();
        assert!(seal.recipient.starts_with("age1"));
        assert_eq!(SealKeys::of(dir.path()).unwrap().recipient, seal.recipient);
    }
}
