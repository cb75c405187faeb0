//! What kind of machine this is, and its end.
//!
//! Whoever starts it says on the kernel's command line what is not as usual. Firecracker's machines have no virtio-serial ports and no
//! power switch: they are asked over vsock, and end when they are reset.

use std::time::Duration;

use crate::{console, sys};

/// The host asks over vsock.
const VSOCK: &str = "kiln.control=vsock";
/// It ends by a reset.
const RESET: &str = "kiln.off=reset";

/// Whether the control channel goes over vsock.
pub fn has_vsock() -> bool {
    is_told(&command_line(), VSOCK)
}

fn command_line() -> String {
    std::fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

fn is_told(command_line: &str, what: &str) -> bool {
    command_line.split_whitespace().any(|word| word == what)
}

/// Ends the machine in its own way. Returns only when the kernel refuses.
fn off() {
    match is_told(&command_line(), RESET) {
        true => sys::reset(),
        false => sys::power_off(),
    }
}

/// Writes everything out and powers off.
pub fn power_off() -> ! {
    sys::sync();
    loop {
        off();
        // Only when the kernel refuses, which it does not say how to mend. The host has a deadline of its own.
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Says on the console why there is no going on, and powers off. The host's agent reads the line that begins with `fatal:`.
///
/// Nothing is written out: the disk may be the reason, and a cache disk survives a power cut anyway.
pub fn die(why: &str) -> ! {
    console::last_words(&format!("fatal: {why}"));
    loop {
        off();
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_usual_is_said_by_whole_words() {
        let line = "console=ttyS0 reboot=k kiln.off=reset kiln.control=vsock rdinit=/init\n";
        assert!(is_told(line, VSOCK) && is_told(line, RESET));
        assert!(!is_told("console=ttyS0 reboot=t rdinit=/init x.kiln.off=reset", RESET));
    }
}
