//! The control channel: one virtio-serial port over which the host asks and PID 1 answers, a line each.
//!
//! ```text
//! host   <id> hello | stats | stop | freeze <seconds> | thaw | time <nanoseconds since 1970> | resize
//! guest  <id> ok [words]   |   <id> error <why>
//! ```
//!
//! The id is the host's choice and comes back with the answer, so that an answer to a request it gave up is not taken for another's.
//! Empty lines are ignored: a host that connects anew sends one first, to end what its predecessor left unfinished.

mod port;
mod request;

use std::os::fd::RawFd;

pub use port::open as open_port;
use port::{Channel, Read};
pub use request::{Command, Request};

const PORT: &str = "kiln.control";
/// A line longer than this is nobody's request.
const LONGEST: usize = 256;

#[derive(Default)]
pub struct Control {
    channel: Channel,
    received: Vec<u8>,
}

impl Control {
    pub fn new() -> Self {
        Self { channel: Channel::new(PORT), received: Vec::new() }
    }

    /// What to wait for, while there is somebody at the other end.
    pub fn fd(&self) -> Option<RawFd> {
        self.channel.fd()
    }

    /// Whether the port has to be looked at from time to time.
    pub fn is_away(&self) -> bool {
        self.channel.fd().is_none()
    }

    /// All requests that have arrived.
    pub fn requests(&mut self) -> Vec<Request> {
        let mut buffer = [0; 512];
        while let Read::Bytes(count) = self.channel.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        let requests = take_lines(&mut self.received);
        if self.received.len() > LONGEST {
            self.received.clear();
        }
        requests.iter().filter_map(|line| Request::parse(line)).collect()
    }

    /// A host that is gone by now gets no answer.
    pub fn answer(&mut self, id: &str, outcome: Result<&str, &str>) {
        let (word, text) = match outcome {
            Ok(text) => ("ok", text),
            Err(why) => ("error", why),
        };
        let line = format!("{id} {word} {text}");
        self.channel.write(format!("{}\n", line.trim_end().replace('\n', " ")).as_bytes());
    }
}

fn take_lines(received: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = received.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let rest = received.split_off(end + 1);
    let whole = std::mem::replace(received, rest);
    String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_waits_for_its_end() {
        let mut received = b"\n1 hello\n2 th".to_vec();
        assert_eq!(take_lines(&mut received), ["", "1 hello"]);
        assert!(take_lines(&mut received).is_empty());
        received.extend_from_slice(b"aw\n");
        assert_eq!(take_lines(&mut received), ["2 thaw"]);
        assert!(received.is_empty());
    }
}
