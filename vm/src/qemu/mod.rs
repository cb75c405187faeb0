//! A guest under QEMU.
//!
//! ```text
//!            start                      hello                 stop, or the guest's own end
//! (nothing) ──────► booting ───────────────────► settled ───────────────────────────────► ended
//!                      │ silent: killed,            ▲  running, or failed (disk)             why: see End
//!                      └─ started again             │
//!                         (a few times)   adopt ────┘  by process id and start time
//! ```
//!
//! The QEMU process is nobody's ward: it goes on when its starter ends, and whoever comes next adopts it from the files in its directory.

mod accel;
mod command;
mod copy;
mod end;
mod qmp;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

pub use accel::{Accel, KvmError, kvm_opens, kvm_runs};
pub use command::{Files, HostNetwork, Machine, Supervisor};
pub use end::End;
pub use qmp::{Qmp, QmpError};

use super::control::{Control, ControlError, Hello, Phase};
use super::{GuestConfig, Process};

const QEMU: &str = "qemu-system-x86_64";
/// How long QEMU may take to listen on its sockets.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a killed QEMU may take to be gone; only then are its disks free.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// For requests that a guest answers at once.
const ANSWER: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("cannot prepare the guest's directory {}", dir.display())]
    Prepare { dir: PathBuf, source: io::Error },
    #[error("a guest runs from {} already (process {pid})", dir.display())]
    Running { dir: PathBuf, pid: i32 },
    #[error("cannot run {QEMU} (package qemu-system-x86)")]
    Spawn { source: io::Error },
    #[error("QEMU did not start: {said}")]
    NotStarted { said: String },
    #[error("the guest ended: {0}")]
    Ended(End),
    #[error("the guest did not boot within {patience:?}, {attempts} times")]
    Hung { attempts: u32, patience: Duration },
    #[error("the guest was not ready within {patience:?}, it is {phase:?}")]
    NotReady { phase: Phase, patience: Duration },
    #[error("the guest's process {pid} cannot be watched")]
    Process { pid: i32, source: io::Error },
    #[error("process {pid} does not end although it was killed")]
    Unkillable { pid: i32 },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// How long a boot may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until PID 1 answers. A guest that hangs in its kernel burns all its processors: it is killed then.
    pub hello: Duration,
    /// Until buildkitd answers after that. A check of a large disk is part of it.
    pub ready: Duration,
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { hello: Duration::from_secs(60), ready: Duration::from_secs(1200), attempts: 3 }
    }
}

/// What is kept of a running guest, so that it can be adopted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    process: Process,
    /// Where this start's part of the console log begins.
    console_from: u64,
}

/// A guest that runs, or ran.
#[derive(Debug)]
pub struct Guest {
    record: Record,
    dir: PathBuf,
    files: Files,
    control: Option<Control>,
}

impl Guest {
    /// Starts QEMU; the guest boots meanwhile.
    ///
    /// # Errors
    /// When a guest runs from the directory already, files cannot be written, or QEMU does not start (its words are in the error).
    pub async fn start(machine: &Machine, config: &GuestConfig) -> Result<Self, VmError> {
        if let Some(other) = Self::adopt(&machine.dir) {
            return Err(VmError::Running { dir: machine.dir.clone(), pid: other.record.process.pid });
        }
        let files =
            prepare(&machine.dir, config).map_err(|source| VmError::Prepare { dir: machine.dir.clone(), source })?;
        let console_from = std::fs::metadata(files.console()).map_or(0, |metadata| metadata.len());
        let tsc_khz = if machine.accel == Accel::Tcg { accel::tsc_khz().await } else { None };
        let process = spawn(machine, &files, tsc_khz)?;
        let record = Record { process, console_from };
        let mut guest = Self { record, dir: machine.dir.clone(), files, control: None };
        if let Err(error) = guest.started().await {
            guest.kill().await?;
            return Err(error);
        }
        Ok(guest)
    }

