//! What the host asks of a cell, and what it is told.

use std::time::{Duration, Instant};

use super::{Cell, Failure, Phase};
use crate::control::{Command, Request};
use crate::freeze::{self, Freeze};
use crate::jobs::Work;
use crate::{cache, console, stats, sys};

/// A clock that is off by less is left alone: the request itself took some time.
const CLOCK_SLACK_NS: i64 = 1_000_000;

impl Cell {
    pub(super) fn serve(&mut self, request: Request) {
        let Request { id, command } = request;
        let answered = match command {
            Command::Hello => Ok(self.hello()),
            Command::Stats => Ok(stats::line()),
            Command::Stop => {
                self.stop("the host");
                Ok(String::new())
            }
            Command::Time(now) => set_clock(now),
            Command::Malformed(why) => Err(why),
            Command::Freeze(span) => return self.answer_later(&id, |cell, id| cell.begin_freeze(id, span)),
            Command::Thaw => return self.thaw(Some(id)),
            Command::Resize => return self.answer_later(&id, Cell::begin_resize),
        };
        self.control.answer(&id, answered.as_ref().map(String::as_str).map_err(String::as_str));
    }

    /// Starts a job that answers when it ends; answers at once when it cannot be started.
    fn answer_later(&mut self, id: &str, begin: impl FnOnce(&mut Self, String) -> Result<(), String>) {
        if let Err(why) = begin(self, id.to_owned()) {
            self.control.answer(id, Err(&why));
        }
    }

    /// `name=value` words; `why`, where the cell has failed, is the rest of the line.
    fn hello(&self) -> String {
        let (phase, failure) = match &self.phase {
            Phase::Checking => ("checking", None),
            Phase::Mounting => ("mounting", None),
            Phase::Failed(failure) => ("failed", Some(failure)),
            Phase::Starting => ("starting", None),
            Phase::Running => ("running", None),
            Phase::Draining { .. } => ("draining", None),
            Phase::Stopping { .. } | Phase::Unmounting | Phase::Off => ("stopping", None),
        };
        let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let mut words = format!(
            "phase={phase} id={} version={} cache={} checked={} buildkitd={} builder={} uptime_ms={} clock_ns={} timeline={}",
            self.settings.id,
            env!("CARGO_PKG_VERSION"),
            if self.warm { "warm" } else { "cold" },
            self.checked,
            pid(self.buildkitd.pid()),
            pid(self.builder.pid()),
            sys::uptime_ms(),
            sys::wall_ns(),
            self.timeline,
        );
        if let Some(Failure { of_disk, why }) = failure {
            words.push_str(&format!(" fault={} why={why}", if *of_disk { "disk" } else { "other" }));
        }
        words
    }

    fn has_disk(&self) -> Result<(), String> {
        match self.phase {
            Phase::Starting | Phase::Running => Ok(()),
            _ => Err("no cache disk is in use".to_owned()),
        }
    }

    fn begin_freeze(&mut self, id: String, span: Duration) -> Result<(), String> {
        self.has_disk()?;
        if self.freeze != Freeze::Thawed {
            return Err("the cache disk is frozen already".to_owned());
        }
        self.jobs.start(Work::Freeze, Some(id), freeze::freeze).map_err(|error| error.to_string())?;
        self.freeze = Freeze::Freezing { until: Instant::now() + span };
        Ok(())
    }

    fn begin_resize(&mut self, id: String) -> Result<(), String> {
        self.has_disk()?;
        let device = self.settings.cache_device.clone();
        self.jobs.start(Work::Resize, Some(id), move || cache::grow(&device)).map_err(|error| error.to_string())
    }
}

/// Says by how many milliseconds the clock was behind.
fn set_clock(now: i64) -> Result<String, String> {
    let behind = now - sys::wall_ns();
    if behind.abs() > CLOCK_SLACK_NS {
        sys::set_wall_ns(now).map_err(|error| error.to_string())?;
    }
    let behind = behind / 1_000_000;
    if behind.abs() > 1000 {
        console::say(&format!("the clock was {behind} ms behind"));
    }
    Ok(format!("behind_ms={behind}"))
}
