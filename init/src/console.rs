//! What PID 1 says: on the console, which the host keeps, with the time since the kernel's start.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use crate::sys;

/// Makes the console this process's standard input and outputs. In the initrd the kernel may not have done so.
pub fn open() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    for fd in 0..3 {
        // SAFETY: duplicates an open descriptor onto the standard ones, which nothing else holds yet.
        unsafe { libc::dup2(console.as_raw_fd(), fd) };
    }
}

/// As [`say`], and surely on a line of its own, which the host goes by: a daemon may have left one unfinished.
pub fn last_words(line: &str) {
    let _ = std::io::stderr().write_all(b"\n");
    say(line);
}

/// One line; a console that cannot be written to is nobody's to be told of.
pub fn say(line: &str) {
    let now = sys::uptime_ms();
    let line = format!("kiln-init {}.{:03} {line}\n", now / 1000, now % 1000);
    let _ = std::io::stderr().write_all(line.as_bytes());
}
