//! The Pool workflow's payloads: who is in a pool, and how its ring is made.

use serde::{Deserialize, Serialize};

use super::{CellId, CellState, Platform, PoolName, ProjectName, bounds};

/// How many cells of the ring are a project's home unless the pool says otherwise.
pub const HOME_CELLS: u32 = 3;
/// Points of each cell on the ring unless the pool says otherwise; more points spread the projects more evenly.
pub const RING_POINTS: u32 = 64;
/// How long a line at a warm home cell may be unless the pool says otherwise.
pub const SHORT_LINE: u32 = 1;
/// How many cells are remembered as warm for a project and platform; a project has never more home cells than this.
pub const WARM_CELLS: usize = 8;
/// How many cells a pool may have.
pub const POOL_CELLS: usize = 4000;
/// How many pools a pool may overflow into.
pub const OVERFLOW_POOLS: usize = 8;

/// A pool as placement sees it. The Pool's workflow writes it to the store at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    pub pool: PoolName,
    /// Raised at each change.
    #[serde(deserialize_with = "bounds::within::<_, _, 0, { bounds::COUNT_MAX }>")]
    pub version: u64,
    #[serde(default)]
    pub settings: PoolSettings,
    /// By cell id.
    #[serde(default)]
    pub members: Vec<PoolMember>,
}

/// What an operator sets of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolSettings {
    #[serde(default)]
    pub tenancy: Tenancy,
    /// What the projects that share a cell share of its cache.
    #[serde(default)]
    pub isolation: Isolation,
    /// The first so many cells of a project's ring order are its home; 1 to 8. A project with much load has more.
    #[serde(default = "home_cells", deserialize_with = "bounds::within::<_, _, 1, 8>")]
    pub homes: u32,
    /// Points of each cell on the ring; 1 to 1024. Changing it moves projects.
    #[serde(default = "ring_points", deserialize_with = "bounds::within::<_, _, 1, 1024>")]
    pub points: u32,
    /// A build waits for a warm home cell with fewer waiting builds than this rather than going to a cold cell elsewhere; 0 to 64.
    /// With 0 it never waits while a cell is free.
    #[serde(default = "short_line", deserialize_with = "bounds::within::<_, _, 0, 64>")]
    pub line: u32,
    /// Where builds go, in this order, when no cell of this pool is free.
    #[serde(default)]
    pub overflow: Vec<PoolName>,
}

fn home_cells() -> u32 {
    HOME_CELLS
}

fn ring_points() -> u32 {
    RING_POINTS
}

fn short_line() -> u32 {
    SHORT_LINE
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            tenancy: Tenancy::default(),
            isolation: Isolation::default(),
            homes: HOME_CELLS,
            points: RING_POINTS,
            line: SHORT_LINE,
            overflow: Vec::new(),
        }
    }
}

/// Whom a pool's cells serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tenancy {
    /// Every cell serves all projects.
    #[default]
    Shared,
    /// A cell serves the project it names, and no other.
    Project,
}

impl Tenancy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Project => "project",
        }
    }
}

/// What the projects that share a cell share of its cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// No project is served the result of another's RUN step.
    #[default]
    Project,
    /// Equal RUN steps share their results. BuildKit's cache key leaves out secrets' values, proxy arguments and the ids of
    /// cache mounts, so this is only for projects that trust each other.
    None,
}

impl Isolation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::None => "none",
        }
    }

    /// Whether this is the default; left out of payloads then.
    pub fn is_project(&self) -> bool {
        *self == Self::Project
    }
}

/// A cell of a pool. The signal `add`; sent again with other values, it replaces them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolMember {
    pub cell: CellId,
    /// What it was when it was added or last told; its hint and its Cell's orders are newer.
    #[serde(default = "ready")]
    pub state: CellState,
    pub platform: Platform,
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The only project it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
}

fn ready() -> CellState {
    CellState::Ready
}

/// The signal `remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RemoveMember {
    pub cell: CellId,
}

/// The signal `set`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPool {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<Tenancy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub homes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Vec<PoolName>>,
}

impl SetPool {
    /// The settings of a pool with what is set here.
    ///
    /// # Errors
    /// With the rule that a value breaks.
    pub fn apply(&self, view: &PoolView) -> Result<PoolSettings, String> {
        let (pool, to) = (&view.pool, &view.settings);
        // Each build would wait for a cell that never comes.
        if self.tenancy == Some(Tenancy::Project) && !view.members.iter().any(|member| member.project.is_some()) {
            return Err(format!("no cell of pool {pool} belongs to a project: set cell.project for its cells first"));
        }
        let new = PoolSettings {
            tenancy: self.tenancy.unwrap_or(to.tenancy),
            isolation: self.isolation.unwrap_or(to.isolation),
            homes: self.homes.unwrap_or(to.homes),
            points: self.points.unwrap_or(to.points),
            line: self.line.unwrap_or(to.line),
            overflow: self.overflow.clone().unwrap_or_else(|| to.overflow.clone()),
        };
        if !(1..=WARM_CELLS).contains(&(new.homes as usize)) {
            return Err(format!("homes is {}: must be 1 to {WARM_CELLS}", new.homes));
        }
        if !(1..=1024).contains(&new.points) {
            return Err(format!("points is {}: must be 1 to 1024", new.points));
        }
        if new.line > 64 {
            return Err(format!("line is {}: must be 0 to 64", new.line));
        }
        if new.overflow.len() > OVERFLOW_POOLS {
            return Err(format!("overflow names {} pools: at most {OVERFLOW_POOLS}", new.overflow.len()));
        }
        match new.overflow.iter().enumerate().find(|(n, other)| *other == pool || new.overflow[..*n].contains(other)) {
            Some((_, other)) if other == pool => Err(format!("pool {pool} cannot overflow into itself")),
            Some((_, other)) => Err(format!("overflow names pool {other} twice")),
            None => Ok(new),
        }
    }
}

/// The answer of the query `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolStatus {
    #[serde(flatten)]
    pub view: PoolView,
    /// The last ones, oldest first; refused signals among them.
    #[serde(default)]
    pub changes: Vec<PoolChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolChange {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// The view's version after it.
    pub version: u64,
    pub what: String,
}

/// The workflow id of a pool: `pool/<name>`.
pub fn pool_workflow_id(pool: &PoolName) -> String {
    format!("pool/{pool}")
}
