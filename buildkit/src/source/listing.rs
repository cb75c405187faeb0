//! Sources that know all their entries at once: order, validation, selection.

use super::{Entry, EntryKind, Filter, Selection, filter::Verdict, follow::Tree};
use crate::patterns::parent;
use std::{cmp::Ordering, io};

/// The order in which entries are sent: depth first, the names in a directory as bytes. It differs from the order of
/// the paths as plain bytes in that `a/b` comes before `a.b`.
pub fn compare_paths(left: &[u8], right: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    left.iter().map(rank).cmp(right.iter().map(rank))
}

pub(super) fn select(
    entries: Vec<Entry>,
    selection: &Selection,
    emit: &mut dyn FnMut(Entry) -> io::Result<()>,
) -> io::Result<()> {
    let listing = Listing::new(entries)?;
    let mut filter = Filter::new(selection, &listing)?;
    let mut pruned: Option<Vec<u8>> = None;
    for entry in listing.0 {
        if pruned.as_deref().is_some_and(|top| is_below(&entry.path, top)) {
            continue;
        }
        let directory = (entry.kind == EntryKind::Directory).then(|| entry.path.clone());
        if filter.visit(entry, emit)? == Verdict::Prune {
            pruned = directory;
        }
    }
    Ok(())
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Entries in order, with nothing among them that the daemon would refuse.
struct Listing(Vec<Entry>);

impl Listing {
    fn new(mut entries: Vec<Entry>) -> io::Result<Self> {
        entries.sort_unstable_by(|left, right| compare_paths(&left.path, &right.path));
        let mut directories: Vec<&[u8]> = Vec::new();
        let mut last: Option<&[u8]> = None;
        for entry in &entries {
            let path = entry.path.as_slice();
            let refuse = |why| Err(invalid(path, why));
            if path.is_empty() || path.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
                return refuse("is not a clean relative path");
            }
            if path.contains(&0) {
                return refuse("has a NUL byte");
            }
            if last == Some(path) {
                return refuse("is listed twice");
            }
            directories.truncate(directories.iter().take_while(|directory| is_below(path, directory)).count());
            if directories.last().copied().unwrap_or_default() != parent(path) {
                return refuse("is not in a directory that is listed");
            }
            if entry.kind == EntryKind::Directory {
                directories.push(path);
            }
            last = Some(path);
        }
        Ok(Self(entries))
    }
}

fn invalid(path: &[u8], why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("entry {:?} {why}", String::from_utf8_lossy(path)))
}

impl Tree for Listing {
    fn link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let found = self.0.binary_search_by(|entry| compare_paths(&entry.path, path)).ok().map(|at| &self.0[at]);
        Ok(found.filter(|entry| entry.kind == EntryKind::Symlink).map(|entry| entry.link.clone()))
    }

    fn names(&self, directory: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let start = self.0.partition_point(|entry| compare_paths(&entry.path, directory) != Ordering::Greater);
        let within = |entry: &&Entry| directory.is_empty() || is_below(&entry.path, directory);
        let start = if directory.is_empty() { 0 } else { start };
        let below = self.0[start..].iter().take_while(within);
        Ok(below
            .filter(|entry| parent(&entry.path) == directory)
            .map(|entry| crate::patterns::base(&entry.path).to_vec())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.into(), kind, mode: 0o644, size: 0, mtime_ns: 0, link: Vec::new() }
    }

    fn refusal(entries: Vec<Entry>) -> String {
        Listing::new(entries).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_directory_and_what_is_in_it_come_before_names_that_go_on() {
        let mut paths = vec!["a.b", "a/c", "a", "a-b/x", "a-b", "a/b/c", "a/b", "b"];
        paths.sort_by(|left, right| compare_paths(left.as_bytes(), right.as_bytes()));
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/c", "a-b", "a-b/x", "a.b", "b"]);
    }

    #[test]
    fn refuses_what_the_daemon_would_refuse_and_names_it() {
        use EntryKind::{Directory, File};
        assert!(refusal(vec![entry("../x", File)]).contains("\"../x\" is not a clean"));
        assert!(refusal(vec![entry("/x", File)]).contains("not a clean"));
        assert!(refusal(vec![entry("x", File), entry("x", Directory)]).contains("\"x\" is listed twice"));
        assert!(refusal(vec![entry("x/y", File)]).contains("\"x/y\" is not in a directory"));
        assert!(refusal(vec![entry("x", File), entry("x/y", File)]).contains("not in a directory"));
        assert_eq!(refusal(vec![entry("x/y", File), entry("x", Directory), entry("x.z", File)]), "");
    }

    proptest! {
        /// Walking a tree depth first with sorted names gives exactly this order.
        #[test]
        fn order_is_that_of_a_walk(names in proptest::collection::vec("[a-c.!/-]{1,3}", 2..8)) {
            let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
            for left in &names {
                for right in &names {
                    let by_parts = parts(left.as_bytes()).cmp(&parts(right.as_bytes()));
                    prop_assert_eq!(compare_paths(left.as_bytes(), right.as_bytes()), by_parts);
                }
            }
        }
    }
}
