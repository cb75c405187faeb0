//! The processes of `kiln dev`: each under a guard, restarted when it ends unasked, ended in order.

use std::ffi::OsString;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::data::DataDir;
use crate::cell::{self, GuardOptions};
use crate::{settings, terminal};

/// The wait before a restart: the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A child that ran so long is healthy: its next restart starts from the first wait again.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a killed guard may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// When a child ends, compared with the others: the lower the earlier. The later ones serve the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    Cells,
    Roles,
    Services,
}

impl Turn {
    const ALL: [Self; 3] = [Self::Cells, Self::Roles, Self::Services];

    /// How long the children of this turn may take to end before they are killed. All together: less than ten seconds.
    fn grace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Cells => 6000,
            Self::Roles => 1500,
            Self::Services => 1500,
        })
    }
}

/// A process to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Names it on standard error and its log file.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// It keeps processes of its own: it gets the pipe that ends them as its standard input, and its standard output is for the person at
    /// the terminal.
    pub supervises: bool,
    pub turn: Turn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Run,
    End,
    Kill,
}

/// All children, and the pipe they watch.
pub struct Children {
    shared: Arc<Shared>,
    /// Never written to. It closes with this process, however that ends, and every guard ends its child then.
    _lifeline: PipeWriter,
    running: Vec<(Turn, watch::Sender<Order>, JoinHandle<()>)>,
}

struct Shared {
    pipe: PipeReader,
    kiln: PathBuf,
    hold: PathBuf,
    logs: PathBuf,
}

impl Children {
    pub fn new(data: &DataDir) -> anyhow::Result<Self> {
        let (pipe, lifeline) = std::io::pipe()?;
        // Resolved once: the name changes when a build replaces the file.
        let kiln = std::env::current_exe()?;
        let shared = Shared { pipe, kiln, hold: data.children_lock(), logs: data.path().join("logs") };
        Ok(Self { shared: Arc::new(shared), _lifeline: lifeline, running: Vec::new() })
    }

    /// Starts a child and keeps it running.
    pub fn start(&mut self, spec: Spec) {
        let (order, orders) = watch::channel(Order::Run);
        let turn = spec.turn;
        let task = tokio::spawn(keep_running(self.shared.clone(), spec, orders));
        self.running.push((turn, order, task));
    }

    /// Ends all children in order; those that take too long are killed. Returns when none is left.
    pub async fn end(&mut self) {
        for turn in Turn::ALL {
            self.order(turn, Order::End);
            if tokio::time::timeout(turn.grace(), self.ended(turn)).await.is_err() {
                self.order(turn, Order::Kill);
                let _ = tokio::time::timeout(KILL_PATIENCE, self.ended(turn)).await;
            }
        }
    }

    /// Kills all children at once. Those that are not gone soon end with the pipe.
    pub async fn kill(&mut self) {
        Turn::ALL.iter().for_each(|turn| self.order(*turn, Order::Kill));
        for turn in Turn::ALL {
            let _ = tokio::time::timeout(KILL_PATIENCE, self.ended(turn)).await;
        }
    }

    fn order(&self, turn: Turn, order: Order) {
        for (_, sender, _) in self.running.iter().filter(|(of, ..)| *of == turn) {
            sender.send_replace(order);
        }
    }

    async fn ended(&mut self, turn: Turn) {
        for (_, _, task) in self.running.iter_mut().filter(|(of, _, task)| *of == turn && !task.is_finished()) {
            let _ = task.await;
        }
    }
}

/// Runs the child until it is ordered to end, and starts it again when it ends without.
async fn keep_running(shared: Arc<Shared>, spec: Spec, mut orders: watch::Receiver<Order>) {
    let mut wait = BACKOFF.0;
    loop {
        let started = Instant::now();
        let ended = match shared.spawn(&spec) {
            Ok(child) => match until_end(child, &mut orders).await {
                End::Ordered => return,
                End::Unasked(status) => format!("ended ({status})"),
            },
            Err(error) => format!("cannot be started ({error:#})"),
        };
        if started.elapsed() > HEALTHY {
            wait = BACKOFF.0;
        }
        terminal::note(format_args!(
            "kiln dev: {} {ended}, starting it again in {wait:?}; see {}",
            spec.name,
            shared.log(&spec).display()
        ));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = orders.wait_for(|order| *order != Order::Run) => return,
        }
        wait = (wait * 2).min(BACKOFF.1);
    }
}

enum End {
    Ordered,
    Unasked(ExitStatus),
}

/// Passes orders on to the guard until it is gone.
async fn until_end(mut child: Child, orders: &mut watch::Receiver<Order>) -> End {
    let mut given = Order::Run;
    loop {
        tokio::select! {
            status = child.wait() => {
                return match (given, status) {
                    (Order::Run, Ok(status)) => End::Unasked(status),
                    _ => End::Ordered,
                };
            }
            order = next_order(orders, given) => {
                given = order;
                signal(&child, if given == Order::Kill { Signal::SIGQUIT } else { Signal::SIGTERM });
            }
        }
    }
}

/// An order beyond the one already given.
async fn next_order(orders: &mut watch::Receiver<Order>, given: Order) -> Order {
    if let Ok(order) = orders.wait_for(|order| *order > given).await {
        return *order;
    }
    // Nobody is left to give one.
    std::future::pending().await
}

fn signal(guard: &Child, signal: Signal) {
    if let Some(pid) = guard.id() {
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
    }
}

impl Shared {
    fn log(&self, spec: &Spec) -> PathBuf {
        self.logs.join(format!("{}.log", spec.name))
    }

    fn spawn(&self, spec: &Spec) -> anyhow::Result<Child> {
        let options = GuardOptions { hold: Some(self.hold.clone()), hand_on: spec.supervises, ..Default::default() };
        let mut guard = cell::guarded(&self.kiln, &options, &spec.program, &self.pipe)?;
        let log = cell::open_log(&self.log(spec)).context("cannot open its log")?;
        let told = match spec.supervises {
            true => std::io::stderr().as_fd().try_clone_to_owned()?,
            false => log.try_clone()?.into(),
        };
        guard.args(&spec.args).stdout(told).stderr(log);
        // The settings files say it all: what this shell has set for clients must not reach the parts.
        settings::forget_variables(&mut guard);
        Ok(Command::from(guard).spawn()?)
    }
}
