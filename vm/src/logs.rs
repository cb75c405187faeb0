//! The files that a guest writes to for as long as it lives: what they said last, and their beginning anew when they have grown too long.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::machine::Files;

/// The longest that a log becomes, bytes, but for what a guest writes between two looks; as much is kept of the former one.
const LONGEST: u64 = 8 << 20;
/// How much of a log is looked at for its last words, bytes.
const TAIL: u64 = 64 << 10;

/// Begins the logs anew that have grown too long. A log that cannot be shortened is as good as before.
pub fn shorten(files: &Files) {
    for log in [files.console(), files.log()] {
        if let Err(error) = rotate(&log, LONGEST) {
            tracing::warn!(%error, log = %log.display(), "the log grows on");
        }
    }
}

/// The guest's program may have the file open, and appends to it: it stays the same file. What is written just now may be lost.
fn rotate(log: &Path, longest: u64) -> io::Result<()> {
    let mut file = match File::options().read(true).write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let length = file.metadata()?.len();
    if length <= longest {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length - longest))?;
    io::copy(&mut (&file).take(longest), &mut File::create(former(log))?)?;
    file.set_len(0)
}

fn former(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The end of what a log says from a place on, in whole lines; nothing where it cannot be read. A log that is shorter was begun anew meanwhile.
pub fn tail(log: &Path, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        let from = if length < from { 0 } else { from };
        let begin = from.max(length.saturating_sub(TAIL));
        file.seek(SeekFrom::Start(begin))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        if begin > from {
            let whole = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |end| end + 1);
            text.drain(..whole);
        }
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What a program's log says last; `None` when it says nothing.
pub fn said(log: &str) -> Option<&str> {
    log.lines().rfind(|line| !line.trim().is_empty())
}

/// As [`said`], for people.
pub fn last_line(text: &str) -> &str {
    said(text).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_that_is_too_long_is_begun_anew_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        rotate(&log, 8).unwrap();
        let mut guest = File::options().create(true).append(true).open(&log).unwrap();
        guest.write_all(b"12345678").unwrap();
        rotate(&log, 8).unwrap();
        assert!(!former(&log).exists(), "it is not too long");
        guest.write_all(b"9").unwrap();
        rotate(&log, 8).unwrap();
        assert_eq!(std::fs::read_to_string(former(&log)).unwrap(), "23456789");
        guest.write_all(b"on").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "on", "it goes on at the beginning");
        guest.write_all(b" and on and on").unwrap();
        rotate(&log, 8).unwrap();
        assert_eq!(std::fs::read_to_string(former(&log)).unwrap(), "n and on", "one former is kept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_the_end_of_a_log_is_read_and_in_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert_eq!(tail(&log, 0), "");
        std::fs::write(&log, "former\nthis start\n").unwrap();
        assert_eq!(tail(&log, 7), "this start\n");
        assert_eq!(tail(&log, 4000), "former\nthis start\n", "it was begun anew");
        let long = format!("{}{}", "x".repeat(1 << 20), "\nlast words\n");
        std::fs::write(&log, &long).unwrap();
        assert_eq!(tail(&log, 0), "last words\n");
        assert_eq!(tail(&log, 7), "last words\n");
        std::fs::write(&log, "y".repeat(1 << 20)).unwrap();
        assert_eq!(tail(&log, 0), "", "a line whose beginning nobody knows says nothing");
    }
}
