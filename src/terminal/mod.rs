//! The process's standard streams: everything that the binary prints goes through here.
//!
//! Printed text may hold words of build steps, registries and other machines. Control sequences are removed on the way out
//! ([`clean`]); colours stay, on a terminal only. The only other sequences that reach a terminal are the cursor movements of
//! [`Writer::replace`] and [`Writer::screen`].
//!
//! When the reader of a pipe has gone, output ends quietly and the command keeps its exit code, as with ripgrep. Every other error
//! of standard output is returned, so that a result that was cut off does not look complete. Errors of standard error are dropped:
//! there is no place left to report them.

mod clean;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::sync::oneshot;

use clean::Cleaner;
pub use clean::one_line;

/// Standard output could not be written, and not because its reader has gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct OutputError(#[source] io::Error);

/// One stream.
pub struct Writer {
    to: Box<dyn Write + Send>,
    cleaner: Cleaner,
    closed: bool,
}

impl Writer {
    pub fn stdout() -> Self {
        Self::new(io::stdout(), shows_colours(&io::stdout()))
    }

    pub fn stderr() -> Self {
        Self::new(io::stderr(), shows_colours(&io::stderr()))
    }

    /// Writes to `to`, with the colours of the text or without.
    pub fn new(to: impl Write + Send + 'static, colours: bool) -> Self {
        Self { to: Box::new(to), cleaner: Cleaner::new(colours), closed: false }
    }

    /// Writes text.
    ///
    /// # Errors
    /// When it cannot be written; never when the reader has gone.
    pub fn text(&mut self, text: &str) -> Result<(), OutputError> {
        let text = self.cleaner.clean(text);
        self.write(&text)
    }

    /// Writes text in place of the lines above the cursor.
    ///
    /// # Errors
    /// As [`Writer::text`].
    pub fn replace(&mut self, lines: usize, text: &str) -> Result<(), OutputError> {
        let up = if lines > 0 { format!("\r\x1b[{lines}A\x1b[0J") } else { String::new() };
        let text = self.cleaner.clean(text);
        self.write(&(up + &text))
    }

    /// Writes text from the top of the screen, in place of what is there.
    ///
    /// # Errors
    /// As [`Writer::text`].
    pub fn screen(&mut self, text: &str) -> Result<(), OutputError> {
        let text = self.cleaner.clean(text).replace('\n', "\x1b[K\n");
        self.write(&format!("\x1b[H{text}\x1b[J"))
    }

    /// Whether a write found that the reader has gone. What is written from then on is dropped.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn write(&mut self, text: &str) -> Result<(), OutputError> {
        if self.closed || text.is_empty() {
            return Ok(());
        }
        match self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            written => written.map_err(OutputError),
        }
    }
}

/// Whether a stream is a terminal that is to show colours.
pub fn shows_colours(stream: &impl IsTerminal) -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    stream.is_terminal() && !dumb && !unwanted
}

/// Prints text on standard output.
///
/// # Errors
/// As [`Writer::text`].
pub fn print(text: impl Display) -> Result<(), OutputError> {
    Writer::stdout().text(&text.to_string())
}

/// Prints a line on standard output.
///
/// # Errors
/// As [`Writer::text`].
pub fn print_line(line: impl Display) -> Result<(), OutputError> {
    print(format_args!("{line}\n"))
}

/// Prints JSON as one line on standard output. Characters that a terminal would obey are escaped, so that nothing of the data is
/// lost.
///
/// # Errors
/// As [`Writer::text`].
pub fn print_json(value: &Value) -> Result<(), OutputError> {
    print_line(clean::escaped(&value.to_string()))
}

/// Prints a line on standard error.
pub fn note(line: impl Display) {
    let _ = Writer::stderr().text(&format!("{line}\n"));
}

/// Prints a question on standard error; the answer follows on the same line.
pub fn ask(question: impl Display) {
    let _ = Writer::stderr().text(&question.to_string());
}

/// Returns when standard output is a pipe whose reader has gone; of a file this is never known. Takes a thread, which ends with the
/// process: a poll cannot be given up.
pub async fn stdout_closed() {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        if wait_for_hangup(&io::stdout()) {
            let _ = sender.send(());
        }
    });
    if receiver.await.is_err() {
        std::future::pending().await
    }
}

/// Whether the other end was closed. No event is asked for: errors and hangups are always reported.
fn wait_for_hangup(stream: &impl AsFd) -> bool {
    loop {
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::empty())], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            polled => return polled.is_ok_and(|streams| streams > 0),
        }
    }
}
