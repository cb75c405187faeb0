//! Bounds of the contract's numbers, checked while a payload is decoded.
//!
//! A payload comes from any Temporal client, a cell or a command line. What decodes can be added, doubled and stored as a signed 64-bit
//! number without overflow, so that no other code has to check it again. `docs/contract.md` lists the bounds.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};

/// The highest count, size in bytes or epoch: what SQL databases store.
pub const COUNT_MAX: u64 = i64::MAX as u64;
/// The latest time, milliseconds since 1970: the end of the year 9999, the last one of RFC 3339.
pub const TIME_MAX_MS: u64 = 253_402_300_799_999;
/// The longest duration in milliseconds: 30 days.
pub const DURATION_MAX_MS: u64 = 30 * 24 * 3_600_000;
/// The most slots of a cell.
pub const SLOTS_MAX: u64 = 1024;

/// The time limit of one attempt: one second to one day.
pub type AttemptTimeout = Seconds<1, 86_400>;
/// How long a build waits to be picked up: one second to one day. Zero would be no limit at all for Temporal.
pub type QueuePatience = Seconds<1, 86_400>;

/// A number of seconds from `MIN` to `MAX`. In JSON and on command lines a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Seconds<const MIN: u64, const MAX: u64>(u64);

/// A number outside of its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {min} to {max} seconds")]
pub struct OutOfBounds {
    pub min: u64,
    pub max: u64,
}

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    /// # Errors
    /// When `seconds` is below `MIN` or above `MAX`.
    pub fn new(seconds: u64) -> Result<Self, OutOfBounds> {
        match (MIN..=MAX).contains(&seconds) {
            true => Ok(Self(seconds)),
            false => Err(OutOfBounds { min: MIN, max: MAX }),
        }
    }

    pub fn as_secs(self) -> u64 {
        self.0
    }

    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<u64> for Seconds<MIN, MAX> {
    type Error = OutOfBounds;
    fn try_from(seconds: u64) -> Result<Self, OutOfBounds> {
        Self::new(seconds)
    }
}

impl<const MIN: u64, const MAX: u64> From<Seconds<MIN, MAX>> for u64 {
    fn from(seconds: Seconds<MIN, MAX>) -> u64 {
        seconds.0
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Seconds<MIN, MAX> {
    type Err = OutOfBounds;
    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        text.parse().map_err(|_| OutOfBounds { min: MIN, max: MAX }).and_then(Self::new)
    }
}

impl<const MIN: u64, const MAX: u64> fmt::Display for Seconds<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MIN: u64, const MAX: u64> utoipa::PartialSchema for Seconds<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(MIN))
            .maximum(Some(MAX))
            .into()
    }
}

impl<const MIN: u64, const MAX: u64> utoipa::ToSchema for Seconds<MIN, MAX> {
    fn name() -> Cow<'static, str> {
        format!("Seconds{MIN}To{MAX}").into()
    }
}

/// Decodes a number that must be from `MIN` to `MAX`; for `#[serde(deserialize_with = …)]`.
pub(crate) fn within<'de, D, T, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Copy,
    i128: From<T>,
{
    let number = T::deserialize(deserializer)?;
    check::<D::Error, MIN, MAX>(number.into())?;
    Ok(number)
}

/// As [`within`], for a number that may be absent or null.
pub(crate) fn maybe_within<'de, D, T, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Copy,
    i128: From<T>,
{
    let number = Option::<T>::deserialize(deserializer)?;
    if let Some(number) = number {
        check::<D::Error, MIN, MAX>(number.into())?;
    }
    Ok(number)
}

fn check<E: serde::de::Error, const MIN: u64, const MAX: u64>(number: i128) -> Result<(), E> {
    if (i128::from(MIN)..=i128::from(MAX)).contains(&number) {
        return Ok(());
    }
    let unexpected =
        u64::try_from(number).map_or_else(|_| Unexpected::Other("a negative number"), Unexpected::Unsigned);
    Err(E::invalid_value(unexpected, &format!("a number from {MIN} to {MAX}").as_str()))
}
