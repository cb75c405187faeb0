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
    /// From what the console showed since the start.
    pub fn read(console: &str) -> Self {
        let last =
            |words: &str| console.lines().rev().find_map(|line| Some(line.split_once(words)?.1.trim().to_owned()));
        // Daemons may write to the console too, and programs that they run.
        let own = |line: &str| Some(line.split_once("kiln-init ")?.1.split_once(" fatal: ")?.1.trim().to_owned());
        if let Some(why) = console.lines().rev().find_map(own) {
            Self::Fatal(why)
        } else if let Some(why) = last("Kernel panic - not syncing: ") {
            Self::Panic(why)
        } else if console.contains("the cell has stopped") {
            Self::Orderly
        } else {
            Self::Silent
        }
    }
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
}
