//! Fields by name, each taken once, so that what is left over is what nobody knows.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::SettingsError;

/// The longest duration that a field may give, seconds: a week.
const LONGEST: u64 = 7 * 24 * 3600;

pub struct Fields(BTreeMap<String, String>);

impl Fields {
    pub fn new(fields: BTreeMap<String, String>) -> Self {
        Self(fields)
    }

    /// An empty value counts as not there.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    pub fn required(&mut self, name: &'static str) -> Result<String, SettingsError> {
        self.0.remove(name).ok_or(SettingsError::Missing(name))
    }

    pub fn checked(
        &mut self,
        name: &'static str,
        rule: &'static str,
        fits: fn(&str) -> bool,
    ) -> Result<String, SettingsError> {
        let value = self.required(name)?;
        if fits(&value) { Ok(value) } else { Err(SettingsError::Invalid(name, value, rule)) }
    }

    pub fn parsed<T: FromStr>(&mut self, name: &'static str, rule: &'static str) -> Result<T, SettingsError> {
        let value = self.required(name)?;
        value.parse().map_err(|_| SettingsError::Invalid(name, value, rule))
    }

    /// At least one, separated by commas.
    pub fn list<T: FromStr>(&mut self, name: &'static str, rule: &'static str) -> Result<Vec<T>, SettingsError> {
        let value = self.required(name)?;
        let parsed: Result<_, _> = value.split(',').map(str::parse).collect();
        parsed.map_err(|_| SettingsError::Invalid(name, value, rule))
    }

    pub fn number(&mut self, name: &'static str) -> Result<Option<u64>, SettingsError> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        let parsed = value.parse().map(Some);
        parsed.map_err(|_| SettingsError::Invalid(name, value, "a whole number, 0 or more"))
    }

    pub fn seconds(&mut self, name: &'static str, default: u64) -> Result<Duration, SettingsError> {
        match self.number(name)?.unwrap_or(default) {
            seconds @ ..=LONGEST => Ok(Duration::from_secs(seconds)),
            seconds => Err(SettingsError::Invalid(name, seconds.to_string(), "at most a week of seconds")),
        }
    }

    /// `on` or `off`; off when it is not there.
    pub fn switch(&mut self, name: &'static str) -> Result<bool, SettingsError> {
        match self.optional(name).as_deref() {
            None | Some("off") => Ok(false),
            Some("on") => Ok(true),
            Some(other) => Err(SettingsError::Invalid(name, other.to_owned(), "on or off")),
        }
    }

    /// The names nobody asked for.
    pub fn rest(self) -> Vec<String> {
        self.0.into_keys().collect()
    }
}
