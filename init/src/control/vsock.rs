//! Vsock: a port of this guest that only its host can connect to. Unlike a virtio-serial port it carries several connections at once.
//!
//! An answer goes to all of them: its id is that of one connection's request, and the others read over it.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use super::lines;
use crate::sys;

/// Where PID 1 listens; `vm/src/control.rs` has the same.
const PORT: u32 = 5000;
/// More are closed at once: the host's agent has one or two.
const MOST: usize = 8;

/// Who is connected, and where others can.
pub struct Connections {
    listener: OwnedFd,
    peers: Vec<Peer>,
    accept: fn(&OwnedFd) -> io::Result<Option<OwnedFd>>,
}

struct Peer {
    stream: File,
    received: Vec<u8>,
}

impl Connections {
    /// Of the guest's port.
    pub fn of_the_host() -> io::Result<Self> {
        Ok(Self { listener: sys::listen_on_vsock(PORT)?, peers: Vec::new(), accept: sys::accept_from_host })
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        [self.listener.as_raw_fd()].into_iter().chain(self.peers.iter().map(|peer| peer.stream.as_raw_fd()))
    }

    /// Takes whoever wants to connect, and all lines that have arrived. Whoever is gone is forgotten.
    pub fn lines(&mut self) -> Vec<String> {
        // An error is a connection that broke before it was taken.
        while let Ok(Some(stream)) = (self.accept)(&self.listener) {
            if self.peers.len() < MOST {
                self.peers.push(Peer { stream: stream.into(), received: Vec::new() });
            }
        }
        let mut all = Vec::new();
        self.peers.retain_mut(|peer| {
            let stays = peer.read();
            all.append(&mut lines::take(&mut peer.received));
            stays
        });
        all
    }

    /// All or nothing: answers are short. Whoever does not read is hung up on, so that it knows that it has missed one.
    pub fn write(&mut self, line: &[u8]) {
        self.peers.retain_mut(|peer| peer.stream.write(line).is_ok_and(|count| count == line.len()));
    }
}

impl Peer {
    /// What has arrived; whether there may be more later.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 512];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    /// On a unix socket: whoever runs the tests may have no vsock.
    fn connections(socket: &Path) -> Connections {
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        Connections { listener: listener.into(), peers: Vec::new(), accept: sys::accept }
    }

    fn read(stream: &UnixStream) -> String {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn several_are_served_at_once_and_all_hear_the_answers() {
        let dir = std::env::temp_dir().join(format!("kiln-vsock-{}", std::process::id()));
        let _ = std::fs::remove_file(&dir);
        let mut connections = connections(&dir);
        assert!(connections.lines().is_empty());
        let (mut first, mut second) = (UnixStream::connect(&dir).unwrap(), UnixStream::connect(&dir).unwrap());
        first.write_all(b"\n7 hello\n8 th").unwrap();
        second.write_all(b"\n9 stats\n").unwrap();
        assert_eq!(connections.lines(), ["", "7 hello", "", "9 stats"]);
        assert_eq!(connections.fds().count(), 3);
        connections.write(b"7 ok phase=running\n");
        assert_eq!((read(&first), read(&second)), ("7 ok phase=running\n".into(), "7 ok phase=running\n".into()));
        drop(second);
        first.write_all(b"aw\n").unwrap();
        assert_eq!(connections.lines(), ["8 thaw"]);
        assert_eq!(connections.fds().count(), 2, "who is gone is forgotten");
        first.set_nonblocking(true).unwrap();
        for _ in 0..100_000 {
            connections.write(b"9 ok\n");
        }
        assert_eq!(connections.fds().count(), 1, "who does not read is hung up on");
        let mut all = Vec::new();
        assert!(first.read_to_end(&mut all).is_ok_and(|count| count > 0), "and knows it");
        std::fs::remove_file(dir).unwrap();
    }
}
