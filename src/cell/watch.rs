//! What a process without a runtime waits for: its supervisor's pipe, its signals, and time.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What happened next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nobody holds the supervisor's end of the pipe any more.
    SupervisorGone,
    /// One child or more changed state; reap them all.
    Child,
    /// An orderly end is asked for (SIGTERM, SIGINT, SIGHUP).
    Terminate,
    /// The end is asked for at once (SIGQUIT).
    Kill,
    /// Nothing happened for as long as the caller wanted to wait.
    Quiet,
}

/// The signals turned into readable events, and the supervisor's pipe.
pub struct Watch<'pipe> {
    signals: SignalFd,
    pipe: Option<BorrowedFd<'pipe>>,
}

impl<'pipe> Watch<'pipe> {
    /// Blocks the signals for the whole process, and for its children unless they are [`unblocked`], and watches `pipe`, whose
    /// writing end the supervisor holds and never writes to.
    pub fn new(pipe: BorrowedFd<'pipe>) -> nix::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals, pipe: Some(pipe) })
    }

    /// Waits for the next event, at most `patience`. [`Event::SupervisorGone`] is reported once.
    pub fn next(&mut self, patience: Option<Duration>) -> nix::Result<Event> {
        loop {
            if let Some(signal) = self.signals.read_signal()? {
                return Ok(event_of(signal.ssi_signo));
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // No flags: a pipe without a writer reports a hang-up unasked.
            fds.extend(self.pipe.map(|pipe| PollFd::new(pipe, PollFlags::empty())));
            match poll(&mut fds, timeout(patience)) {
                Ok(0) => return Ok(Event::Quiet),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error),
            }
            if fds.get(1).and_then(PollFd::any).unwrap_or(false) {
                self.pipe = None;
                return Ok(Event::SupervisorGone);
            }
        }
    }
}

/// Gives a child the signals that [`Watch::new`] has blocked: a mask outlives fork and exec, and a process that was not told would
/// never hear that it should end, nor would a build's steps below it.
pub fn unblocked(child: &mut Command) {
    let unblock = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { child.pre_exec(unblock) };
}

fn event_of(signal: u32) -> Event {
    match Signal::try_from(signal.cast_signed()) {
        Ok(Signal::SIGCHLD) => Event::Child,
        Ok(Signal::SIGQUIT) => Event::Kill,
        _ => Event::Terminate,
    }
}

fn timeout(patience: Option<Duration>) -> PollTimeout {
    // Rounded up: waking a millisecond early would spin through the remainder.
    patience.map_or(PollTimeout::NONE, |wait| {
        PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
    })
}
