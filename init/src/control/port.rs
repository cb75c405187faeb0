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

/// A port that may not be there yet, or have nobody at the other end: then it polls as readable for ever, so it is not waited for.
#[derive(Default)]
pub struct Channel {
    name: &'static str,
    port: Option<File>,
    connected: bool,
}

impl Channel {
    pub fn new(name: &'static str) -> Self {
        Self { name, port: None, connected: false }
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

    /// All or nothing: answers are short, and a host that does not read gets none.
    pub fn write(&mut self, line: &[u8]) {
        if let Some(port) = &mut self.port {
            let _ = port.write(line);
        }
    }
}
