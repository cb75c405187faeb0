//! A guest, whichever program runs it.
//!
//! ```text
//!            start                      hello                 stop, or the guest's own end
//! (nothing) ──────► booting ───────────────────► settled ───────────────────────────────► ended
//!                      │ silent: killed,            ▲  running, or failed (disk)             why: see End
//!                      └─ started again             │
//!                         (a few times)   adopt ────┘  by process id and start time
//! ```
//!
//! Its process is nobody's ward: it goes on when its starter ends, and whoever comes next adopts it from the files in its directory. What
//! differs between QEMU and Firecracker is asked of [`crate::qemu`] and [`crate::firecracker`]: how they are started and told what the guest
//! is made of, where PID 1 is reached, how they pause, go on and see a disk that has grown.

mod copy;
mod end;
mod spawn;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

pub use end::End;

use crate::control::{Control, ControlError, Hello, Line, Phase, VSOCK_PORT};
use crate::firecracker::{self, ApiError};
use crate::machine::{Files, Machine, VmmKind};
use crate::qemu::{self, QmpError};
use crate::{GuestConfig, Process, logs};

/// How long the guest's program may take to listen on its sockets.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a killed one may take to be gone; only then are its disks free.
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
    /// The program, and where it comes from.
    #[error("cannot run {program}")]
    Spawn { program: String, source: io::Error },
    #[error("{why}")]
    Unfit { why: String },
    #[error("{vmm} did not start: {said}")]
    NotStarted { vmm: VmmKind, said: String },
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
    #[error(transparent)]
    Api(#[from] ApiError),
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
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    process: Process,
    /// Where this start's part of the console log begins.
    console_from: u64,
    #[serde(default)]
    vmm: VmmKind,
    /// The start of the machine in which it runs; none where a former version has written it.
    #[serde(default)]
    boot: Option<String>,
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
    /// Starts the guest's program; the guest boots meanwhile.
    ///
    /// # Errors
    /// When a guest runs from the directory already, files cannot be written, or the program does not start or does not take what the
    /// guest is made of (its words are in the error). Nothing runs then.
    pub async fn start(machine: &Machine, config: &GuestConfig) -> Result<Self, VmError> {
        if let Some(other) = Self::adopt(&machine.dir) {
            return Err(VmError::Running { dir: machine.dir.clone(), pid: other.record.process.pid });
        }
        let vmm = machine.vmm.kind();
        if let Some(why) = firecracker::unfit(machine).filter(|_| vmm == VmmKind::Firecracker) {
            return Err(VmError::Unfit { why });
        }
        let files =
            prepare(&machine.dir, config).map_err(|source| VmError::Prepare { dir: machine.dir.clone(), source })?;
        let console_from = std::fs::metadata(files.console()).map_or(0, |metadata| metadata.len());
        let process = spawn::spawn(machine, &files, &config.id).await?;
        let record = Record { process, console_from, vmm, boot: Process::boot() };
        let mut guest = Self { record, dir: machine.dir.clone(), files, control: None };
        match guest.started(machine).await {
            Ok(()) => Ok(guest),
            Err(error) => Err(guest.not_started(error).await?),
        }
    }

    /// Leaves nothing behind. A program that ended while it was told what to do has said more in its own last words.
    async fn not_started(&mut self, error: VmError) -> Result<VmError, VmError> {
        let broke = matches!(error, VmError::Api(ApiError::Broken { .. } | ApiError::Connect { .. }));
        let ended = broke && watch(self.record.process, ANSWER).await?;
        self.kill().await?;
        Ok(if ended { VmError::Ended(self.end()) } else { error })
    }

    /// Records who runs, waits until it listens, and tells it what it has not read from its command line.
    async fn started(&mut self, machine: &Machine) -> Result<(), VmError> {
        self.write_record()?;
        self.record.process = self.listening().await?;
        self.write_record()?;
        match self.record.vmm {
            VmmKind::Qemu => Ok(()),
            VmmKind::Firecracker => Ok(firecracker::configure(&self.files, machine).await?),
        }
    }

    async fn listening(&mut self) -> Result<Process, VmError> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(process) = self.itself().await {
                return Ok(process);
            }
            if !self.is_alive() || Instant::now() >= deadline {
                let vmm = self.record.vmm;
                let said = std::fs::read_to_string(self.files.vmm_log(vmm)).unwrap_or_default();
                return Err(VmError::NotStarted { vmm, said: logs::last_line(&said).to_owned() });
            }
            sleep(POLL).await;
        }
    }

    /// The guest's program once it listens. Under a supervisor the process that was started is that one's.
    async fn itself(&mut self) -> Option<Process> {
        match self.record.vmm {
            VmmKind::Qemu => {
                // The sockets are there a moment before the process id is.
                let pid = std::fs::read_to_string(self.files.pid()).ok()?;
                let process = Process::find(pid.trim().parse().ok()?)?;
                self.control = Some(Control::connect(&self.control_line()).await.ok()?);
                Some(process)
            }
            VmmKind::Firecracker => firecracker::listener(&self.files).await,
        }
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
            let mut hello = self.first_hello(patience.hello).await?;
            let control = self.control().await?;
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
                Err(VmError::Control(ControlError::Broken { .. } | ControlError::Connect { .. })) => {
                    watch(process, ANSWER).await?
                }
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

    /// The first answer of PID 1. A port takes the request before anybody listens, vsock takes no connection until then.
    async fn first_hello(&mut self, patience: Duration) -> Result<Hello, ControlError> {
        let deadline = Instant::now() + patience;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.control().await {
                Err(ControlError::Absent { .. }) if rest.is_zero() => {
                    return Err(ControlError::Silent { request: "hello".into(), deadline: patience });
                }
                Err(ControlError::Absent { .. }) => sleep(POLL).await,
                connected => return connected?.hello(rest).await,
            }
        }
    }

    /// The guest that runs from this directory, started by whomever; `None` when none does.
    pub fn adopt(dir: &Path) -> Option<Self> {
        let files = Files::new(dir);
        let record: Record = serde_json::from_slice(&std::fs::read(files.process()).ok()?).ok()?;
        let since_then = record.boot.is_some() && record.boot != Process::boot();
        (!since_then && record.process.is_alive()).then(|| Self { record, dir: dir.to_owned(), files, control: None })
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

    /// The host's end of the channel to PID 1.
    pub fn control_line(&self) -> Line {
        match self.record.vmm {
            VmmKind::Qemu => Line::Port(self.files.control()),
            VmmKind::Firecracker => Line::Vsock { socket: self.files.vsock(), port: VSOCK_PORT },
        }
    }

    /// The channel to PID 1, connected where it is not.
    ///
    /// # Errors
    /// When nobody listens there any more, or not yet.
    pub async fn control(&mut self) -> Result<&mut Control, ControlError> {
        let control = match self.control.take().filter(|control| !control.is_broken()) {
            Some(control) => control,
            None => Control::connect(&self.control_line()).await?,
        };
        Ok(self.control.insert(control))
    }

    /// Lets go of the channel to PID 1, which may serve one at a time.
    pub fn release(&mut self) {
        self.control = None;
    }

    /// Has the guest's program end at once: a power cut for the guest, with what it has written on the disks. Returns without waiting.
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

    /// Why it ended, by the last words on its console, else by those of a program that only writes when something is wrong.
    fn end(&self) -> End {
        let console = logs::tail(&self.files.console(), self.record.console_from);
        match (End::read(&console), self.record.vmm) {
            (End::Silent, VmmKind::Firecracker) => {
                let log = logs::tail(&self.files.vmm_log(VmmKind::Firecracker), 0);
                logs::said(&log).map_or(End::Silent, |line| End::Program(line.to_owned()))
            }
            (end, _) => end,
        }
    }

    /// Begins the logs of its console and its daemons anew where they have become too long. For as long as a guest runs, somebody has to.
    pub async fn shorten_logs(&self) {
        let files = self.files.clone();
        // Megabytes may have to be copied. One that was not done is done the next time.
        let _ = tokio::task::spawn_blocking(move || logs::shorten(&files)).await;
    }

    /// Holds all processors still. Nothing in the guest notices, its clock falls behind.
    ///
    /// # Errors
    /// When the guest's program does not take the command.
    pub async fn pause(&self) -> Result<(), VmError> {
        match self.record.vmm {
            VmmKind::Qemu => Ok(qemu::pause(&self.files).await?),
            VmmKind::Firecracker => Ok(firecracker::pause(&self.files).await?),
        }
    }

    /// Lets the guest go on and sets its clock; by how many milliseconds it was behind.
    ///
    /// # Errors
    /// When the guest's program or the guest does not answer.
    pub async fn resume(&mut self) -> Result<i64, VmError> {
        match self.record.vmm {
            VmmKind::Qemu => qemu::go_on(&self.files).await?,
            VmmKind::Firecracker => firecracker::go_on(&self.files).await?,
        }
        Ok(self.control().await?.set_time(ANSWER).await?)
    }

    /// Lets a guest go on that its program holds because the host had no space for what it wrote; whether there was such a one. Where
    /// there is none still it is held again at once. Firecracker gives such a write back to the guest as failed.
    ///
    /// # Errors
    /// When the guest's program does not answer.
    pub async fn retry_writes(&self) -> Result<bool, VmError> {
        let waits = match self.record.vmm {
            VmmKind::Qemu => qemu::waits_for_space(&self.files).await?,
            VmmKind::Firecracker => false,
        };
        if waits {
            qemu::go_on(&self.files).await?;
        }
        Ok(waits)
    }

    /// Tells the guest that `disk`, the file of its cache disk, has become `bytes` large, and has its file system grown.
    ///
    /// # Errors
    /// When the guest's program or the guest refuses.
    pub async fn grow_disk(&mut self, disk: &Path, bytes: u64, patience: Duration) -> Result<(), VmError> {
        match self.record.vmm {
            VmmKind::Qemu => qemu::grow_cache_disk(&self.files, bytes).await?,
            VmmKind::Firecracker => firecracker::grow_cache_disk(&self.files, disk).await?,
        }
        Ok(self.control().await?.resize(patience).await?)
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
    logs::shorten(&files);
    // A former life's would be taken for this one's, and Firecracker makes its sockets only where nothing is.
    for stale in [files.pid(), files.process(), files.api(), files.vsock()] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(files)
}