    /// Records who runs, and waits until QEMU listens. Under a supervisor the process is that one's until QEMU has said its own.
    async fn started(&mut self) -> Result<(), VmError> {
        self.write_record()?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            // The sockets are there a moment before the process id is.
            if let Some(process) = self.qemu()
                && let Ok(control) = Control::connect(&self.files.control()).await
            {
                self.record.process = process;
                self.control = Some(control);
                return self.write_record();
            }
            if !self.is_alive() || Instant::now() >= deadline {
                let said = std::fs::read_to_string(self.files.qemu_log()).unwrap_or_default();
                return Err(VmError::NotStarted { said: last_line(&said).to_owned() });
            }
            sleep(POLL).await;
        }
    }

    /// QEMU itself, once it has written who it is.
    fn qemu(&self) -> Option<Process> {
        let pid = std::fs::read_to_string(self.files.pid()).ok()?;
        Process::find(pid.trim().parse().ok()?)
    }

    /// Whole or not at all: an agent may be killed at any moment.
    fn write_record(&self) -> Result<(), VmError> {
        let file = self.files.process();
        let written = || {
            let temporary = file.with_extension("new");
            std::fs::write(&temporary, serde_json::to_vec(&self.record)?)?;
            std::fs::rename(temporary, &file)
        };
        written().map_err(|source| VmError::Prepare { dir: self.dir.clone(), source })
    }

    /// Starts a guest and waits until buildkitd answers in it, or its disk is found to be of no use ([`Phase::Failed`]). One that does
    /// not boot is killed and started again.
    ///
    /// # Errors
    /// When no attempt came through. Nothing runs then.
    pub async fn boot(machine: &Machine, config: &GuestConfig, patience: Patience) -> Result<(Self, Hello), VmError> {
        for attempt in 1..=patience.attempts.max(1) {
            let mut guest = Self::start(machine, config).await?;
            match guest.settled(patience).await {
                Ok(hello) => return Ok((guest, hello)),
                Err(VmError::Control(ControlError::Silent { .. })) => {
                    tracing::warn!(attempt, dir = %machine.dir.display(), "the guest hangs in its boot, it is killed");
                    guest.kill().await?;
                }
                Err(error) => {
                    guest.kill().await?;
                    return Err(error);
                }
            }
        }
        Err(VmError::Hung { attempts: patience.attempts, patience: patience.hello })
    }

    /// Waits until the guest is running or has failed (or is on its way off already), and sets its clock.
    ///
    /// # Errors
    /// [`ControlError::Silent`] when PID 1 did not answer in time, [`VmError::NotReady`] when buildkitd did not.
    pub async fn settled(&mut self, patience: Patience) -> Result<Hello, VmError> {
        let process = self.record.process;
        let settle = async {
            let control = self.control().await?;
            let mut hello = control.hello(patience.hello).await?;
            control.set_time(ANSWER).await?;
            let deadline = Instant::now() + patience.ready;
            while hello.phase.is_passing() {
                if Instant::now() >= deadline {
                    return Err(VmError::NotReady { phase: hello.phase, patience: patience.ready });
                }
                sleep(POLL).await;
                hello = control.hello(ANSWER).await?;
            }
            Ok(hello)
        };
        let lost = tokio::select! {
            settled = settle => match settled {
                // The channel breaks a moment before the process is gone.
                Err(VmError::Control(ControlError::Broken { .. })) => watch(process, ANSWER).await?,
                settled => return settled,
            },
            ended = watch(process, patience.hello + patience.ready) => ended?,
        };
        if lost {
            Err(VmError::Ended(self.end()))
        } else {
            Err(VmError::Hung { attempts: 1, patience: patience.hello })
        }
    }

    /// The guest that runs from this directory, started by whomever; `None` when none does.
    pub fn adopt(dir: &Path) -> Option<Self> {
        let files = Files::new(dir);
        let record: Record = serde_json::from_slice(&std::fs::read(files.process()).ok()?).ok()?;
        record.process.is_alive().then(|| Self { record, dir: dir.to_owned(), files, control: None })
    }

    pub fn process(&self) -> Process {
        self.record.process
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    pub fn is_alive(&self) -> bool {
        self.record.process.is_alive()
    }

    /// The channel to PID 1, connected where it is not.
    ///
    /// # Errors
    /// When QEMU does not listen any more.
    pub async fn control(&mut self) -> Result<&mut Control, ControlError> {
        let control = match self.control.take().filter(|control| !control.is_broken()) {
            Some(control) => control,
            None => Control::connect(&self.files.control()).await?,
        };
        Ok(self.control.insert(control))
    }

    /// Lets go of the channel to PID 1, which serves one at a time.
    pub fn release(&mut self) {
        self.control = None;
    }

    /// Has QEMU end at once: a power cut for the guest, with what it has written on the disks. Returns without waiting.
    pub fn cut_off(&self) {
        self.record.process.signal(libc::SIGTERM);
    }

    /// Drains, stops and powers off within `patience`; whoever has not ended by then is cut off, which loses running builds only.
    ///
    /// # Errors
    /// When the process can neither be watched nor killed.
    pub async fn stop(&mut self, patience: Duration) -> Result<End, VmError> {
        let asked = match self.control().await {
            Ok(control) => control.stop(ANSWER).await,
            Err(error) => Err(error),
        };
        if let Err(error) = asked {
            tracing::warn!(%error, dir = %self.dir.display(), "the guest does not take the request to stop, its power is cut");
        } else if watch(self.record.process, patience).await? {
            return Ok(self.end());
        }
        self.kill().await?;
        Ok(self.end())
    }

    /// Cuts the power. Returns when the process is gone and its disks are free.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<(), VmError> {
        let process = self.record.process;
        let pid = process.pid;
        self.control = None;
        let gone = process.kill(KILL_PATIENCE).await.map_err(|source| VmError::Process { pid, source })?;
        if gone { Ok(()) } else { Err(VmError::Unkillable { pid }) }
    }

    /// Waits for the guest's own end; `None` when it still runs after `patience`.
    ///
    /// # Errors
    /// When the process cannot be watched.
    pub async fn ended(&self, patience: Duration) -> Result<Option<End>, VmError> {
        Ok(watch(self.record.process, patience).await?.then(|| self.end()))
    }

    /// Why it ended, by the last words on its console.
    fn end(&self) -> End {
        let console = std::fs::read(self.files.console()).unwrap_or_default();
        let from = usize::try_from(self.record.console_from).unwrap_or(usize::MAX).min(console.len());
        End::read(&String::from_utf8_lossy(&console[from..]))
    }

    /// Holds all processors still. Nothing in the guest notices, its clock falls behind.
    ///
    /// # Errors
    /// When QEMU does not take the command.
    pub async fn pause(&self) -> Result<(), VmError> {
        self.qmp("stop", json!({})).await
    }

    /// Lets the guest go on and sets its clock; by how many milliseconds it was behind.
    ///
    /// # Errors
    /// When QEMU or the guest does not answer.
    pub async fn resume(&mut self) -> Result<i64, VmError> {
        self.qmp("cont", json!({})).await?;
        Ok(self.control().await?.set_time(ANSWER).await?)
    }

    /// Tells the guest that the file of its cache disk has become larger, and has its file system grown.
    ///
    /// # Errors
    /// When QEMU or the guest refuses.
    pub async fn grow_disk(&mut self, bytes: u64, patience: Duration) -> Result<(), VmError> {
        self.qmp("block_resize", json!({ "device": "cache", "size": bytes })).await?;
        Ok(self.control().await?.resize(patience).await?)
    }

    async fn qmp(&self, command: &str, arguments: serde_json::Value) -> Result<(), VmError> {
        let mut qmp = Qmp::connect(&self.files.qmp(), ANSWER).await?;
        qmp.execute(command, arguments, ANSWER).await?;
        Ok(())
    }
}

