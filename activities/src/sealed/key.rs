//! The fleet's key pair.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use age::secrecy::zeroize::Zeroizing;

/// The public key, `age1…`: whoever has it can seal.
#[derive(Clone)]
pub struct Recipient(pub(super) age::x25519::Recipient);

/// The private key, `AGE-SECRET-KEY-1…`: whoever has it can open.
#[derive(Clone)]
pub struct Identity(pub(super) age::x25519::Identity);

/// Why there is no usable key. Never quotes a private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{text:?} is not a public key: it must be an age x25519 recipient (age1…)")]
    Recipient { text: String },
    #[error("{} holds no private key: one line must be an age x25519 identity (AGE-SECRET-KEY-1…)", path.display())]
    Identity { path: PathBuf },
    #[error("cannot read the private key {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the private key {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self).map_err(|_| KeyError::Recipient { text: text.to_owned() })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity of {}", self.recipient())
    }
}

impl Identity {
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// The public key that goes with it.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// Reads the first key of an age identity file: empty lines and lines starting with `#` are skipped.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let read = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = read.map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let key = lines.next().and_then(|line| line.parse().ok());
        key.map(Self).ok_or_else(|| KeyError::Identity { path: path.to_owned() })
    }

    /// Writes a new identity file, readable by its owner only. An existing file is an error: sealed content may need its key.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            writeln!(file, "# public key: {}", self.recipient())?;
            writeln!(file, "{}", self.0.to_string().expose_secret())?;
            file.sync_all()
        };
        write().map_err(|source| KeyError::Write { path: path.to_owned(), source })
    }
}
