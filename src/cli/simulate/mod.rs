//! `kiln simulate`: the placement policy that control runs, on a made-up or recorded load, beside other ways to place builds.
//!
//! All strategies get the same builds at the same times; a strategy decides only where they go.

mod load;
mod model;
mod plot;
mod random;
mod report;
mod strategy;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use workflows::contract::{FailureClass, HOME_CELLS, RING_POINTS, SHORT_LINE, WARM_CELLS};

use super::{Failure, Output};
use load::Load;
use model::Model;
use report::{Report, Row};
use strategy::Strategy;

/// Compare ways to place builds, on a simulated fleet
///
/// Runs the very policy that `kiln control` runs. Without `--load`, builds come at random times and their projects' popularity
/// falls by Zipf's law.
#[derive(Debug, Args)]
#[command(display_order = 20, after_help = EXAMPLES)]
pub struct SimulateArgs {
    #[command(flatten)]
    scenario: Scenario,
    /// Shares of all slots that are busy on average; with --load, its times are stretched to reach them [default: 0.3,0.6,0.85]
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',')]
    utilisation: Vec<f64>,
    /// Builds to run instead of made-up ones: what `kiln builds ls --output json --limit N` printed
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Seeds; the figures are means over them
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,3,4,5")]
    seeds: Vec<u64>,
    /// Only these
    #[arg(long, value_enum, value_name = "NAME,…", value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Write a picture of the figures, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: Output,
}

/// The fleet and its load.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Scenario {
    /// Cells of the pool
    #[arg(long, value_name = "N", default_value_t = 64)]
    cells: usize,
    /// Slots of each cell
    #[arg(long, value_name = "N", default_value_t = 4)]
    slots: u32,
    /// Projects
    #[arg(long, value_name = "N", default_value_t = 1000)]
    projects: usize,
    /// How unequal projects are: the n-th has a weight of n to the minus this
    #[arg(long, value_name = "EXPONENT", default_value_t = 0.9)]
    zipf: f64,
    /// Builds of each run
    #[arg(long, value_name = "N", default_value_t = 43_000)]
    builds: usize,
    /// How long a build takes on average, seconds
    #[arg(long = "duration", value_name = "SECONDS", default_value_t = 60.0)]
    duration_s: f64,
    /// How much durations differ: the deviation of their logarithm
    #[arg(long, value_name = "DEVIATION", default_value_t = 1.0)]
    spread: f64,
    /// Share of the cells whose hints do not arrive at any time
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    stale: f64,
    /// Losses of a cell in the course of a run, two minutes each; every other one takes the cache as well
    #[arg(long, value_name = "N", default_value_t = 0)]
    losses: usize,
    /// Projects that a cell's cache holds, the last ones built; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    cached_projects: usize,
    /// The pool's `homes`
    #[arg(long, value_name = "N", default_value_t = HOME_CELLS)]
    homes: u32,
    /// The pool's `points`
    #[arg(long, value_name = "N", default_value_t = RING_POINTS)]
    points: u32,
    /// The pool's `line`
    #[arg(long, value_name = "N", default_value_t = SHORT_LINE)]
    line: u32,
}

const UTILISATION: [f64; 3] = [0.3, 0.6, 0.85];

const EXAMPLES: &str = "\
Examples:
  kiln simulate --plot placement.svg
  kiln simulate --cells 12 --utilisation 0.7 --losses 5 --stale 0.05
  kiln builds ls --limit 1000 --output json > load.json; kiln simulate --load load.json --cells 20";

/// Runs the command.
pub fn run(args: &SimulateArgs) -> Result<ExitCode, Failure> {
    args.scenario.check().map_err(Failure::usage)?;
    let report = simulate(args).map_err(Failure::usage)?;
    if let Some(file) = &args.plot {
        let written = std::fs::write(file, plot::svg(&report));
        written
            .map_err(|error| Failure::new(FailureClass::Usage, format!("cannot write {}: {error}", file.display())))?;
    }
    args.output.print(|| report.table(), || json!(report))?;
    Ok(ExitCode::SUCCESS)
}

impl Scenario {
    fn check(&self) -> Result<(), String> {
        let rules = [
            (self.cells >= 1 && self.slots >= 1, "--cells and --slots must be 1 or more"),
            (self.projects >= 1 && self.builds >= 1, "--projects and --builds must be 1 or more"),
            ((0.0..1.0).contains(&self.stale), "--stale must be from 0 to below 1"),
            (self.duration_s > 0.0 && self.spread >= 0.0, "--duration must be above 0, --spread 0 or more"),
            ((1..=WARM_CELLS).contains(&(self.homes as usize)), "--homes must be 1 to 8"),
            ((1..=1024).contains(&self.points), "--points must be 1 to 1024"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule.to_owned()))
    }

    fn all_slots(&self) -> f64 {
        self.cells as f64 * f64::from(self.slots)
    }
}

fn simulate(args: &SimulateArgs) -> Result<Report, String> {
    let recorded = args.load.as_ref().map(|file| {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        Load::recorded(&text).map_err(|error| format!("{}: {error}", file.display()))
    });
    let recorded = recorded.transpose()?;
    let utilisations = match (&recorded, args.utilisation.as_slice()) {
        (Some(load), []) => vec![load.utilisation(args.scenario.all_slots())],
        (None, []) => UTILISATION.to_vec(),
        (_, some) => some.to_vec(),
    };
    if let Some(wrong) = utilisations.iter().find(|share| **share <= 0.0) {
        return Err(format!("a utilisation of {wrong}: must be above 0"));
    }
    let strategies = if args.strategy.is_empty() { Strategy::ALL.to_vec() } else { args.strategy.clone() };
    let mut report = Report::new(args.scenario.clone(), args.seeds.clone());
    for utilisation in utilisations {
        let loads = args.seeds.iter().map(|seed| match &recorded {
            Some(load) => Ok(load.stretched(utilisation, args.scenario.all_slots())),
            None => Load::made_up(&args.scenario, utilisation, *seed),
        });
        let loads = loads.collect::<Result<Vec<Load>, String>>()?;
        report.optimum(utilisation, &loads);
        for strategy in &strategies {
            let runs = args.seeds.iter().zip(&loads);
            let outcomes = runs.map(|(seed, load)| Ok(Model::new(&args.scenario, load, *strategy, *seed)?.run()));
            report.rows.push(Row::new(utilisation, *strategy, &outcomes.collect::<Result<Vec<_>, String>>()?));
        }
    }
    Ok(report)
}
