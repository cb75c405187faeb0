//! The machine's end.

use std::time::Duration;

use crate::{console, sys};

/// Writes everything out and powers off.
pub fn power_off() -> ! {
    sys::sync();
    loop {
        sys::power_off();
        // Only when the kernel refuses, which it does not say how to mend. The host has a deadline of its own.
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Says on the console why there is no going on, and powers off. The host's agent reads the line that begins with `fatal:`.
///
/// Nothing is written out: the disk may be the reason, and a cache disk survives a power cut anyway.
pub fn die(why: &str) -> ! {
    console::say(&format!("fatal: {why}"));
    loop {
        sys::power_off();
        std::thread::sleep(Duration::from_secs(1));
    }
}
