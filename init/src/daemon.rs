//! A daemon that is started again, later each time, when it ends.
//!
//! ```text
//! off ─► running ─► waiting ─► running ...      off again when it ends after it was asked to
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::Ended;
use crate::{cgroups, console, sys};

/// Between an end and the next start: the first wait and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A daemon that ran so long was healthy: its next wait is the first one again.
const HEALTHY: Duration = Duration::from_secs(30);
/// The kernel's choice when the whole machine is out of memory: steps first (the runc wrapper sees to that), daemons last.
const OOM_SCORE: &str = "-900";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Running { pid: i32, since: Instant },
    Waiting { until: Instant },
}

pub struct Daemon {
    /// Also its cgroup's.
    name: &'static str,
    command: fn() -> Command,
    state: State,
    wait: Duration,
}

impl Daemon {
    pub fn new(name: &'static str, command: fn() -> Command) -> Self {
        Self { name, command, state: State::Off, wait: BACKOFF.0 }
    }

    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub fn is_off(&self) -> bool {
        self.state == State::Off
    }

    /// Starts it; one that cannot be started is tried again as one that ended.
    pub fn start(&mut self, output: Option<&File>) {
        match self.spawn(output) {
            Ok(pid) => self.state = State::Running { pid, since: Instant::now() },
            Err(error) => {
                console::say(&format!("cannot start {}: {error}", self.name));
                self.wait_longer(Instant::now());
            }
        }
    }

    fn spawn(&self, output: Option<&File>) -> io::Result<i32> {
        let mut command = (self.command)();
        command.stdin(Stdio::null());
        if let Some(output) = output {
            command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        }
        let procs = cgroups::procs_of(self.name);
        let enter = move || {
            fs::write(&procs, "0")?;
            fs::write("/proc/self/oom_score_adj", OOM_SCORE)?;
            sys::detach()
        };
        // SAFETY: this process has one thread, so the forked child may allocate and open files.
        unsafe { command.pre_exec(enter) };
        // Reaped by number with all others; the handle would do nothing when dropped.
        Ok(command.spawn()?.id().cast_signed())
    }

    /// Notes its end. `wanted`: it was asked to, so it stays off.
    pub fn ended(&mut self, how: Ended, wanted: bool) {
        let State::Running { since, .. } = self.state else { return };
        if wanted {
            self.state = State::Off;
            return;
        }
        let now = Instant::now();
        if now.duration_since(since) > HEALTHY {
            self.wait = BACKOFF.0;
        }
        console::say(&format!("{} ended ({how}), starting it again in {:?}", self.name, self.wait));
        self.wait_longer(now);
    }

    fn wait_longer(&mut self, now: Instant) {
        self.state = State::Waiting { until: now + self.wait };
        self.wait = (self.wait * 2).min(BACKOFF.1);
    }

    /// When it is to be started again.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// Asks it to end; one that does not run is off from now on.
    pub fn stop(&mut self, signal: i32) {
        match self.pid() {
            Some(pid) => drop(sys::kill(pid, signal)),
            None => self.state = State::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(since: Instant, wait: Duration) -> Daemon {
        let state = State::Running { pid: 7, since };
        Daemon { name: "d", command: || Command::new("true"), state, wait }
    }

    #[test]
    fn each_end_waits_longer_until_it_was_healthy() {
        let now = Instant::now();
        let mut daemon = running(now, BACKOFF.0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            daemon.ended(Ended::Exit(1), false);
            waits.push(daemon.due().unwrap().saturating_duration_since(now) > Duration::from_millis(190));
            daemon.state = State::Running { pid: 7, since: now };
        }
        assert!(waits.iter().all(|waited| *waited));
        assert_eq!(daemon.wait, BACKOFF.1);
        let mut old = running(now.checked_sub(HEALTHY * 2).unwrap(), BACKOFF.1);
        old.ended(Ended::Signal(9), false);
        assert_eq!(old.wait, BACKOFF.0 * 2);
    }

    #[test]
    fn an_end_that_was_asked_for_is_final() {
        let mut daemon = running(Instant::now(), BACKOFF.0);
        daemon.ended(Ended::Exit(1), true);
        assert!(daemon.is_off() && daemon.due().is_none());
        let mut waiting = running(Instant::now(), BACKOFF.0);
        waiting.ended(Ended::Exit(1), false);
        waiting.stop(libc::SIGTERM);
        assert!(waiting.is_off());
    }
}
