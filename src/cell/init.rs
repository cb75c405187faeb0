//! `kiln __cell-init --config FILE`: PID 1 of a cell.
//!
//! ```text
//! starting ──► running ──► draining ──► stopping ──► ended
//!  socket       builder      SIGTERM:     builder      all processes killed and reaped,
//!  answers      restarted    builder      is gone:     cards and rules removed
//!               with backoff drains       buildkitd
//!                                         stops
//! in any state: buildkitd ended, the guard's pipe closed, SIGQUIT or a second SIGTERM ──► ended
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::network::{self, Made, Network};
use super::plan::Plan;
use super::watch::{Event, Watch, unblocked};
use super::{SettingsOf, buildkitd, leftovers, steps};

pub const ROLE: &str = "__cell-init";

/// How often a socket that does not answer yet is tried again.
const SOCKET_POLL: Duration = Duration::from_millis(20);
/// The builder's restarts: the first wait and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A builder that ran so long is healthy: its next restart starts from the first wait again.
const HEALTHY: Duration = Duration::from_secs(30);
/// How long the former life of the cell may take to be gone.
const FORMER_LIFE: Duration = Duration::from_secs(15);
/// Directories whose content belongs to this life of the cell only: runc's container states, BuildKit's trace socket, address leases.
const EPHEMERAL: [&str; 3] = ["/run/runc", "/run/buildkit", "/var/lib/cni"];

pub fn run(args: Vec<OsString>, settings_of: SettingsOf) -> anyhow::Result<ExitCode> {
    let [flag, file] = args.as_slice() else { anyhow::bail!("usage: kiln {ROLE} --config FILE") };
    anyhow::ensure!(flag == "--config", "usage: kiln {ROLE} --config FILE");
    anyhow::ensure!(Pid::this().as_raw() == 1, "only for PID 1 of a cell's namespace");
    let plan = Plan::read(Path::new(file))?;
    let pipe = io::stdin().as_fd().try_clone_to_owned().context("standard input must be the guard's pipe")?;
    let mut watch = Watch::new(pipe.as_fd())?;

    let _sole = only_life(&plan.dir)?;
    leftovers::clear(&plan);
    private_mounts()?;
    // The builder will read the same files and variables, and has the same command line. Where it cannot, it says so itself.
    let mut asked = settings_of(&plan.builder).map(|settings| settings.network_asked()).unwrap_or_default();
    asked
        .services
        .extend(plan.mirror.iter().chain(&plan.plain_http).filter_map(|mirror| mirror.parse::<SocketAddr>().ok()));
    asked.services.retain(|service| service.ip().is_loopback());
    let unlimited = steps::set_up(&plan)?;
    if !unlimited.is_empty() {
        crate::terminal::note(format_args!("steps cannot be limited on this machine in: {}", unlimited.join(", ")));
    }
    let made = Network::set_up(&plan, &asked)?;
    write_configuration(&plan, &made)?;
    let Made { network, namespace, claim: _claim, .. } = made;
    let told = Told { forwarder: network.forwarder(), unlimited };
    let ended = Cell::start(&plan, told, namespace).and_then(|cell| cell.live(&mut watch));
    kill_all();
    network.tear_down();
    leftovers::remove_cgroups(&plan);
    ended
}

