//! The tokens of `kiln login`: one for each api, in a file of the user's that nobody else can read.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Secret;

/// Tokens by the address of their api.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Logins {
    #[serde(default)]
    tokens: BTreeMap<String, Secret>,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} does not hold tokens of kiln login", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Logins {
    /// Where this user's are: `$XDG_CONFIG_HOME/kiln/logins.json`, or below `~/.config`.
    pub fn usual_file() -> Option<PathBuf> {
        Some(super::resolve::user_config()?.join("kiln/logins.json"))
    }

    /// Reads a file; one that is not there holds none.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, LoginError> {
        match std::fs::read(path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| LoginError::Parse { path: path.to_owned(), source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(LoginError::Read { path: path.to_owned(), source }),
        }
    }

    /// Writes the file with mode 0600, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LoginError> {
        let write = || -> io::Result<()> {
            let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            // Temporary files are made with mode 0600.
            let mut new = tempfile::NamedTempFile::new_in(directory)?;
            new.write_all(&serde_json::to_vec_pretty(self)?)?;
            new.persist(path)?;
            Ok(())
        };
        write().map_err(|source| LoginError::Write { path: path.to_owned(), source })
    }

    /// The token for the api at `url`.
    pub fn token(&self, url: &str) -> Option<&Secret> {
        self.tokens.get(key(url))
    }

    pub fn set(&mut self, url: &str, token: Secret) {
        self.tokens.insert(key(url).to_owned(), token);
    }

    /// Whether there was one.
    pub fn remove(&mut self, url: &str) -> bool {
        self.tokens.remove(key(url)).is_some()
    }
}

fn key(url: &str) -> &str {
    url.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_kept_for_its_address_and_read_by_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/logins.json");
        let mut logins = Logins::read(&path).unwrap();
        assert!(logins.token("https://kiln.example").is_none());
        logins.set("https://kiln.example/", Secret::new("one"));
        logins.set("https://other.example", Secret::new("two"));
        logins.write(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut again = Logins::read(&path).unwrap();
        assert_eq!(again.token("https://kiln.example").unwrap().reveal(), "one");
        assert!(again.remove("https://kiln.example") && !again.remove("https://kiln.example"));
        assert_eq!(again.token("https://other.example/").unwrap().reveal(), "two");
        std::fs::write(&path, "tokens").unwrap();
        assert!(matches!(Logins::read(&path), Err(LoginError::Parse { .. })));
    }
}
