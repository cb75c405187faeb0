//! What is to be built: made up, or recorded from an installation.

use std::collections::BTreeMap;

use serde::Deserialize;
use workflows::contract::ProjectName;

use super::Scenario;
use super::random::Random;

/// One build.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Build {
    pub at_ms: u64,
    /// Its project's place in [`Load::projects`].
    pub project: usize,
    /// How long it holds a slot.
    pub takes_ms: u64,
}

/// Builds in the order in which they come.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub projects: Vec<ProjectName>,
    pub builds: Vec<Build>,
}

impl Load {
    /// Builds that come at random times, of projects whose popularity falls by Zipf's law.
    ///
    /// # Errors
    /// When there are more projects than names can be made for.
    pub fn made_up(scenario: &Scenario, utilisation: f64, seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let names = (0..scenario.projects).map(|n| format!("p{n}").parse().map_err(|e| format!("{e}")));
        let projects = names.collect::<Result<Vec<ProjectName>, String>>()?;
        let popular = Zipf::new(scenario.projects, scenario.zipf);
        let slots = f64::from(scenario.slots) * scenario.cells as f64;
        let between_ms = scenario.duration_s * 1000.0 / (slots * utilisation);
        let mut at_ms = 0.0;
        let builds = (0..scenario.builds).map(|_| {
            at_ms += random.exponential(between_ms);
            let takes = random.lognormal(scenario.duration_s * 1000.0, scenario.spread);
            Build { at_ms: at_ms as u64, project: popular.one(&mut random), takes_ms: takes.max(1.0) as u64 }
        });
        Ok(Self { builds: builds.collect(), projects })
    }

    /// The builds of `kiln builds ls --output json` that ran.
    ///
    /// # Errors
    /// When the text is something else, or none of its builds ran.
    pub fn recorded(text: &str) -> Result<Self, String> {
        let recorded: Recorded = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut rows = recorded.builds;
        rows.retain(|row| row.started_ms.is_some() && row.ended_ms.is_some());
        rows.sort_by_key(|row| row.created_ms);
        let first_ms = rows.first().ok_or("none of its builds has started and ended")?.created_ms;
        let mut places = BTreeMap::new();
        for row in &rows {
            let next = places.len();
            places.entry(row.project.clone()).or_insert(next);
        }
        let builds = rows.iter().map(|row| Build {
            at_ms: u64::try_from(row.created_ms - first_ms).unwrap_or(0),
            project: places[&row.project],
            takes_ms: u64::try_from(row.ended_ms.unwrap_or(0) - row.started_ms.unwrap_or(0)).unwrap_or(0).max(1),
        });
        let builds = builds.collect();
        let mut projects: Vec<(usize, ProjectName)> = places.into_iter().map(|(name, at)| (at, name)).collect();
        projects.sort();
        Ok(Self { projects: projects.into_iter().map(|(_, name)| name).collect(), builds })
    }

    /// The share of so many slots that is busy from the first build's start to the last one's.
    pub fn utilisation(&self, slots: f64) -> f64 {
        let busy: f64 = self.builds.iter().map(|build| build.takes_ms as f64).sum();
        let last = self.builds.last().map_or(0, |build| build.at_ms);
        if last == 0 { 0.0 } else { busy / (last as f64 * slots) }
    }

    /// The same builds at times that make so many slots this busy.
    pub fn stretched(&self, utilisation: f64, slots: f64) -> Self {
        let factor = self.utilisation(slots) / utilisation;
        let stretch = |build: &Build| Build { at_ms: (build.at_ms as f64 * factor) as u64, ..*build };
        Self { projects: self.projects.clone(), builds: self.builds.iter().map(stretch).collect() }
    }

    /// The share of builds that are not their project's first: what no placement can exceed where caches keep everything.
    pub fn optimum(&self) -> f64 {
        let mut seen = vec![false; self.projects.len()];
        let firsts = self.builds.iter().filter(|build| !std::mem::replace(&mut seen[build.project], true)).count();
        1.0 - firsts as f64 / self.builds.len().max(1) as f64
    }
}

#[derive(Deserialize)]
struct Recorded {
    builds: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    project: ProjectName,
    created_ms: i64,
    #[serde(default)]
    started_ms: Option<i64>,
    #[serde(default)]
    ended_ms: Option<i64>,
}

/// Which project comes next: the n-th most popular with a weight of n to the minus `exponent`.
struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    fn new(projects: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let add = |n: usize| {
            sum += (n as f64).powf(-exponent);
            sum
        };
        Self { sums: (1..=projects).map(add).collect() }
    }

    fn one(&self, random: &mut Random) -> usize {
        let point = random.share() * self.sums.last().copied().unwrap_or(0.0);
        self.sums.partition_point(|sum| *sum < point).min(self.sums.len().saturating_sub(1))
    }
}
