//! `kiln __guard [--namespaces] [--claim FILE] [--hold FILE] [--hand-on] -- COMMAND…`: runs one command and sees to it that it does
//! not outlive its supervisor.
//!
//! Standard input is the reading end of a pipe whose writing end the supervisor holds. SIGTERM is passed on to the command; when the
//! pipe closes the command is asked to end, then killed with its process group. SIGQUIT kills it at once. With a standard input that
//! is no pipe (`/dev/null`) the command has no supervisor: it ends by signals only, which is how cells outlive their host's agent.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use activities::vm::{Identity, Lock};
use anyhow::Context;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::watch::{Event, Watch, unblocked};

pub const ROLE: &str = "__guard";

/// How long a command may take to end by itself once its supervisor is gone. Nobody waits for it but the next start.
const GRACE: Duration = Duration::from_secs(2);

/// How a guard holds its command.
#[derive(Debug, Clone, Default)]
pub struct GuardOptions {
    /// The command becomes PID 1 of a PID namespace of its own, in a private mount namespace, and gets a pipe as its standard input
    /// that closes with the guard.
    pub namespaces: bool,
    /// A file that the guard locks for as long as it lives, and in which it says who it is: there is no second guard beside it, and
    /// who did not start it can find it.
    pub claim: Option<PathBuf>,
    /// A file on which the guard holds a shared lock for as long as it lives, so that a next start can wait for it.
    pub hold: Option<PathBuf>,
    /// The command gets the supervisor's pipe as its own standard input, to hand it on to guards that it starts.
    pub hand_on: bool,
}

/// The command line that runs `program` under a guard (this binary, `kiln`); `supervisor` is the reading end of the pipe that the
/// caller holds open. Arguments of the program are added by the caller.
///
/// # Errors
/// When the pipe cannot be duplicated.
pub fn command(kiln: &Path, options: &GuardOptions, program: &Path, supervisor: impl AsFd) -> io::Result<Command> {
    let mut command = Command::new(kiln);
    command.arg(ROLE);
    if options.namespaces {
        command.arg("--namespaces");
    }
    for (flag, file) in [("--claim", &options.claim), ("--hold", &options.hold)] {
        if let Some(file) = file {
            command.arg(flag).arg(file);
        }
    }
    if options.hand_on {
        command.arg("--hand-on");
    }
    // A process group of its own: Ctrl-C on the terminal reaches the supervisor alone, which ends its children in order.
    command.arg("--").arg(program).process_group(0);
    command.stdin(Stdio::from(supervisor.as_fd().try_clone_to_owned()?));
    Ok(command)
}

/// The guard itself. The exit code is the command's own, 128 + the signal's number when one killed it.
pub fn run(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let (options, argv) = parse(args)?;
    let _claimed = options.claim.as_deref().map(claim).transpose()?;
    let _held = options.hold.as_deref().map(hold).transpose()?;
    let supervisor =
        io::stdin().as_fd().try_clone_to_owned().context("standard input must be the supervisor's pipe")?;
    let mut watch = Watch::new(supervisor.as_fd()).context("cannot watch signals")?;
    if options.namespaces {
        unshare().context("cannot make PID and mount namespaces (root is needed)")?;
    }
    let ward = Ward::spawn(&options, &argv)?;
    let status = ward.watch_over(&mut watch)?;
    Ok(exit_code(status))
}

fn parse(args: Vec<OsString>) -> anyhow::Result<(GuardOptions, Vec<OsString>)> {
    let mut options = GuardOptions::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--namespaces") => options.namespaces = true,
            Some("--hand-on") => options.hand_on = true,
            Some("--claim") => options.claim = Some(args.next().context("--claim takes a file")?.into()),
            Some("--hold") => options.hold = Some(args.next().context("--hold takes a file")?.into()),
            Some("--") => break,
            _ => anyhow::bail!("unknown argument {}", arg.display()),
        }
    }
    let argv: Vec<_> = args.collect();
    anyhow::ensure!(!argv.is_empty(), "no command");
    Ok((options, argv))
}

fn claim(file: &Path) -> anyhow::Result<Lock> {
    let own = Identity::of(std::process::id()).context("cannot read /proc")?;
    Ok(Lock::take(file, &serde_json::to_string(&own)?)?)
}

fn hold(file: &Path) -> anyhow::Result<File> {
    let held = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    held.try_lock_shared().with_context(|| format!("cannot lock {}", file.display()))?;
    Ok(held)
}

/// From here on children are born into the new PID namespace; the guard itself moves into the mount namespace.
fn unshare() -> nix::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// The guarded command.
struct Ward {
    child: Child,
    /// What a namespaced command watches; dropping it ends the command.
    lifeline: Option<PipeWriter>,
}

impl Ward {
    fn spawn(options: &GuardOptions, argv: &[OsString]) -> anyhow::Result<Self> {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).process_group(0);
        unblocked(&mut command);
        let lifeline = if options.namespaces {
            let (reader, writer) = io::pipe()?;
            command.stdin(Stdio::from(OwnedFd::from(reader)));
            Some(writer)
        } else {
            command.stdin(if options.hand_on { Stdio::inherit() } else { Stdio::null() });
            die_with_guard(&mut command);
            None
        };
        let child = command.spawn().with_context(|| format!("cannot start {}", argv[0].display()))?;
        Ok(Self { child, lifeline })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the command's end, and brings it about when the supervisor wants or is gone.
    fn watch_over(mut self, watch: &mut Watch) -> anyhow::Result<ExitStatus> {
        let mut deadline: Option<Instant> = None;
        loop {
            let patience = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match watch.next(patience)? {
                Event::Child => {
                    if let Some(status) = self.child.try_wait()? {
                        // What the command started and left behind goes with it.
                        let _ = killpg(self.pid(), Signal::SIGKILL);
                        return Ok(status);
                    }
                }
                Event::Terminate => {
                    let _ = kill(self.pid(), Signal::SIGTERM);
                }
                Event::SupervisorGone => {
                    self.ask_to_end();
                    deadline = Some(Instant::now() + GRACE);
                }
                Event::Kill | Event::Quiet => {
                    let _ = killpg(self.pid(), Signal::SIGKILL);
                    deadline = None;
                }
            }
        }
    }

    fn ask_to_end(&mut self) {
        if self.lifeline.take().is_none() {
            let _ = kill(self.pid(), Signal::SIGTERM);
        }
    }
}

/// A command that cannot watch a pipe dies with its guard. The guard is one thread, so the signal means what it says.
fn die_with_guard(command: &mut Command) {
    let guard = Pid::this();
    let set = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The guard may have died between the fork and the line above.
        if Pid::parent() == guard { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(set) };
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(70))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> anyhow::Result<(GuardOptions, Vec<OsString>)> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn options_end_at_the_dashes() {
        let (options, argv) = parsed(&["--namespaces", "--hold", "/x", "--", "prog", "--hand-on"]).unwrap();
        assert!(options.namespaces && !options.hand_on && options.claim.is_none());
        assert_eq!(options.hold, Some(PathBuf::from("/x")));
        assert_eq!(argv, ["prog", "--hand-on"]);
    }

    #[test]
    fn a_missing_command_is_refused() {
        assert!(parsed(&["--"]).is_err());
        assert!(parsed(&["prog"]).is_err());
    }
}