fn write_configuration(plan: &Plan, made: &Made) -> anyhow::Result<()> {
    let mut files =
        vec![(buildkitd::config_file(plan), buildkitd::config(plan, &made.network, made.network.forwarder())?)];
    if let Network::Own { subnet, .. } = &made.network {
        let resolvers = made.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        files.push((buildkitd::network_config(plan), network::configuration(*subnet)));
        files.push((buildkitd::resolv_conf(plan), resolvers));
    }
    for (file, text) in files {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Has the daemon begin in its own network namespace, where it asks the resolvers of that file.
fn enter(command: &mut Command, namespace: File, resolv_conf: PathBuf) {
    const RESOLVERS: &str = "/etc/resolv.conf";
    let asks = Path::new(RESOLVERS).exists();
    let enter = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        if asks {
            mount(Some(&resolv_conf), RESOLVERS, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls with what it was given; paths of this length are copied to the stack.
    unsafe { command.pre_exec(enter) };
}

/// Holds the cache disk for this life of the cell. A former one whose guard was killed may still be on its way out.
fn only_life(dir: &Path) -> anyhow::Result<File> {
    let lock = File::create(dir.join("lock")).with_context(|| format!("cannot write in {}", dir.display()))?;
    let deadline = Instant::now() + FORMER_LIFE;
    while let Err(taken) = lock.try_lock() {
        anyhow::ensure!(Instant::now() < deadline, "the former life of this cell does not end ({taken})");
        std::thread::sleep(SOCKET_POLL);
    }
    Ok(lock)
}

/// `/proc` of the cell's own PID namespace, and empty directories where tools keep state of running processes.
fn private_mounts() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), flags | MsFlags::MS_NOEXEC, None::<&str>)
        .context("cannot mount /proc")?;
    for dir in EPHEMERAL {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=0755"))
            .with_context(|| format!("cannot mount {dir}"))?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Running,
    Draining { until: Instant },
    Stopping { until: Instant },
}

struct Cell<'plan> {
    plan: &'plan Plan,
    told: Told,
    state: State,
    buildkitd: Pid,
    builder: Builder,
}

/// What the builder is told of the cell, by variables of its settings.
struct Told {
    /// Where it answers for names.
    forwarder: Option<SocketAddr>,
    /// What the machine cannot limit for steps.
    unlimited: Vec<String>,
}

/// The builder, or when it is started next.
enum Builder {
    Running {
        pid: Pid,
        since: Instant,
        wait: Duration,
    },
    Waiting {
        until: Instant,
        wait: Duration,
    },
    /// Not started again: the cell ends, or buildkitd does not answer yet.
    Off,
}

impl<'plan> Cell<'plan> {
    fn start(plan: &'plan Plan, told: Told, namespace: Option<File>) -> anyhow::Result<Self> {
        let mut command = buildkitd::command(plan);
        if let Some(namespace) = namespace {
            enter(&mut command, namespace, buildkitd::resolv_conf(plan));
        }
        let buildkitd = spawn(command, &plan.logs.buildkitd).context("cannot start buildkitd")?;
        Ok(Self { plan, told, state: State::Starting, buildkitd, builder: Builder::Off })
    }

    /// Until the cell's end; the exit code says whether it was asked for.
    fn live(mut self, watch: &mut Watch) -> anyhow::Result<ExitCode> {
        loop {
            let event = watch.next(self.patience())?;
            match event {
                Event::SupervisorGone | Event::Kill => return Ok(ExitCode::SUCCESS),
                Event::Terminate => match self.state {
                    State::Starting => self.stop(),
                    State::Running => self.drain(),
                    State::Draining { .. } | State::Stopping { .. } => return Ok(ExitCode::SUCCESS),
                },
                Event::Child => {
                    if let Some(status) = self.reap()? {
                        if matches!(self.state, State::Stopping { .. }) {
                            return Ok(ExitCode::SUCCESS);
                        }
                        anyhow::bail!("buildkitd ended ({status}), see {}", self.plan.logs.buildkitd.display());
                    }
                }
                Event::Quiet => {}
            }
            if self.overdue() {
                return Ok(ExitCode::SUCCESS);
            }
            self.advance()?;
        }
    }

    /// How long there is nothing to do without an event.
    fn patience(&self) -> Option<Duration> {
        let left = |until: Instant| Some(until.saturating_duration_since(Instant::now()));
        match (self.state, &self.builder) {
            (State::Starting, _) => Some(SOCKET_POLL),
            (State::Draining { until } | State::Stopping { until }, _) => left(until),
            (State::Running, Builder::Waiting { until, .. }) => left(*until),
            (State::Running, _) => None,
        }
    }

    /// Whether the last grace is used up.
    fn overdue(&self) -> bool {
        matches!(self.state, State::Stopping { until } if until <= Instant::now())
    }

    /// What time alone brings about.
    fn advance(&mut self) -> anyhow::Result<()> {
        match (self.state, &self.builder) {
            (State::Starting, _) if UnixStream::connect(&self.plan.socket).is_ok() => {
                self.state = State::Running;
                self.start_builder(BACKOFF.0)
            }
            (State::Running, Builder::Waiting { until, wait }) if *until <= Instant::now() => self.start_builder(*wait),
            (State::Draining { until }, Builder::Running { pid, .. }) if until <= Instant::now() => {
                let _ = kill(*pid, Signal::SIGKILL);
                self.stop();
                Ok(())
            }
            (State::Draining { .. }, Builder::Off) => {
                self.stop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn start_builder(&mut self, wait: Duration) -> anyhow::Result<()> {
        let (program, args) = self.plan.builder.split_first().context("the plan names no builder")?;
        let mut command = Command::new(program);
        command.args(args);
        if let Some(forwarder) = self.told.forwarder {
            command.env("KILN_DNS_LISTEN", forwarder.to_string());
        }
        if !self.told.unlimited.is_empty() {
            // The variable of a list separates its parts by commas.
            let parts: Vec<_> = self.told.unlimited.iter().map(|part| part.replace(',', ";")).collect();
            command.env("KILN_CELL_UNLIMITED", parts.join(","));
        }
        let pid = spawn(command, &self.plan.logs.builder).context("cannot start the builder")?;
        self.builder = Builder::Running { pid, since: Instant::now(), wait };
        Ok(())
    }

    fn drain(&mut self) {
        if let Builder::Running { pid, .. } = self.builder {
            let _ = kill(pid, Signal::SIGTERM);
        } else {
            self.builder = Builder::Off;
        }
        self.state = State::Draining { until: Instant::now() + Duration::from_millis(self.plan.limits.drain_ms) };
    }

    fn stop(&mut self) {
        let _ = kill(self.buildkitd, Signal::SIGTERM);
        self.state = State::Stopping { until: Instant::now() + Duration::from_millis(self.plan.limits.stop_ms) };
    }

    /// Reaps all dead children, the cell's own and orphans; says so when buildkitd is among them.
    fn reap(&mut self) -> anyhow::Result<Option<String>> {
        while let Some((pid, how)) = dead_child()? {
            if pid == self.buildkitd {
                return Ok(Some(how));
            }
            if matches!(self.builder, Builder::Running { pid: builder, .. } if builder == pid) {
                self.builder_ended(&how);
            }
        }
        Ok(None)
    }

    fn builder_ended(&mut self, how: &str) {
        let Builder::Running { since, wait, .. } = self.builder else { return };
        if self.state != State::Running {
            self.builder = Builder::Off;
            return;
        }
        let wait = if since.elapsed() > HEALTHY { BACKOFF.0 } else { wait };
        crate::terminal::note(format_args!(
            "the builder ended ({how}), starting it again in {wait:?}; see {}",
            self.plan.logs.builder.display()
        ));
        self.builder = Builder::Waiting { until: Instant::now() + wait, wait: (wait * 2).min(BACKOFF.1) };
    }
}

fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Pid> {
    let log = super::open_log(log).with_context(|| format!("cannot open {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    unblocked(&mut command);
    let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    // Reaped by number with all others; the handle would do nothing when dropped.
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// The next child that died, without waiting for one.
fn dead_child() -> nix::Result<Option<(Pid, String)>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Some((pid, format!("exit code {code}")))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Ok(Some((pid, signal.to_string()))),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Everything in the namespace but PID 1 itself, which waits until all of it is gone.
fn kill_all() {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while waitpid(None, None).is_ok() {}
}
