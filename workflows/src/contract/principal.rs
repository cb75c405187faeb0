//! Principals: who makes a request. A token stands for exactly one of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{BuildKey, CellId, HostId, ProjectName};

/// What a project's token may do. Each scope includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See the project, its builds and their logs.
    Read,
    /// Upload snapshots and secrets, start, cancel and retry builds.
    Build,
    /// Change the project's settings, issue and revoke its tokens, read its audit log.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Read, Self::Build, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Build => "build",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Principal {
    /// Runs the installation: may do everything but speak as a cell or a host.
    Operator,
    /// A backend that acts for all projects. It sees no cells and no pools.
    Platform,
    /// A person or a CI job of one project.
    Project { project: ProjectName, scope: Scope },
    /// Starts one build, under this key, and follows it.
    Build { project: ProjectName, key: BuildKey },
    /// A cell's builder: reports the cell's hints and sends the logs of attempts that were placed on the cell.
    Cell { cell: CellId },
    /// A host's agent: gets the credentials of its cells.
    Host { host: HostId },
}

/// A text that names no principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no principal")]
pub struct UnknownPrincipal(String);

impl Principal {
    /// `operator`, `platform`, `project`, `build`, `cell` or `host`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Platform => "platform",
            Self::Project { .. } => "project",
            Self::Build { .. } => "build",
            Self::Cell { .. } => "cell",
            Self::Host { .. } => "host",
        }
    }

    /// The project that it belongs to, if it belongs to one.
    pub fn project(&self) -> Option<&ProjectName> {
        match self {
            Self::Project { project, .. } | Self::Build { project, .. } => Some(project),
            _ => None,
        }
    }
}

/// `operator`, `platform`, `project/<name>:<scope>`, `build/<project>/<key>`, `cell/<id>` or `host/<id>`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator | Self::Platform => f.write_str(self.kind()),
            Self::Project { project, scope } => write!(f, "project/{project}:{scope}"),
            Self::Build { project, key } => write!(f, "build/{project}/{key}"),
            Self::Cell { cell } => write!(f, "cell/{cell}"),
            Self::Host { host } => write!(f, "host/{host}"),
        }
    }
}

impl FromStr for Principal {
    type Err = UnknownPrincipal;

    fn from_str(text: &str) -> Result<Self, UnknownPrincipal> {
        parse(text).ok_or_else(|| UnknownPrincipal(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Principal> {
    let (kind, of) = text.split_once('/').unwrap_or((text, ""));
    Some(match (kind, of) {
        ("operator", "") => Principal::Operator,
        ("platform", "") => Principal::Platform,
        ("project", of) => {
            let (project, scope) = of.split_once(':')?;
            let scope = Scope::ALL.into_iter().find(|known| known.as_str() == scope)?;
            Principal::Project { project: project.parse().ok()?, scope }
        }
        ("build", of) => {
            let (project, key) = of.split_once('/')?;
            Principal::Build { project: project.parse().ok()?, key: key.parse().ok()? }
        }
        ("cell", cell) => Principal::Cell { cell: cell.parse().ok()? },
        ("host", host) => Principal::Host { host: host.parse().ok()? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principals_text_is_read_back() {
        for text in [
            "operator",
            "platform",
            "project/acme:read",
            "project/acme:build",
            "project/acme:admin",
            "build/acme/web/1:2",
            "cell/c-1",
            "host/h-1",
        ] {
            assert_eq!(text.parse::<Principal>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_name_no_principal() {
        for text in
            ["", "root", "operator/x", "project/acme", "project/acme:all", "build/acme", "cell/", "cell/A", "host"]
        {
            assert!(text.parse::<Principal>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_scope_includes_the_ones_before_it() {
        assert!(Scope::Read < Scope::Build && Scope::Build < Scope::Admin);
    }
}
