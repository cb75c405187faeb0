//! What a principal may do: extractors that a handler takes as its first argument, and through which alone it reaches the api's parts.
//!
//! ```text
//! OperatorAccess          operator
//! PlatformAccess          operator, platform
//! ListAccess              operator, platform: everything; project: its own
//! ProjectAccess<Need>     operator, platform; a project's token of the project in the path, with the scope; Submit: a build's token too
//! BuildAccess<Need>       the same for the build in the path; Read: that build's token too
//! TokenAccess             operator, platform, project with scope admin
//! AuditAccess             operator: everything; project with scope admin: its own
//! CellAccess, HostAccess  a cell, a host, and nobody else
//! AnyAccess               every principal
//! PublicAccess            everybody, without a token
//! ```
//!
//! The router's state is a [`Gate`], which only this module opens, and [`get`], [`post`], [`put`] and [`delete`] take no handler
//! without an [`Access`]: a route that was left unguarded does not compile. What belongs to another project is answered as if it did
//! not exist.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::routing::{self, MethodRouter};
use serde::Deserialize;
use workflows::contract::{BuildKey, CellId, HostId, ProjectName};

use super::builds::{self, BuildId};
use super::error::ApiError;
use super::extract::Segments;
use super::principal::{Caller, Principal, Scope};
use super::{App, Shared, no_project};

/// The api's parts, behind the extractors.
#[derive(Clone)]
pub struct Gate(Shared);

impl Gate {
    pub fn new(app: Shared) -> Self {
        Self(app)
    }
}

/// A handler's first argument: the proof that its caller may do what the route does.
pub trait Access: FromRequestParts<Gate> {}

/// The arguments of a handler whose first one is an [`Access`].
pub trait Guarded {}

impl<M, A: Access> Guarded for (M, A) {}
impl<M, A: Access, B> Guarded for (M, A, B) {}
impl<M, A: Access, B, C> Guarded for (M, A, B, C) {}
impl<M, A: Access, B, C, D> Guarded for (M, A, B, C, D) {}

macro_rules! guarded_route {
    ($($method:ident),*) => {$(
        /// As [`routing`]'s function of this name, for handlers with an [`Access`].
        pub fn $method<H, T>(handler: H) -> MethodRouter<Gate>
        where
            H: Handler<T, Gate>,
            T: Guarded + 'static,
        {
            routing::$method(handler)
        }
    )*};
}

guarded_route!(get, post, put, delete);

fn caller_of(parts: &Parts) -> Result<Arc<Caller>, ApiError> {
    parts.extensions.get::<Arc<Caller>>().cloned().ok_or_else(ApiError::unauthorized)
}

fn refused(caller: &Caller) -> ApiError {
    ApiError::forbidden(format!("a token of {} may not do this", described(&caller.principal)))
}

fn described(principal: &Principal) -> String {
    match principal {
        Principal::Project { project, scope } => format!("project {project} with scope {scope}"),
        Principal::Build { project, key } => format!("the build {project}/{key}"),
        Principal::Cell { cell } => format!("cell {cell}"),
        Principal::Host { host } => format!("host {host}"),
        other => other.kind().to_owned(),
    }
}

/// Operators alone.
pub struct OperatorAccess {
    pub app: Shared,
    pub caller: Arc<Caller>,
}

impl Access for OperatorAccess {}

impl FromRequestParts<Gate> for OperatorAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        match caller.principal {
            Principal::Operator => Ok(Self { app: gate.0.clone(), caller }),
            _ => Err(refused(&caller)),
        }
    }
}

/// Operators and platforms.
pub struct PlatformAccess {
    pub app: Shared,
}

impl Access for PlatformAccess {}

impl FromRequestParts<Gate> for PlatformAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        match caller.principal {
            Principal::Operator | Principal::Platform => Ok(Self { app: gate.0.clone() }),
            _ => Err(refused(&caller)),
        }
    }
}

