//! Numbers in the texts of `/proc` and of cgroups.

use std::fs;
use std::io;

/// Bytes of memory the guest has.
pub fn memory_total() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    number_behind(&text, "MemTotal:").map(|kb| kb << 10).ok_or_else(|| io::Error::other("no MemTotal"))
}

/// The number behind a name at a line's beginning.
pub fn number_behind(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_names() {
        assert_eq!(number_behind("MemTotal:  1506220 kB\nMemFree: 7 kB\n", "MemFree:"), Some(7));
        assert_eq!(number_behind("oom 3\noom_kill 2\n", "oom_kill "), Some(2));
        assert_eq!(number_behind("", "MemTotal:"), None);
    }
}
