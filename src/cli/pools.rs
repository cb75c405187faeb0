//! `kiln pools`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use workflows::contract::{CellId, CellState, Isolation, PoolName, SetPool, Tenancy};

use super::client::{Client, PoolCell, PoolInfo};
use super::table::{ago, now_ms, table};
use super::{ClientArgs, Failure, Output};
use crate::settings::Settings;
use crate::terminal::OutputError;

/// List, show and set up pools of cells
///
/// A pool is made by its first cell.
#[derive(Debug, Args)]
#[command(display_order = 5, after_help = EXAMPLES)]
pub struct PoolsArgs {
    #[command(subcommand)]
    command: Command,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", global = true, help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all pools
    Ls,
    /// Show a pool: its settings and its cells
    Show { name: PoolName },
    /// Change a pool's settings; builds that are placed from then on see them
    Set {
        name: PoolName,
        #[command(flatten)]
        changes: Changes,
    },
    /// Take a cell out of a pool for good; drain it first
    Remove { name: PoolName, cell: CellId },
}

/// What is not given stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Whom the cells serve
    #[arg(long, value_enum)]
    tenancy: Option<Whom>,
    /// What the projects that share a cell share of its cache
    #[arg(long, value_enum)]
    isolation: Option<Shared>,
    /// How many cells are a project's home, 1 to 8
    #[arg(long, value_name = "N")]
    homes: Option<u32>,
    /// Points of each cell on the ring, 1 to 1024; changing it moves projects
    #[arg(long, value_name = "N")]
    points: Option<u32>,
    /// How many builds may wait for a warm cell before they go to a cold one, 0 to 64
    #[arg(long, value_name = "N")]
    line: Option<u32>,
    /// Pools that get builds when this one is full, in this order; empty for none
    #[arg(long, value_name = "POOL,…")]
    overflow: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whom {
    /// All projects
    Shared,
    /// Each the project that its cell.project names; refused while none names one
    Project,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shared {
    /// No results of RUN steps
    Project,
    /// Results of equal RUN steps; only for projects that trust each other
    None,
}

const EXAMPLES: &str = "\
Examples:
  kiln pools show default
  kiln pools set eu-amd64 --overflow us-amd64 --homes 4
  kiln pools ls --output json | jq -r '.pools[].pool'";

/// Runs the command.
pub async fn run(args: PoolsArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    match args.command {
        Command::Ls => {
            let pools = client.pools().await?;
            args.output.print(|| list(&pools), || json!({"pools": pools}))?;
        }
        Command::Show { name } => {
            let pool = client.pool(&name).await?;
            args.output.print(|| details(&pool, now_ms()), || json!(pool))?;
        }
        Command::Set { name, changes } => {
            client.set_pool(&name, &changes.request()?).await?;
            done(args.output, &name, "takes its settings up")?;
        }
        Command::Remove { name, cell } => {
            client.remove_from_pool(&name, &cell).await?;
            done(args.output, &name, &format!("lets {cell} go"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn done(output: Output, pool: &PoolName, what: &str) -> Result<(), OutputError> {
    output.print(|| format!("{pool} {what}\n"), || json!({"pool": pool}))
}

impl Changes {
    fn request(self) -> Result<SetPool, Failure> {
        let overflow = self.overflow.map(|text| {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.map(str::parse).collect::<Result<Vec<PoolName>, _>>()
        });
        let overflow = overflow.transpose().map_err(|error| Failure::usage(format!("--overflow: {error}")))?;
        let tenancy = self.tenancy.map(|whom| match whom {
            Whom::Shared => Tenancy::Shared,
            Whom::Project => Tenancy::Project,
        });
        let isolation = self.isolation.map(|shared| match shared {
            Shared::Project => Isolation::Project,
            Shared::None => Isolation::None,
        });
        Ok(SetPool { tenancy, isolation, homes: self.homes, points: self.points, line: self.line, overflow })
    }
}

fn list(pools: &[PoolInfo]) -> String {
    let heading = ["POOL", "CELLS", "READY", "SLOTS", "BUSY", "TENANCY", "OVERFLOW"].map(str::to_owned);
    let row = |pool: &PoolInfo| {
        let ready = pool.cells.iter().filter(|cell| cell.member.state == CellState::Ready);
        let (slots, busy) = ready
            .clone()
            .fold((0, 0), |(slots, busy), cell| (slots + cell.member.slots, busy + cell.busy.unwrap_or(0)));
        [
            pool.pool.to_string(),
            pool.cells.len().to_string(),
            ready.count().to_string(),
            slots.to_string(),
            busy.to_string(),
            pool.settings.tenancy.as_str().to_owned(),
            names(&pool.settings.overflow),
        ]
    };
    table(&std::iter::once(heading).chain(pools.iter().map(row)).collect::<Vec<_>>())
}

fn names(pools: &[PoolName]) -> String {
    pools.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ")
}

fn details(pool: &PoolInfo, now_ms: i64) -> String {
    let settings = &pool.settings;
    let rows = [
        ["pool".to_owned(), pool.pool.to_string()],
        ["version".to_owned(), pool.version.to_string()],
        ["tenancy".to_owned(), settings.tenancy.as_str().to_owned()],
        ["isolation".to_owned(), settings.isolation.as_str().to_owned()],
        ["homes".to_owned(), settings.homes.to_string()],
        ["points".to_owned(), settings.points.to_string()],
        ["line".to_owned(), settings.line.to_string()],
        ["overflow".to_owned(), names(&settings.overflow)],
    ];
    let heading = ["CELL", "STATE", "BUSY", "SLOTS", "PLATFORM", "SEEN", "HOST", "IMAGE"].map(str::to_owned);
    let row = |cell: &PoolCell| {
        let member = &cell.member;
        let seen = |ms| format!("{} ago", ago(i64::try_from(ms).unwrap_or(i64::MAX), now_ms));
        [
            member.cell.to_string(),
            member.state.as_str().to_owned(),
            cell.busy.map_or_else(String::new, |busy| busy.to_string()),
            member.slots.to_string(),
            member.platform.to_string(),
            cell.reported_ms.map_or_else(|| "never".to_owned(), seen),
            member.host.clone().unwrap_or_default(),
            member.image.clone().unwrap_or_default(),
        ]
    };
    let cells = table(&std::iter::once(heading).chain(pool.cells.iter().map(row)).collect::<Vec<_>>());
    format!("{}\n{cells}", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolInfo {
        serde_json::from_value(json!({
            "pool": "default", "version": 3, "a field of tomorrow": 1,
            "settings": {"tenancy": "shared", "homes": 3, "points": 64, "line": 2, "overflow": ["far"]},
            "cells": [
                {"cell": "c1", "state": "ready", "platform": "linux/amd64", "slots": 4, "busy": 1, "reported_ms": 55_000},
                {"cell": "c2", "state": "draining", "platform": "linux/amd64", "slots": 4, "host": "h1"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_pool_is_shown_with_its_cells() {
        assert_eq!(
            list(&[pool()]),
            "\
POOL     CELLS  READY  SLOTS  BUSY  TENANCY  OVERFLOW
default  2      1      4      1     shared   far
"
        );
        assert_eq!(
            details(&pool(), 60_000),
            "\
pool       default
version    3
tenancy    shared
isolation  project
homes      3
points     64
line       2
overflow   far

CELL  STATE     BUSY  SLOTS  PLATFORM     SEEN    HOST  IMAGE
c1    ready     1     4      linux/amd64  5s ago
c2    draining        4      linux/amd64  never   h1
"
        );
    }
}
