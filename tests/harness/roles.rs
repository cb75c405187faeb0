//! Settings that `kiln dev` has no flag for: a role's settings file is changed and the role started again with it, as an operator would.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dev::{Dev, eventually, processes_with};
use super::spine::kiln;

const RESTART: Duration = Duration::from_secs(60);

/// A role that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    Api,
    Control,
    /// The builder of a cell.
    Builder(&'a str),
}

impl Role<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Control => "control",
            Self::Builder(_) => "builder",
        }
    }

    fn settings(self, data: &Path) -> PathBuf {
        match self {
            Self::Api => data.join("kiln.toml"),
            Self::Control => data.join("control.toml"),
            Self::Builder(cell) => data.join("cells").join(cell).join("kiln.toml"),
        }
    }

    fn log(self, data: &Path) -> PathBuf {
        match self {
            Self::Builder(cell) => data.join(format!("logs/{cell}-builder.log")),
            other => data.join(format!("logs/{}.log", other.name())),
        }
    }

    /// Its one process, guards apart.
    fn process(self, data: &Path) -> Option<u32> {
        let line = format!(" {} --config {}", self.name(), self.settings(data).display());
        processes_with(&line).into_iter().find(|pid| !processes_with("__guard").contains(pid))
    }

    /// How often it has said that it is up.
    fn ups(self, data: &Path) -> usize {
        let said = format!("{} is up", self.name());
        fs::read_to_string(self.log(data)).unwrap_or_default().matches(&said).count()
    }
}

impl Dev {
    /// Changes settings of a role, `section.key = value` each, and waits until the role has started again with them.
    pub fn reconfigure(&self, role: Role<'_>, changes: &[(&str, &str, toml::Value)]) {
        let file = role.settings(&self.data);
        let mut settings: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        for (section, key, value) in changes {
            let section = settings.get_mut(*section).and_then(toml::Value::as_table_mut).expect("such a section");
            section.insert((*key).to_owned(), value.clone());
        }
        fs::write(&file, toml::to_string(&settings).unwrap()).unwrap();
        let (before, ups) = (role.process(&self.data).expect("it runs"), role.ups(&self.data));
        kill(Pid::from_raw(before.cast_signed()), Signal::SIGKILL).unwrap();
        eventually("the role runs again", RESTART, || {
            let again = role.process(&self.data).filter(|pid| *pid != before)?;
            let up = match role {
                // Says nothing of itself when it is up, but answers.
                Role::Api => kiln(&self.data, &["builds", "ls"]).output().unwrap().status.success(),
                _ => role.ups(&self.data) > ups,
            };
            up.then_some(again)
        });
    }
}
