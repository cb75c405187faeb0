//! Follow-paths: paths are selected together with everything their symbolic links lead to, within the source.

use crate::patterns::{base, clean, glob_match, has_wildcards, parent};
use std::{collections::BTreeSet, io};

/// The little of a source that resolving links needs. Paths are clean and relative, the root is empty.
pub(crate) trait Tree {
    /// Where the symbolic link at `path` points; `None` when there is nothing or no link.
    fn link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// The names in a directory; none when it is no directory or not there.
    fn names(&self, directory: &[u8]) -> io::Result<Vec<Vec<u8>>>;
}

/// The given paths and what they lead to, sorted; `None` when that is the whole source.
pub(super) fn follow_links(tree: &dyn Tree, paths: &[Vec<u8>]) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut resolver = Resolver { tree, resolved: BTreeSet::new() };
    for path in paths {
        resolver.resolve(path)?;
    }
    Ok(without_nested(resolver.resolved.into_iter().collect()))
}

/// Leaves out a path that comes right after one above it; `None` when one of them is the root.
pub(super) fn without_nested(paths: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let mut kept: Vec<Vec<u8>> = Vec::with_capacity(paths.len());
    for path in paths {
        if path == b"." {
            return None;
        }
        let last: &[u8] = kept.last().map_or(b"", |last| last);
        let nested = path.strip_prefix(last).is_some_and(|rest| rest.first() == Some(&b'/'));
        if !nested {
            kept.push(path);
        }
    }
    Some(kept)
}

struct Resolver<'t> {
    tree: &'t dyn Tree,
    resolved: BTreeSet<Vec<u8>>,
}

impl Resolver<'_> {
    /// Walks down a path; at a link goes on from each of its targets.
    fn resolve(&mut self, path: &[u8]) -> io::Result<()> {
        let path = clean(&[b"/", path].concat());
        let mut rest = path.strip_prefix(b"/").unwrap_or(&path);
        let mut current = Vec::new();
        if rest.is_empty() {
            self.resolved.insert(b".".to_vec());
            return Ok(());
        }
        loop {
            let (part, after) = rest
                .iter()
                .position(|byte| *byte == b'/')
                .map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 1..]));
            if !current.is_empty() {
                current.push(b'/');
            }
            current.extend_from_slice(part);
            rest = after;
            let targets = self.targets(&current)?;
            if targets.is_empty() {
                if rest.is_empty() {
                    self.resolved.insert(current);
                    return Ok(());
                }
                continue;
            }
            // Seen before: a loop, or done already.
            if self.resolved.insert(current) {
                for target in targets {
                    self.resolve(&[&target, &b"/"[..], rest].concat())?;
                }
            }
            return Ok(());
        }
    }

    /// Where the link at `path` leads, or the links whose names match when its last part has wildcards.
    fn targets(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let (directory, name) = (parent(path), base(path));
        if !has_wildcards(name) {
            return Ok(self.target(path)?.into_iter().collect());
        }
        let mut targets = Vec::new();
        for found in self.tree.names(directory)? {
            if glob_match(name, &found) == Some(true) {
                let path = if directory.is_empty() { found } else { [directory, b"/", &found].concat() };
                targets.extend(self.target(&path)?);
            }
        }
        Ok(targets)
    }

    /// A link's target from the root of the source; what leads above the root stays at the root.
    fn target(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.tree.link(path)?.map(|link| match link.first() {
            Some(b'/') => clean(&link),
            _ => clean(&[b"/", parent(path), b"/", &link].concat()),
        }))
    }
}
