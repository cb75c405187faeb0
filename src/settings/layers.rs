//! Values by key, each with the place it came from. A later layer replaces what an earlier one set, key by key.
//!
//! The default of a key gives its type; a value of another type is a problem that names its origin, and all problems are kept so
//! that one start shows them all.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::Problem;
use super::{Settings, SettingsError};

/// Keys whose values are never shown.
const SECRETS: &[&str] = &["api.token", "s3.secret_key", "store.url"];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// `TEMPORAL_*` variables or a profile of `temporal.toml`.
    Temporal,
    /// The ready file of a `kiln dev` on this machine.
    Dev(PathBuf),
    /// The file of `kiln login`.
    Login(PathBuf),
    File(PathBuf),
    /// The variable's name.
    Variable(String),
    /// The flag as written, without its value.
    Flag(String),
}

impl Origin {
    /// The higher, the later the layer.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Temporal | Self::Dev(_) | Self::Login(_) => 1,
            Self::File(_) => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Temporal => f.write_str("Temporal's client configuration"),
            Self::Dev(path) => write!(f, "kiln dev, {}", path.display()),
            Self::Login(path) => write!(f, "kiln login, {}", path.display()),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What holds after some layers.
pub struct Layers {
    entries: BTreeMap<String, (Value, Origin)>,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    /// The first layer; its keys are the ones there are.
    pub fn defaults() -> Result<Self, SettingsError> {
        Self::of(&Settings::default())
    }

    fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let table = Table::try_from(settings).map_err(SettingsError::Defaults)?;
        let entries = flatten(table).into_iter().map(|(key, value)| (key, (value, Origin::Default))).collect();
        Ok(Self { entries, problems: Vec::new() })
    }

    /// Adds what a settings file sets.
    pub fn add_file(&mut self, path: &Path, table: Table) {
        let origin = Origin::File(path.to_owned());
        for (key, value) in flatten(table) {
            match self.entries.get_mut(&key) {
                Some(entry) if same_type(&entry.0, &value) => *entry = (value, origin.clone()),
                Some(entry) => {
                    let rule = format!("must be {}", type_name(&entry.0));
                    self.problem(&key, Some(&value), origin.clone(), rule);
                }
                None => {
                    let rule = self.known_near(&key);
                    self.problem(&key, None, origin.clone(), rule);
                }
            }
        }
    }

    /// Adds variables. An empty one counts as not set; one that names no key is not an error, other programs have theirs.
    pub fn add_variables(&mut self, lookup: impl Fn(&str) -> Option<String>) {
        let keys: Vec<String> = self.entries.keys().cloned().collect();
        for key in keys {
            let name = variable_of(&key);
            if let Some(text) = lookup(&name).filter(|text| !text.is_empty()) {
                self.add_text(&key, &text, Origin::Variable(name));
            }
        }
    }

    /// Adds one value given as text: a list is separated by commas.
    pub fn add_text(&mut self, key: &str, text: &str, origin: Origin) {
        let Some((current, _)) = self.entries.get(key) else {
            let rule = self.known_near(key);
            return self.problem(key, None, origin, rule);
        };
        match parse_as(current, text) {
            Some(value) => drop(self.entries.insert(key.to_owned(), (value, origin))),
            None => {
                let rule = format!("must be {}", type_name(current));
                self.problem(key, Some(&Value::String(text.to_owned())), origin, rule);
            }
        }
    }

    /// Other settings, with the values that came by flag over them.
    pub(super) fn flags_over(&self, settings: &Settings) -> Result<Self, SettingsError> {
        let mut layers = Self::of(settings)?;
        let by_flag = self.entries.iter().filter(|(_, (_, origin))| matches!(origin, Origin::Flag(_)));
        layers.entries.extend(by_flag.map(|(key, entry)| (key.clone(), entry.clone())));
        Ok(layers)
    }