async fn watch(process: Process, patience: Duration) -> Result<bool, VmError> {
    process.ended(patience).await.map_err(|source| VmError::Process { pid: process.pid, source })
}

fn prepare(dir: &Path, config: &GuestConfig) -> io::Result<Files> {
    std::fs::create_dir_all(dir)?;
    // Whoever can reach the sockets rules the guest.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    let files = Files::new(dir);
    config.write(&files.config_disk())?;
    // A former life's would be taken for this one's.
    for stale in [files.pid(), files.process()] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(files)
}

/// In a session of its own, so that nothing that ends its starter ends the guest.
fn spawn(machine: &Machine, files: &Files, tsc_khz: Option<u64>) -> Result<Process, VmError> {
    let failed = |source| VmError::Spawn { source };
    let log = std::fs::File::create(files.qemu_log()).map_err(failed)?;
    let mut command = program(machine).map_err(failed)?;
    command.args(command::arguments(machine, tsc_khz));
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    let pinned = processors(&machine.pinned_to).map_err(failed)?;
    let enter = move || {
        nix::unistd::setsid()?;
        if let Some(pinned) = &pinned {
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), pinned)?;
        }
        Ok(())
    };
    // SAFETY: both calls are async-signal-safe and allocate nothing.
    unsafe { command.pre_exec(enter) };
    // A dropped handle leaves the process running; the runtime reaps it when it ends.
    let child = command.spawn().map_err(failed)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    // Ended within this instant: its log says why.
    Ok(Process::find(pid).unwrap_or(Process { pid, started: 0 }))
}

/// QEMU, or its supervisor with QEMU as its argument.
fn program(machine: &Machine) -> io::Result<Command> {
    let Some(supervisor) = &machine.supervisor else {
        let mut qemu = Command::new(QEMU);
        qemu.stdin(Stdio::null());
        return Ok(qemu);
    };
    let (program, arguments) = supervisor.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).arg(QEMU).stdin(supervisor.stdin.try_clone()?);
    Ok(command)
}

fn processors(pinned_to: &[usize]) -> io::Result<Option<nix::sched::CpuSet>> {
    if pinned_to.is_empty() {
        return Ok(None);
    }
    let mut set = nix::sched::CpuSet::new();
    for processor in pinned_to {
        set.set(*processor)?;
    }
    Ok(Some(set))
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing")
}