/// Lists of what belongs to projects.
pub struct ListAccess {
    pub app: Shared,
    /// The only project whose things the caller may see; all of them when absent.
    pub only: Option<ProjectName>,
}

impl Access for ListAccess {}

impl FromRequestParts<Gate> for ListAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        let only = match &caller.principal {
            Principal::Operator | Principal::Platform => None,
            Principal::Project { project, .. } => Some(project.clone()),
            _ => return Err(refused(&caller)),
        };
        Ok(Self { app: gate.0.clone(), only })
    }
}

/// What a route does in a project.
pub trait Need: Send + Sync + 'static {
    /// The scope that a project's token must have.
    const SCOPE: Scope;
    /// Whether a build's one-time token may do it for its build.
    const ONE_BUILD: bool = false;
}

/// Sees the project and its builds.
pub struct Read;
/// Changes the project's builds.
pub struct Build;
/// Sends a build's parts and starts it.
pub struct Submit;
/// Administers the project.
pub struct Admin;

impl Need for Read {
    const SCOPE: Scope = Scope::Read;
}

impl Need for Build {
    const SCOPE: Scope = Scope::Build;
}

impl Need for Submit {
    const SCOPE: Scope = Scope::Build;
    const ONE_BUILD: bool = true;
}

impl Need for Admin {
    const SCOPE: Scope = Scope::Admin;
}

/// Why a request is turned down.
#[derive(Debug, PartialEq, Eq)]
enum Denied {
    /// It is answered as if what it names did not exist.
    Hidden,
    /// The caller may know of it and not do this.
    Forbidden,
}

/// Whether a principal may act in a project with `need`.
fn in_project(principal: &Principal, project: &ProjectName, need: Scope, one_build: bool) -> Result<(), Denied> {
    match principal {
        Principal::Operator | Principal::Platform => Ok(()),
        Principal::Project { project: own, .. } | Principal::Build { project: own, .. } if own != project => {
            Err(Denied::Hidden)
        }
        Principal::Project { scope, .. } if *scope >= need => Ok(()),
        Principal::Build { .. } if one_build => Ok(()),
        _ => Err(Denied::Forbidden),
    }
}

/// The project in the path. The scope is `N`'s.
pub struct ProjectAccess<N> {
    pub app: Shared,
    pub caller: Arc<Caller>,
    pub project: ProjectName,
    need: PhantomData<N>,
}

#[derive(Deserialize)]
struct InProject {
    project: ProjectName,
}

impl<N: Need> Access for ProjectAccess<N> {}

impl<N: Need> FromRequestParts<Gate> for ProjectAccess<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        let Segments(InProject { project }) = Segments::from_request_parts(parts, gate).await?;
        match in_project(&caller.principal, &project, N::SCOPE, N::ONE_BUILD) {
            Ok(()) => Ok(Self { app: gate.0.clone(), caller, project, need: PhantomData }),
            Err(Denied::Hidden) => Err(no_project(&project)),
            Err(Denied::Forbidden) => Err(refused(&caller)),
        }
    }
}