    /// The value of a key whose value is a text.
    pub(super) fn text(&self, key: &str) -> &str {
        self.entries.get(key).and_then(|(value, _)| value.as_str()).unwrap_or_default()
    }

    pub fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// Whether the key has a value that is not the empty text or list.
    pub fn is_set(&self, key: &str) -> bool {
        let empty = |value: &Value| value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
        self.entries.get(key).is_some_and(|(value, _)| !empty(value))
    }

    /// All keys in order, with values safe to show, and origins.
    pub fn shown(&self) -> impl Iterator<Item = (&str, Value, &Origin)> {
        self.entries.iter().map(|(key, (value, origin))| (key.as_str(), shown(key, value), origin))
    }

    /// Notes that a key's value breaks a rule.
    pub(super) fn broken(&mut self, key: &str, rule: String) {
        let value = self.entries.get(key).map(|(value, _)| value.clone());
        self.problem(key, value.as_ref(), self.origin(key), rule);
    }

    /// The typed settings, without looking at rules.
    pub(super) fn build(&self) -> Result<Settings, SettingsError> {
        let mut table = Table::new();
        for (key, (value, _)) in &self.entries {
            insert(&mut table, key, value.clone());
        }
        Value::Table(table).try_into().map_err(SettingsError::Build)
    }

    fn problem(&mut self, key: &str, value: Option<&Value>, origin: Origin, rule: String) {
        let value = value.map(|value| shown(key, value).to_string());
        self.problems.push(Problem { key: key.to_owned(), value, origin, rule });
    }

    /// What to write instead of an unknown key.
    fn known_near(&self, key: &str) -> String {
        let sections = std::iter::successors(key.rsplit_once('.'), |(section, _)| section.rsplit_once('.'));
        for (section, _) in sections {
            let prefix = format!("{section}.");
            let inside = self.entries.keys().filter_map(|known| known.strip_prefix(&prefix)?.split('.').next());
            let mut inside: Vec<&str> = inside.collect();
            inside.dedup();
            if !inside.is_empty() {
                return format!("there is no such setting; [{section}] has {}", inside.join(", "));
            }
        }
        let mut sections: Vec<&str> = self.entries.keys().filter_map(|known| known.split('.').next()).collect();
        sections.dedup();
        format!("there is no such setting; the sections are {}", sections.join(", "))
    }
}

/// The variable that sets a key: `cell.file_cache_cap` is `KILN_CELL_FILE_CACHE_CAP`.
pub fn variable_of(key: &str) -> String {
    format!("KILN_{}", key.to_uppercase().replace('.', "_"))
}

/// Values by key, those of sections within sections too.
fn flatten(table: Table) -> Vec<(String, Value)> {
    let within = |(name, value)| match value {
        Value::Table(inner) => {
            flatten(inner).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect()
        }
        value => vec![(name, value)],
    };
    table.into_iter().flat_map(within).collect()
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn parse_as(like: &Value, text: &str) -> Option<Value> {
    match like {
        Value::Integer(_) => text.parse().ok().filter(|number| *number >= 0).map(Value::Integer),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Some(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
        }
        _ => Some(Value::String(text.to_owned())),
    }
}

/// Whether a value can stand where `like` stands. Whole numbers are never negative, lists hold texts.
fn same_type(like: &Value, value: &Value) -> bool {
    match (like, value) {
        (Value::Integer(_), Value::Integer(number)) => *number >= 0,
        (Value::Array(_), Value::Array(items)) => items.iter().all(Value::is_str),
        _ => like.same_type(value),
    }
}

fn type_name(like: &Value) -> &'static str {
    match like {
        Value::Integer(_) => "a whole number, 0 or more",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a section",
        _ => "a text",
    }
}

fn shown(key: &str, value: &Value) -> Value {
    let hidden = SECRETS.contains(&key) && value.as_str() != Some("");
    if hidden { Value::String("(secret)".into()) } else { value.clone() }
}
