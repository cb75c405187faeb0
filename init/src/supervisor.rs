//! The event loop of a cell's PID 1.
//!
//! ```text
//! checking ─► mounting ─► starting ─► running ─► draining ─► stopping ─► unmounting ─► off
//!     │            │       buildkitd's   │  ▲     the builder  buildkitd
//!     │  no disk   │       socket does   └──┘     is asked to  is asked to
//!     └────┬───────┘       not answer    buildkitd   end          end
//!          ▼ to work with                ended
//!       failed ── says whether the disk is at fault; only `stop` leads on
//! ```
//!
//! One thread waits for signals, the control port and time. It alone reaps, and it never touches the cache disk itself: a frozen or
//! failing disk stops whoever writes to it, and somebody has to be left to thaw it.

mod requests;
mod timeline;

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub use timeline::Timeline;

use crate::control::{self, Control};
use crate::daemon::Daemon;
use crate::freeze::Freeze;
use crate::jobs::{Job, Jobs, Work};
use crate::settings::Settings;
use crate::sys::Ended;
use crate::{blockdev, buildkitd, cache, cgroups, cleanup, console, freeze, machine, modules, owner, runc, sys};

/// Daemons write here; the host keeps it in a file. Where the machine has no such port they write to the console.
const LOG_PORT: &str = "kiln.log";
/// How often buildkitd's socket is tried until it answers.
const SOCKET_POLL: Duration = Duration::from_millis(20);
/// How often a control port is looked at that has nobody at the other end, or nobody who takes an answer.
const LOOKS: Duration = Duration::from_millis(100);
/// Nothing to wait for is looked at all the same: a lost signal costs this much, not the cell.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Checking,
    Mounting,
    Failed(Failure),
    Starting,
    Running,
    Draining { until: Instant },
    Stopping { until: Instant },
    Unmounting,
    Off,
}

/// Why a cell has no disk to work with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    /// What is on the disk is the reason. Anything else may be over with the next start: the disk is good, as far as is known.
    of_disk: bool,
    why: String,
}

struct Cell {
    settings: Settings,
    timeline: Timeline,
    phase: Phase,
    warm: bool,
    checked: bool,
    buildkitd: Daemon,
    builder: Daemon,
    control: Control,
    output: Option<File>,
    jobs: Jobs,
    freeze: Freeze,
}

/// Until the cell is stopped.
pub fn run(settings: Settings, timeline: Timeline) -> Result<(), String> {
    let signals = sys::signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR])
        .map_err(|error| format!("cannot watch signals: {error}"))?;
    let mut cell = Cell::new(settings, timeline);
    cell.begin()?;
    while cell.phase != Phase::Off {
        cell.turn(&signals);
    }
    console::last_words("the cell has stopped");
    Ok(())
}

fn builder_command() -> Command {
    let mut command = Command::new("/usr/bin/kiln");
    command.args(["builder", "--config", "/run/kiln/kiln.toml"]).current_dir("/run/kiln");
    command.env_clear().env("PATH", "/usr/bin:/sbin").env("HOME", "/root").env("TMPDIR", "/tmp");
    command
}

impl Cell {
    fn new(settings: Settings, timeline: Timeline) -> Self {
        Self {
            settings,
            timeline,
            phase: Phase::Checking,
            warm: false,
            checked: false,
            buildkitd: Daemon::new("buildkitd", buildkitd::command),
            builder: Daemon::new("builder", builder_command),
            control: Control::new(machine::has_vsock()),
            output: None,
            jobs: Jobs::default(),
            freeze: Freeze::Thawed,
        }
    }

    /// Whatever is wrong with the settings ends the machine; whatever is wrong with the disk is the host's to judge.
    fn begin(&mut self) -> Result<(), String> {
        runc::write_limits(&self.settings.step).map_err(|error| format!("cannot write the steps' limits: {error}"))?;
        let device = self.settings.cache_device.clone();
        match cache::condition(&device) {
            Ok(cache::Condition::Clean) => self.mount(),
            Ok(cache::Condition::Doubtful) => {
                console::say(&format!("the cache disk {device} was not unmounted in order, checking it"));
                let check = self.jobs.spawn(Work::CheckDisk, cache::check_command(&device));
                check.map_err(|error| format!("cannot run e2fsck: {error}"))?;
                self.checked = true;
            }
            Err(error) => {
                self.fail(cache::is_damage(&error), format!("the cache disk {device} cannot be read: {error}"));
            }
        }
        Ok(())
    }

    fn turn(&mut self, signals: &OwnedFd) {
        let fds: Vec<_> = [signals.as_raw_fd()].into_iter().chain(self.control.fds()).collect();
        sys::wait_readable(&fds, self.patience());
        while let Some(signal) = sys::next_signal(signals) {
            if signal != libc::SIGCHLD {
                self.stop("a signal");
            }
        }
        while let Some((pid, how)) = sys::reap() {
            self.child_ended(pid, how);
        }
        for request in self.control.requests() {
            self.serve(request);
        }
        self.settle(Instant::now());
    }

