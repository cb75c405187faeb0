//! Setting the machine's clock right: by adjtimex(2), slowly or at once. And whether somebody else has set it.

use std::io;
use std::time::Duration;

/// Who sets the clock. Tests have one that only writes down what it was told.
pub trait Adjust: Send + Sync {
    /// Lets the clock run faster or slower (by 0.05 %, the kernel's rate) until it has made up for so many seconds.
    ///
    /// # Errors
    /// When this process may not.
    fn slew(&self, seconds: f64) -> io::Result<()>;

    /// Sets the clock ahead by so many seconds, or back.
    ///
    /// # Errors
    /// When this process may not.
    fn step(&self, seconds: f64) -> io::Result<()>;

    /// When this machine was booted by its clock, since 1970. Slewing changes the time since the boot as well, so this is another one
    /// only after the clock was set.
    ///
    /// # Errors
    /// When the kernel has no such clock.
    fn booted(&self) -> io::Result<Duration>;
}

/// The clock of this machine.
pub struct Kernel;

impl Adjust for Kernel {
    fn slew(&self, seconds: f64) -> io::Result<()> {
        adjtimex(slewing(seconds))
    }

    fn step(&self, seconds: f64) -> io::Result<()> {
        adjtimex(stepping(seconds))
    }

    fn booted(&self) -> io::Result<Duration> {
        let reading = || -> io::Result<(Duration, Duration)> {
            let before = time_of(libc::CLOCK_BOOTTIME)?;
            let wall = time_of(libc::CLOCK_REALTIME)?;
            let since = time_of(libc::CLOCK_BOOTTIME)?;
            Ok((since.saturating_sub(before), wall.saturating_sub(since)))
        };
        // The quickest: this process may have had to wait in the middle of one.
        let (_, booted) = reading()?.min(reading()?).min(reading()?);
        Ok(booted)
    }
}

fn time_of(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Neither clock is ever negative.
    let (seconds, rest) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Ok(Duration::new(seconds.unwrap_or_default(), rest.unwrap_or_default()))
}

fn adjtimex(mut request: libc::timex) -> io::Result<()> {
    // SAFETY: the call reads and writes one timex.
    if unsafe { libc::adjtimex(&raw mut request) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn nothing() -> libc::timex {
    // SAFETY: all zeroes is a valid timex: it changes nothing.
    unsafe { std::mem::zeroed() }
}

/// As adjtime(3): microseconds.
fn slewing(seconds: f64) -> libc::timex {
    let mut request = nothing();
    (request.modes, request.offset) = (libc::ADJ_OFFSET_SINGLESHOT, whole(seconds * 1e6));
    request
}

/// Adds to the clock in one go, so that no time is lost between reading and setting it. The field for microseconds has nanoseconds,
/// and is never negative.
fn stepping(seconds: f64) -> libc::timex {
    let mut request = nothing();
    request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    request.time.tv_sec = whole(seconds.floor());
    request.time.tv_usec = whole((seconds - seconds.floor()) * 1e9).min(999_999_999);
    request
}

/// The protocol knows offsets of 136 years at most; the cast keeps anything else within bounds.
fn whole(number: f64) -> i64 {
    number.round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_whole_seconds_and_nanoseconds_on_top() {
        for (seconds, whole, rest) in [(3600.25, 3600, 250_000_000), (-3600.25, -3601, 750_000_000), (-2.0, -2, 0)] {
            let request = stepping(seconds);
            assert_eq!((request.time.tv_sec, request.time.tv_usec), (whole, rest), "{seconds}");
            assert_eq!(request.modes, libc::ADJ_SETOFFSET | libc::ADJ_NANO);
        }
        assert_eq!(stepping(1.999_999_999_9).time.tv_usec, 999_999_999);
    }

    #[test]
    fn the_boot_was_at_one_time() {
        let (first, second) = (Kernel.booted().unwrap(), Kernel.booted().unwrap());
        assert!(first.abs_diff(second) < Duration::from_millis(50), "{first:?} {second:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(first <= now, "{first:?}");
    }

    #[test]
    fn a_slew_has_microseconds() {
        assert_eq!((slewing(0.25).offset, slewing(-0.25).offset), (250_000, -250_000));
        assert_eq!(slewing(0.1).modes, libc::ADJ_OFFSET_SINGLESHOT);
    }
}
