//! What the host may ask.

use std::time::Duration;

/// The longest a disk stays frozen, whatever was asked for.
const LONGEST_FREEZE: u64 = 60;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Who and how are you?
    Hello,
    Stats,
    /// Drain, stop, power off.
    Stop,
    /// Hold the cache disk still for at most so long.
    Freeze(Duration),
    Thaw,
    /// The wall clock, nanoseconds since 1970.
    Time(i64),
    /// The cache disk has grown.
    Resize,
    /// Why there is nothing to be done.
    Malformed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: String,
    pub command: Command,
}

impl Request {
    /// `None` for an empty line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let id = words.next()?.to_owned();
        let (verb, argument) = (words.next().unwrap_or_default(), words.next());
        let command = match (verb, argument) {
            ("hello", None) => Command::Hello,
            ("stats", None) => Command::Stats,
            ("stop", None) => Command::Stop,
            ("thaw", None) => Command::Thaw,
            ("resize", None) => Command::Resize,
            ("freeze", Some(seconds)) => freeze(seconds),
            ("time", Some(now)) => now.parse().ok().filter(|now| *now > 0).map_or_else(
                || Command::Malformed(format!("'{now}' is no time in nanoseconds since 1970")),
                Command::Time,
            ),
            ("freeze" | "time", None) => Command::Malformed(format!("{verb} needs an argument")),
            _ => Command::Malformed(format!("unknown request '{verb}'")),
        };
        Some(Self { id, command })
    }
}

fn freeze(seconds: &str) -> Command {
    match seconds.parse() {
        Ok(seconds @ 1..=LONGEST_FREEZE) => Command::Freeze(Duration::from_secs(seconds)),
        _ => Command::Malformed(format!("a disk is frozen for 1 to {LONGEST_FREEZE} seconds, not '{seconds}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_corpus_is_survived() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/guest_control");
        for file in std::fs::read_dir(corpus).unwrap() {
            let line = std::fs::read(file.unwrap().path()).unwrap();
            if let Some(request) = Request::parse(&String::from_utf8_lossy(&line)) {
                assert!(!request.id.is_empty());
                assert!(
                    !matches!(request.command, Command::Freeze(span) if span > Duration::from_secs(LONGEST_FREEZE))
                );
            }
        }
    }

    fn command(line: &str) -> Command {
        Request::parse(line).unwrap().command
    }

    #[test]
    fn requests() {
        assert_eq!(Request::parse(""), None);
        assert_eq!(Request::parse("7 hello"), Some(Request { id: "7".into(), command: Command::Hello }));
        assert_eq!(command("1 freeze 5"), Command::Freeze(Duration::from_secs(5)));
        assert_eq!(command("1 time 1763712000000000000"), Command::Time(1_763_712_000_000_000_000));
    }

    #[test]
    fn malformed_requests_say_why() {
        for line in
            ["1", "1 dance", "1 freeze", "1 freeze 0", "1 freeze 61", "1 freeze x", "1 time", "1 time -5", "1 stop now"]
        {
            assert!(matches!(command(line), Command::Malformed(_)), "{line}");
        }
    }
}
