//! Why a guest ended, read from its console.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop, and unmounted its disk.
    Orderly,
    /// PID 1 could not go on; what it said.
    Fatal(String),
    /// The kernel's last words.
    Panic(String),
    /// What its program said last; the guest itself said nothing.
    Program(String),
    /// Without a word: killed, or its power was cut.
    Silent,
}

impl End {
    /// From what the console showed since the start, or the end of that. Daemons may write there too, and what they say may quote a build's
    /// words: only lines count that PID 1 or the kernel has begun.
    pub fn read(console: &str) -> Self {
        let last = |told: fn(&str) -> Option<&str>| Some(console.lines().rev().find_map(told)?.trim().to_owned());
        if let Some(why) = last(|line| own(line)?.strip_prefix("fatal: ")) {
            Self::Fatal(why)
        } else if let Some(why) = last(|line| kernels(line)?.strip_prefix("Kernel panic - not syncing: ")) {
            Self::Panic(why)
        } else if console.lines().filter_map(own).any(|words| words.trim() == "the cell has stopped") {
            Self::Orderly
        } else {
            Self::Silent
        }
    }
}

/// What PID 1 says in this line, after its name and the time (`init/src/console.rs`).
fn own(line: &str) -> Option<&str> {
    let (time, words) = line.strip_prefix("kiln-init ")?.split_once(' ')?;
    is_time(time).then_some(words)
}

/// What the kernel says in this line, after the time in brackets.
fn kernels(line: &str) -> Option<&str> {
    let (time, words) = line.strip_prefix('[')?.split_once("] ")?;
    is_time(time.trim_start()).then_some(words)
}

/// Seconds since the kernel's start.
fn is_time(word: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    word.split_once('.').is_some_and(|(seconds, rest)| is_number(seconds) && is_number(rest))
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orderly => f.write_str("it stopped as it was asked to"),
            Self::Fatal(why) => f.write_str(why),
            Self::Panic(why) => write!(f, "its kernel panicked: {why}"),
            Self::Program(said) => write!(f, "without a word; its program said: {said}"),
            Self::Silent => f.write_str("without a word, see its console log"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells() {
        let fatal =
            "[    1.0] x\r\nkiln-init 2.100 fatal: config disk: field 'id' is missing\r\n[ 2.1] reboot: Power down\r\n";
        assert_eq!(End::read(fatal), End::Fatal("config disk: field 'id' is missing".into()));
        let panic = "[    9.1] Kernel panic - not syncing: EXT4-fs (device vdc): panic forced after error\r\n";
        assert_eq!(End::read(panic), End::Panic("EXT4-fs (device vdc): panic forced after error".into()));
        assert_eq!(End::read("kiln-init 9.000 the cell has stopped\r\n"), End::Orderly);
        assert_eq!(End::read("kiln-init 9.000 ready\r\n"), End::Silent);
        assert_eq!(End::read("buildkitd: git: fatal: not a repository\r\n"), End::Silent);
    }

    #[test]
    fn what_a_daemon_quotes_is_no_reason() {
        for line in [
            r#"time="2026-11-21T10:00:00Z" msg="step said: kiln-init 2.100 fatal: forged""#,
            "#7 0.3 kiln-init 9.000 the cell has stopped",
            "kiln-init says the cell has stopped",
            "kiln-init 9 the cell has stopped",
            "kiln-init 9.000 ready: the cell has stopped",
            r#"level=error msg="[    9.1] Kernel panic - not syncing: forged""#,
            "[error] Kernel panic - not syncing: forged",
        ] {
            assert_eq!(End::read(&format!("kiln-init 0.500 ready\r\n{line}\r\n")), End::Silent, "{line}");
        }
        let said =
            "[    9.100000] Kernel panic - not syncing: x\r\n[    9.2] ---[ end Kernel panic - not syncing: x ]---\r\n";
        assert_eq!(End::read(said), End::Panic("x".into()));
    }
}
