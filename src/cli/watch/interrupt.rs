//! Ctrl-C while a build runs: it belongs to nobody's terminal, so the user says what becomes of it.
//!
//! ```text
//! on a terminal:   Ctrl-C ─► asks ─┬─ c, or Ctrl-C again ─► cancel ── Ctrl-C ─► leave
//!                                  ├─ d ─► detach
//!                                  └─ anything else ─► goes on
//! without one:     SIGINT ─► cancel ── SIGINT ─► leave            SIGTERM is the same everywhere
//! ```

use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::Failure;

/// What the user is asked.
pub const QUESTION: &str = "The build is running. Cancel it (c, or Ctrl-C again), detach (d), or go on (Enter)? ";

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To be asked [`QUESTION`]; the answer is the next wish.
    Ask,
    GoOn,
    Cancel,
    Detach,
    /// To end at once, whatever the build does.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Watching,
    Asked,
    Cancelling,
}

/// From its making on, the process no longer ends on a signal by itself.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// Whether there is somebody to ask.
    terminal: bool,
    state: State,
    /// Whether a signal came before there was a build to ask about.
    early: bool,
    lines: Option<mpsc::UnboundedReceiver<String>>,
}

impl Interrupts {
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::usage(format!("cannot listen for signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            terminal: io::stdin().is_terminal() && io::stderr().is_terminal(),
            state: State::Watching,
            early: false,
            lines: None,
        })
    }

    /// Returns at the next signal.
    pub async fn signal(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Returns at the second signal from now on. The first one is left for [`Interrupts::next`].
    pub async fn second_signal(&mut self) {
        if !self.early {
            self.signal().await;
            self.early = true;
        }
        self.signal().await;
    }

    /// The next wish. Safe to drop while waiting.
    pub async fn next(&mut self) -> Wish {
        let asked = self.state == State::Asked;
        let early = std::mem::take(&mut self.early);
        let wish = tokio::select! {
            () = std::future::ready(()), if early => self.interrupted(),
            _ = self.interrupt.recv() => self.interrupted(),
            _ = self.terminate.recv() => if self.state == State::Cancelling { Wish::Leave } else { Wish::Cancel },
            line = next_line(&mut self.lines), if asked => answer(line.as_deref()),
        };
        self.state = match wish {
            Wish::Ask => State::Asked,
            Wish::Cancel | Wish::Leave => State::Cancelling,
            Wish::GoOn | Wish::Detach => State::Watching,
        };
        wish
    }

    fn interrupted(&mut self) -> Wish {
        match self.state {
            State::Watching if self.terminal => {
                self.lines.get_or_insert_with(read_lines);
                Wish::Ask
            }
            State::Watching | State::Asked => Wish::Cancel,
            State::Cancelling => Wish::Leave,
        }
    }
}

fn answer(line: Option<&str>) -> Wish {
    match line.map(|line| line.trim().to_ascii_lowercase()).as_deref() {
        Some("c" | "cancel") => Wish::Cancel,
        Some("d" | "detach") => Wish::Detach,
        _ => Wish::GoOn,
    }
}

/// A line typed; `None` when there are no more.
async fn next_line(lines: &mut Option<mpsc::UnboundedReceiver<String>>) -> Option<String> {
    match lines {
        Some(lines) => lines.recv().await,
        None => None,
    }
}

/// A thread of its own, for a read from a terminal cannot be given up; it ends with the process.
fn read_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