impl<N> ProjectAccess<N> {
    /// The one build that the caller may start; any when absent.
    pub fn only_build(&self) -> Option<&BuildKey> {
        match &self.caller.principal {
            Principal::Build { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whether the caller acts for the installation, and may set what a project must not set for itself.
    pub fn is_of_installation(&self) -> bool {
        matches!(self.caller.principal, Principal::Operator | Principal::Platform)
    }
}

/// The build in the path. The scope is `N`'s.
pub struct BuildAccess<N> {
    pub app: Shared,
    pub caller: Arc<Caller>,
    pub id: BuildId,
    need: PhantomData<N>,
}

#[derive(Deserialize)]
struct OfBuild {
    build: BuildId,
}

impl<N: Need> Access for BuildAccess<N> {}

impl<N: Need> FromRequestParts<Gate> for BuildAccess<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        let Segments(OfBuild { build: id }) = Segments::from_request_parts(parts, gate).await?;
        match of_build(&caller.principal, &id, N::SCOPE) {
            Ok(()) => Ok(Self { app: gate.0.clone(), caller, id, need: PhantomData }),
            Err(Denied::Hidden) => Err(builds::unknown(&id)),
            Err(Denied::Forbidden) => Err(refused(&caller)),
        }
    }
}

/// Whether a principal may act on a build. A build's token sees that build and no other one of the project.
fn of_build(principal: &Principal, id: &BuildId, need: Scope) -> Result<(), Denied> {
    match principal {
        Principal::Build { key, project } if *key != id.key || *project != id.project => Err(Denied::Hidden),
        _ => in_project(principal, &id.project, need, need == Scope::Read),
    }
}

/// Tokens: issue, list, revoke.
pub struct TokenAccess {
    pub app: Shared,
    pub caller: Arc<Caller>,
}

impl Access for TokenAccess {}

impl FromRequestParts<Gate> for TokenAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        match caller.principal {
            Principal::Operator | Principal::Platform | Principal::Project { scope: Scope::Admin, .. } => {
                Ok(Self { app: gate.0.clone(), caller })
            }
            _ => Err(refused(&caller)),
        }
    }
}

impl TokenAccess {
    /// Whether the caller may issue, see and revoke tokens of this principal.
    pub fn manages(&self, of: &Principal) -> bool {
        match &self.caller.principal {
            Principal::Operator => true,
            Principal::Platform => of.project().is_some(),
            Principal::Project { project, scope: Scope::Admin } => of.project() == Some(project),
            _ => false,
        }
    }

    /// The only project whose tokens the caller may see; all that it [manages](Self::manages) when absent.
    pub fn only(&self) -> Option<&ProjectName> {
        self.caller.principal.project()
    }

    pub fn refused(&self) -> ApiError {
        refused(&self.caller)
    }
}

/// The audit log.
pub struct AuditAccess {
    pub app: Shared,
    /// The only project whose entries the caller may see; all of them when absent.
    pub only: Option<ProjectName>,
}

impl Access for AuditAccess {}

impl FromRequestParts<Gate> for AuditAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        let only = match &caller.principal {
            Principal::Operator => None,
            Principal::Project { project, scope: Scope::Admin } => Some(project.clone()),
            _ => return Err(refused(&caller)),
        };
        Ok(Self { app: gate.0.clone(), only })
    }
}

/// A cell's builder.
pub struct CellAccess {
    pub app: Shared,
    pub cell: CellId,
}

impl Access for CellAccess {}

impl FromRequestParts<Gate> for CellAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        match &caller.principal {
            Principal::Cell { cell } => Ok(Self { app: gate.0.clone(), cell: cell.clone() }),
            _ => Err(refused(&caller)),
        }
    }
}

/// A host's agent.
pub struct HostAccess {
    pub app: Shared,
    pub host: HostId,
}

impl Access for HostAccess {}

impl FromRequestParts<Gate> for HostAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let caller = caller_of(parts)?;
        match &caller.principal {
            Principal::Host { host } => Ok(Self { app: gate.0.clone(), host: host.clone() }),
            _ => Err(refused(&caller)),
        }
    }
}

/// Every principal, for what it may know of itself.
pub struct AnyAccess {
    pub caller: Arc<Caller>,
}

impl Access for AnyAccess {}

impl FromRequestParts<Gate> for AnyAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gate) -> Result<Self, ApiError> {
        Ok(Self { caller: caller_of(parts)? })
    }
}

/// Everybody: for routes that need no token, and those that check another credential themselves.
pub struct PublicAccess(pub Shared);

impl Access for PublicAccess {}

impl FromRequestParts<Gate> for PublicAccess {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        Ok(Self(gate.0.clone()))
    }
}

impl App {
    /// Whether a stream's token is still valid. While the store cannot be asked, it is.
    pub async fn is_still_valid(&self, caller: &Caller) -> bool {
        !matches!(self.keyring.recall(&caller.hash).await, Ok(None))
    }
}
