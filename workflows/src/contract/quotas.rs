//! What a project may use at most.

use serde::{Deserialize, Serialize};

use super::bounds;

/// The most tags of a build, whatever its project's quota says.
pub const TAGS_MAX: u32 = 100;

/// A project's quotas. What is absent has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Quotas {
    /// How many builds may be started or joined in one minute; 1 or more. More are answered 429.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 1, { u32::MAX as u64 }>"
    )]
    pub builds_per_minute: Option<u32>,
    /// How many builds may be open at once, those that wait included; 1 or more. More are answered 429.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 1, { u32::MAX as u64 }>"
    )]
    pub open_builds: Option<u32>,
    /// How many tags a build may have, 1 to 100. A build with more is refused.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bounds::maybe_within::<_, _, 1, 100>")]
    pub tags_per_build: Option<u32>,
    /// How many bytes of content a snapshot may have, 1 or more. A larger one is refused.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 1, { bounds::COUNT_MAX }>"
    )]
    pub snapshot_bytes: Option<u64>,
    /// How many event streams each api may have open for the project; 1 or more. More are answered 429.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounds::maybe_within::<_, _, 1, { u32::MAX as u64 }>"
    )]
    pub event_streams: Option<u32>,
}

impl Quotas {
    /// The rule that a build with so many tags breaks.
    ///
    /// # Errors
    /// When there are more than the quota, or [`TAGS_MAX`].
    pub fn check_tags(&self, tags: usize) -> Result<(), String> {
        let most = self.tags_per_build.unwrap_or(TAGS_MAX).min(TAGS_MAX);
        match u32::try_from(tags).is_ok_and(|tags| tags <= most) {
            true => Ok(()),
            false => Err(format!("the build has {tags} tags and may have {most} (tags_per_build)")),
        }
    }
}
