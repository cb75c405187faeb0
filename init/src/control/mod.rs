//! The control channel: a virtio-serial port, or vsock where the machine has none, over which the host asks and PID 1 answers, a line each.
//!
//! ```text
//! host   <id> hello | stats | stop | freeze <seconds> | thaw | time <nanoseconds since 1970> | resize
//! guest  <id> ok [words]   |   <id> error <why>
//! ```
//!
//! The id is the host's choice and comes back with the answer, so that an answer to a request it gave up is not taken for another's.
//! Empty lines are ignored: a host that connects anew sends one first, to end what its predecessor left unfinished.

mod lines;
mod port;
mod request;
mod vsock;

use std::os::fd::RawFd;

pub use port::open as open_port;
use port::{Channel, Read};
pub use request::{Command, Request};
use vsock::Connections;

use crate::console;

const PORT: &str = "kiln.control";

/// By which of the two the host asks.
pub enum Control {
    Port { channel: Channel, received: Vec<u8> },
    Vsock(Option<Connections>),
}

impl Control {
    /// Over vsock where the machine has no port, as its kernel's command line says.
    pub fn new(over_vsock: bool) -> Self {
        match over_vsock {
            false => Self::Port { channel: Channel::new(PORT), received: Vec::new() },
            true => {
                Self::Vsock(Connections::of_the_host().map_err(|error| console::say(&format!("vsock: {error}"))).ok())
            }
        }
    }

    /// What to wait for, while there is somebody at the other end.
    pub fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::Port { channel, .. } => channel.fd().into_iter().collect(),
            Self::Vsock(connections) => connections.iter().flat_map(Connections::fds).collect(),
        }
    }

    /// Whether the port has to be looked at from time to time.
    pub fn needs_looks(&self) -> bool {
        matches!(self, Self::Port { channel, .. } if channel.needs_looks())
    }

    /// All requests that have arrived; answers that nobody took are sent.
    pub fn requests(&mut self) -> Vec<Request> {
        let lines = match self {
            Self::Port { channel, received } => {
                channel.send();
                let mut buffer = [0; 512];
                while let Read::Bytes(count) = channel.read(&mut buffer) {
                    received.extend_from_slice(&buffer[..count]);
                }
                lines::take(received)
            }
            Self::Vsock(connections) => connections.as_mut().map(Connections::lines).unwrap_or_default(),
        };
        lines.iter().filter_map(|line| Request::parse(line)).collect()
    }

    /// Whoever is there by then reads over an answer to a host that is gone: the id is not its own.
    pub fn answer(&mut self, id: &str, outcome: Result<&str, &str>) {
        let (word, text) = match outcome {
            Ok(text) => ("ok", text),
            Err(why) => ("error", why),
        };
        let line = format!("{id} {word} {text}");
        let line = format!("{}\n", line.trim_end().replace('\n', " "));
        match self {
            Self::Port { channel, .. } => channel.write(line.as_bytes()),
            Self::Vsock(Some(connections)) => connections.write(line.as_bytes()),
            Self::Vsock(None) => {}
        }
    }
}
