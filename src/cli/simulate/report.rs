//! What the runs came to: rows for people, JSON for programs.

use serde::Serialize;

use super::Scenario;
use super::load::Load;
use super::model::Outcome;
use super::strategy::Strategy;
use crate::cli::table::table;

/// One strategy at one utilisation: means over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub utilisation: f64,
    pub strategy: Strategy,
    /// Share of builds that started where the cache was warm; with the least and the most of any seed.
    pub warm: f64,
    pub warm_least: f64,
    pub warm_most: f64,
    /// Share of builds that did not start at once.
    pub queued: f64,
    /// From arrival to start, seconds.
    pub wait_s: f64,
    /// Share of builds that went to another cell at least once.
    pub moved: f64,
    /// The busiest cell's busy time over the mean.
    pub balance: f64,
}

impl Row {
    pub fn new(utilisation: f64, strategy: Strategy, outcomes: &[Outcome]) -> Self {
        let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len().max(1) as f64;
        let warm = || outcomes.iter().map(|outcome| outcome.warm);
        Self {
            utilisation,
            strategy,
            warm: mean(|outcome| outcome.warm),
            warm_least: warm().fold(1.0, f64::min),
            warm_most: warm().fold(0.0, f64::max),
            queued: mean(|outcome| outcome.queued),
            wait_s: mean(|outcome| outcome.wait_s),
            moved: mean(|outcome| outcome.moved),
            balance: mean(|outcome| outcome.balance),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub scenario: Scenario,
    pub seeds: Vec<u64>,
    /// What no placement can exceed, by utilisation: the share of builds that are not their project's first.
    pub optima: Vec<(f64, f64)>,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(scenario: Scenario, seeds: Vec<u64>) -> Self {
        Self { scenario, seeds, optima: Vec::new(), rows: Vec::new() }
    }

    pub fn optimum(&mut self, utilisation: f64, loads: &[Load]) {
        let mean = loads.iter().map(Load::optimum).sum::<f64>() / loads.len().max(1) as f64;
        self.optima.push((utilisation, mean));
    }

    pub fn table(&self) -> String {
        let heading = ["UTILISATION", "PLACEMENT", "WARM", "QUEUED", "WAIT", "MOVED", "BUSIEST"].map(str::to_owned);
        let mut rows = vec![heading];
        for (utilisation, optimum) in &self.optima {
            let blank = String::new;
            let best = [
                format!("{utilisation:.2}"),
                "optimum".into(),
                format!("{optimum:.3}"),
                blank(),
                blank(),
                blank(),
                blank(),
            ];
            rows.push(best);
            rows.extend(self.rows.iter().filter(|row| row.utilisation == *utilisation).map(cells));
        }
        table(&rows)
    }
}

fn cells(row: &Row) -> [String; 7] {
    [
        format!("{:.2}", row.utilisation),
        row.strategy.name().to_owned(),
        format!("{:.3}", row.warm),
        format!("{:.1}%", row.queued * 100.0),
        format!("{:.1}s", row.wait_s),
        format!("{:.1}%", row.moved * 100.0),
        format!("{:.2}x", row.balance),
    ]
}
