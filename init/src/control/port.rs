//! Virtio-serial ports: found by the name that the host gave them, open once, with nobody at the other end from time to time.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Opens the port of this name for reading and writing; `None` while there is none.
pub fn open(name: &str, flags: i32) -> Option<File> {
    File::options().read(true).write(true).custom_flags(flags).open(find(name)?).ok()
}

fn find(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|found| found.trim() == name);
    let port = ports.flatten().map(|entry| entry.path()).find(|path| named(path))?;
    Some(Path::new("/dev").join(port.file_name()?))
}

/// How a read ended.
pub enum Read {
    Bytes(usize),
    Nothing,
}

/// What a host has left unread by then is lost: nobody waits for it any more.
const MOST_UNSENT: usize = 16 << 10;

/// A port that may not be there yet, or have nobody at the other end: then it polls as readable for ever, so it is not waited for.
///
/// What a host asks and that it is there arrive by different queues. Under load a request is read while the kernel still takes the
/// host's end for closed, and refuses to be written to: answers are kept until it is not.
#[derive(Default)]
pub struct Channel {
    name: &'static str,
    port: Option<File>,
    connected: bool,
    unsent: Vec<u8>,
}

impl Channel {
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// Whether it has to be looked at from time to time, as nothing tells when there is something to do.
    pub fn needs_looks(&self) -> bool {
        self.fd().is_none() || !self.unsent.is_empty()
    }

    pub fn fd(&self) -> Option<RawFd> {
        self.port.as_ref().filter(|_| self.connected).map(|port| port.as_raw_fd())
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Read {
        if self.port.is_none() {
            self.port = open(self.name, libc::O_NONBLOCK);
        }
        let Some(port) = &mut self.port else { return Read::Nothing };
        match port.read(buffer) {
            // The kernel's way to say that the host's end is closed.
            Ok(0) => {
                self.connected = false;
                Read::Nothing
            }
            Ok(count) => {
                self.connected = true;
                Read::Bytes(count)
            }
            Err(error) => {
                self.connected = error.kind() == ErrorKind::WouldBlock;
                Read::Nothing
            }
        }
    }

    /// Sent as soon as there is somebody who takes it.
    pub fn write(&mut self, line: &[u8]) {
        if self.unsent.len() + line.len() > MOST_UNSENT {
            self.unsent.clear();
        }
        self.unsent.extend_from_slice(line);
        self.send();
    }

    /// What could not be sent so far.
    pub fn send(&mut self) {
        let Some(port) = &mut self.port else { return };
        while !self.unsent.is_empty() {
            match port.write(&self.unsent) {
                Ok(0) => return,
                Ok(count) => drop(self.unsent.drain(..count)),
                // The port is gone, and whoever asked with it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ENODEV)) => self.unsent.clear(),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A channel whose other end takes nothing until it is read.
    fn stopped_up() -> (Channel, UnixStream) {
        let (mut port, host) = UnixStream::pair().unwrap();
        port.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        while port.write(&[b'.'; 4096]).is_ok() {}
        (Channel { port: Some(File::from(OwnedFd::from(port))), connected: true, ..Channel::default() }, host)
    }

    fn read(mut host: &UnixStream) -> String {
        let mut all = Vec::new();
        let _ = host.read_to_end(&mut all);
        String::from_utf8(all).unwrap().trim_start_matches('.').to_owned()
    }

    #[test]
    fn an_answer_waits_for_somebody_who_takes_it() {
        let (mut channel, host) = stopped_up();
        channel.write(b"1 ok\n");
        channel.write(b"2 ok\n");
        assert!(channel.needs_looks());
        assert_eq!(read(&host), "");
        channel.send();
        assert_eq!(read(&host), "1 ok\n2 ok\n");
        assert!(!channel.needs_looks());
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_is_among_it() {
        let (mut channel, host) = stopped_up();
        for id in 0..100_000 {
            channel.write(format!("{id} ok\n").as_bytes());
        }
        assert!(channel.unsent.len() <= MOST_UNSENT);
        read(&host);
        channel.send();
        assert!(read(&host).ends_with("\n99999 ok\n"), "the newest is what somebody waits for");
    }

    #[test]
    fn a_port_that_is_gone_keeps_nothing() {
        let (mut channel, host) = stopped_up();
        channel.write(b"1 ok\n");
        drop(host);
        channel.send();
        assert!(channel.unsent.is_empty());
    }
}
