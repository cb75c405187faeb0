//! The id of a build in URLs and on the command line: `<project>/<key>`.

use std::fmt;

use serde::{Deserialize, Deserializer};
use workflows::contract::{BuildKey, ProjectName, build_workflow_id};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildId {
    pub project: ProjectName,
    pub key: BuildKey,
}

impl BuildId {
    pub fn workflow_id(&self) -> String {
        build_workflow_id(&self.project, &self.key)
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.key)
    }
}

impl<'de> Deserialize<'de> for BuildId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let (project, key) = text.split_once('/').ok_or_else(|| {
            D::Error::custom(format!("{text:?} is no build id: it must be <project>/<key>, with the slash as %2F"))
        })?;
        Ok(Self { project: project.parse().map_err(D::Error::custom)?, key: key.parse().map_err(D::Error::custom)? })
    }
}