    /// Goes on as long as one step leads to another without waiting.
    fn settle(&mut self, now: Instant) {
        loop {
            let before = self.phase.clone();
            self.advance(now);
            if self.phase == before {
                return;
            }
        }
    }

    /// How long there is nothing to do unless something happens.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let phase = match self.phase {
            Phase::Starting => Some(now + SOCKET_POLL),
            Phase::Draining { until } | Phase::Stopping { until } => Some(until),
            _ => None,
        };
        let look = self.control.needs_looks().then(|| now + LOOKS);
        // On its way off the cell starts none of them again.
        let due = [&self.buildkitd, &self.builder].map(|daemon| daemon.due().filter(|_| !self.is_ending()));
        let all = [phase, look, due[0], due[1], self.freeze.watchdog(), self.jobs.next_deadline()];
        all.into_iter().flatten().min().map_or(IDLE, |next| next.saturating_duration_since(now).min(IDLE))
    }

    fn mount(&mut self) {
        self.phase = Phase::Mounting;
        let device = self.settings.cache_device.clone();
        let (id, is_copy) = (self.settings.id.clone(), self.settings.cache_is_copy);
        let mount = move || {
            cache::mount(&device)?;
            owner::claim(Path::new(cache::MOUNT), &id, is_copy)
        };
        if let Err(error) = self.jobs.start(Work::MountDisk, None, mount) {
            self.fail(false, format!("cannot mount the cache disk: {error}"));
        }
    }

    /// The cell has no disk to work with. It stays, so that the host can ask why.
    fn fail(&mut self, of_disk: bool, why: String) {
        console::say(&format!("failed: {why}"));
        self.phase = Phase::Failed(Failure { of_disk, why });
    }

    fn checked(&mut self, how: Ended) {
        match cache::verdict(how, cache::is_ext4(&self.settings.cache_device)) {
            cache::Verdict::Usable => self.mount(),
            cache::Verdict::Damaged => self.fail(true, format!("the cache disk failed its check (e2fsck: {how})")),
            cache::Verdict::Unknown => self.fail(false, format!("the cache disk could not be checked (e2fsck: {how})")),
        }
    }

    fn mounted(&mut self) {
        self.warm = cache::is_warm();
        self.timeline.mark("disk");
        console::say(if self.warm { "the cache is warm" } else { "the cache is cold" });
        let device = File::open(&self.settings.cache_device).and_then(|disk| blockdev::size(&disk));
        let written =
            device.and_then(|size| buildkitd::write_config(&self.settings.buildkitd, &self.settings.network, size));
        if let Err(error) = written {
            return self.fail(false, format!("cannot write buildkitd's configuration: {error}"));
        }
        self.output = control::open_port(LOG_PORT, libc::O_WRONLY);
        self.start_buildkitd();
        self.timeline.mark("buildkitd started");
        let late = self.jobs.start(Work::LateModules, None, || {
            modules::load("/lib/modules/late.list");
            Ok(())
        });
        let rubbish = self.jobs.start(Work::RemoveRubbish, None, cache::remove_rubbish);
        // At each start: a growth that was broken off would never come again otherwise.
        let device = self.settings.cache_device.clone();
        let grow = self.jobs.start(Work::Resize, None, move || cache::grow(&device));
        for error in [late, rubbish, grow].into_iter().filter_map(Result::err) {
            console::say(&format!("cannot fork: {error}"));
        }
    }

    fn start_buildkitd(&mut self) {
        self.buildkitd.start(self.output.as_ref());
        self.phase = Phase::Starting;
        // It waits for buildkitd by itself, and has enough to do until that answers.
        if self.settings.builder_drain.is_some() && self.builder.is_off() {
            self.builder.start(self.output.as_ref());
        }
    }

    fn child_ended(&mut self, pid: i32, how: Ended) {
        if self.buildkitd.pid() == Some(pid) {
            let wanted = self.is_ending();
            self.buildkitd.ended(how, wanted);
            if !wanted {
                cleanup::after_buildkitd();
            }
        } else if self.builder.pid() == Some(pid) {
            self.builder.ended(how, self.is_ending());
        } else if let Some(job) = self.jobs.ended(pid) {
            self.job_ended(job, how);
        }
        // Anybody else was an orphan: what a step left running.
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Unmounting | Phase::Off)
    }

    fn job_ended(&mut self, job: Job, how: Ended) {
        let outcome = outcome(how);
        match (job.work, &outcome) {
            (Work::CheckDisk, _) if self.phase != Phase::Checking => {}
            (Work::CheckDisk, _) => self.checked(how),
            (Work::MountDisk, _) if self.phase != Phase::Mounting => {}
            (Work::MountDisk, Ok(())) => self.mounted(),
            (Work::MountDisk, Err(error)) => {
                self.fail(cache::is_damage(error), format!("the cache disk cannot be mounted: {error}"));
            }
            (Work::UnmountDisk, outcome) => {
                if let Err(why) = outcome {
                    console::say(&format!("the cache disk was not unmounted: {why}"));
                }
                self.phase = Phase::Off;
            }
            (Work::Freeze, _) => match self.freeze.after(how, job.request.is_some()) {
                Some(freeze) => self.freeze = freeze,
                None => self.thaw(None),
            },
            (Work::Thaw, outcome) => self.freeze = self.freeze.after_thaw(outcome.is_ok(), Instant::now()),
            (Work::Resize, Err(error)) => console::say(&format!("the cache disk's file system is not grown: {error}")),
            (Work::LateModules | Work::RemoveRubbish | Work::Resize, _) => {}
        }
        if let Some(id) = job.request {
            let outcome = outcome.map(|()| "").map_err(|error| error.to_string());
            self.control.answer(&id, outcome.as_ref().copied().map_err(String::as_str));
        }
    }

    /// What time alone brings about.
    fn advance(&mut self, now: Instant) {
        for (work, request) in self.jobs.give_up(now) {
            let why = format!("not done within {:?}", work.deadline());
            console::say(&format!("{work:?}: {why}"));
            if let Some(id) = request {
                self.control.answer(&id, Err(&why));
            }
            match work {
                Work::CheckDisk | Work::MountDisk => self.fail(false, format!("the cache disk: {work:?} {why}")),
                Work::UnmountDisk => self.phase = Phase::Off,
                _ => {}
            }
        }
        if self.freeze.watchdog().is_some_and(|until| until <= now) {
            console::say("thawing the cache disk: nobody did in time");
            self.thaw(None);
        }
        self.advance_daemons(now);
    }

    fn advance_daemons(&mut self, now: Instant) {
        match self.phase {
            Phase::Starting if self.buildkitd.due().is_some_and(|due| due <= now) => self.start_buildkitd(),
            Phase::Starting if UnixStream::connect(buildkitd::SOCKET).is_ok() => self.ready(),
            Phase::Running if self.buildkitd.pid().is_none() => self.phase = Phase::Starting,
            Phase::Starting | Phase::Running if self.builder.due().is_some_and(|due| due <= now) => {
                self.builder.start(self.output.as_ref());
            }
            Phase::Draining { until } if self.builder.is_off() || until <= now => {
                self.builder.stop(libc::SIGKILL);
                self.buildkitd.stop(libc::SIGTERM);
                self.phase = Phase::Stopping { until: now + self.settings.stop };
            }
            Phase::Stopping { until } if self.buildkitd.is_off() || until <= now => self.unmount(),
            _ => {}
        }
    }

    fn ready(&mut self) {
        self.phase = Phase::Running;
        if self.timeline.end("buildkitd answers") {
            console::say(&format!("ready: {}", self.timeline));
        }
    }

    /// Drain, stop, unmount, power off.
    fn stop(&mut self, who: &str) {
        if self.is_ending() {
            return;
        }
        console::say(&format!("stopping: {who} asks for it"));
        if self.freeze != Freeze::Thawed {
            self.thaw(None);
        }
        if matches!(self.phase, Phase::Checking | Phase::Mounting | Phase::Failed(_)) {
            self.phase = Phase::Off;
            return;
        }
        self.builder.stop(libc::SIGTERM);
        self.phase = Phase::Draining { until: Instant::now() + self.settings.builder_drain.unwrap_or_default() };
    }

    fn unmount(&mut self) {
        self.buildkitd.stop(libc::SIGKILL);
        cgroups::kill_builds();
        cleanup::after_buildkitd();
        self.jobs.let_go_of_disk();
        self.phase = match self.jobs.start(Work::UnmountDisk, None, cache::unmount) {
            Ok(()) => Phase::Unmounting,
            Err(_) => Phase::Off,
        };
    }

    fn thaw(&mut self, request: Option<String>) {
        self.freeze = Freeze::Thawing;
        if let Err(error) = self.jobs.start(Work::Thaw, request.clone(), freeze::thaw) {
            self.freeze = self.freeze.after_thaw(false, Instant::now());
            if let Some(id) = request {
                self.control.answer(&id, Err(&error.to_string()));
            }
        }
    }
}

/// A job's end as its answer: jobs end with an error's number.
fn outcome(how: Ended) -> std::io::Result<()> {
    match how {
        Ended::Exit(0) => Ok(()),
        Ended::Exit(number) => Err(std::io::Error::from_raw_os_error(number)),
        Ended::Signal(number) => Err(std::io::Error::other(format!("killed by signal {number}"))),
    }
}
