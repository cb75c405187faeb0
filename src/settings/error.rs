//! Why settings cannot be used. Each names the key, where its value came from, the value, and the rule.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Origin;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the settings file {} is not valid TOML", path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("cannot read the token file {}", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
    /// The merged values do not fit the types although each passed its check.
    #[error("the settings do not fit together")]
    Build(#[source] toml::de::Error),
    /// A default cannot be written as TOML: a mistake in this program.
    #[error("the default settings cannot be listed")]
    Defaults(#[source] toml::ser::Error),
}

/// One value that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    /// As written, `(secret)` for one that is not shown; `None` when the key itself is the problem.
    pub value: Option<String>,
    pub origin: Origin,
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " (from {}): {}", self.origin, self.rule)
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "invalid setting {one}"),
            many => {
                f.write_str("invalid settings:")?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}
