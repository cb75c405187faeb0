//! Which entries of a source are sent: a port of fsutil's filter, applied while walking in order.

use super::{
    Entry, EntryKind,
    follow::{Tree, follow_links, without_nested},
};
use crate::patterns::{BadPattern, ParentMatch, Pattern, Patterns};
use std::io;

/// What the daemon asks of a source. Empty fields select everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// An entry has to match one of these, or be above one that does.
    pub include: Vec<Vec<u8>>,
    /// An entry must not match these: the patterns of `.dockerignore`.
    pub exclude: Vec<Vec<u8>>,
    /// Paths that are included together with all that their symbolic links lead to.
    pub follow: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Sent.
    Keep,
    /// Not sent by itself; entries below it may be, and it will be sent before them.
    Skip,
    /// Neither it nor anything below it is sent.
    Prune,
}

/// Sees every entry of a walk in order and passes on the selected ones.
pub(crate) struct Filter {
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    /// The directories above the entry seen last.
    above: Vec<Above>,
}

struct Matcher {
    patterns: Patterns,
    /// No pattern that could bring an entry back has wildcards before its end, so that a directory can be ruled out by its path.
    prefixes_only: bool,
}

struct Above {
    path: Vec<u8>,
    /// The directory itself, as long as it has not been sent.
    unsent: Option<Entry>,
    include: ParentMatch,
    exclude: ParentMatch,
}

impl Filter {
    /// # Errors
    /// A malformed pattern, or an error of the source while links are resolved.
    pub(crate) fn new(selection: &Selection, tree: &dyn Tree) -> io::Result<Self> {
        let mut include = selection.include.clone();
        if !selection.follow.is_empty()
            && let Some(targets) = follow_links(tree, &selection.follow)?
        {
            include.extend(targets);
            include = without_nested(include).unwrap_or_default();
        }
        let include = Matcher::new(&include, |pattern| !pattern.is_exception())?;
        let exclude = Matcher::new(&selection.exclude, Pattern::is_exception)?;
        Ok(Self { include, exclude, above: Vec::new() })
    }

    /// Decides on the next entry; it and directories above it that were held back go to `emit`.
    pub(crate) fn visit(&mut self, entry: Entry, emit: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<Verdict> {
        self.leave(&entry.path);
        let mut above =
            Above { path: Vec::new(), unsent: None, include: ParentMatch::default(), exclude: ParentMatch::default() };
        let verdict = self.judge(&entry, &mut above);
        if verdict == Verdict::Keep {
            for directory in &mut self.above {
                if let Some(unsent) = directory.unsent.take() {
                    emit(unsent)?;
                }
            }
        }
        let directory = entry.kind == EntryKind::Directory && verdict != Verdict::Prune;
        if directory {
            above.path.clone_from(&entry.path);
        }
        match verdict {
            Verdict::Keep => emit(entry)?,
            Verdict::Skip if directory => above.unsent = Some(entry),
            _ => {}
        }
        if directory && (self.include.is_some() || self.exclude.is_some()) {
            self.above.push(above);
        }
        Ok(verdict)
    }

    fn leave(&mut self, path: &[u8]) {
        while let Some(last) = self.above.last() {
            if path.strip_prefix(last.path.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/')) {
                break;
            }
            self.above.pop();
        }
    }

    fn judge(&self, entry: &Entry, found: &mut Above) -> Verdict {
        let directory = entry.kind == EntryKind::Directory;
        let parent = self.above.last();
        let mut skip = false;
        if let Some(include) = &self.include {
            let (matched, info) = include.patterns.matches_below(&entry.path, parent.map(|parent| &parent.include));
            found.include = info;
            if !matched {
                if directory && include.prefixes_only && !include.reaches_into(&entry.path, false) {
                    return Verdict::Prune;
                }
                skip = true;
            }
        }
        if let Some(exclude) = &self.exclude {
            let (matched, info) = exclude.patterns.matches_below(&entry.path, parent.map(|parent| &parent.exclude));
            found.exclude = info;
            if matched {
                if directory && exclude.prefixes_only && !exclude.reaches_into(&entry.path, true) {
                    return Verdict::Prune;
                }
                skip = true;
            }
        }
        if skip { Verdict::Skip } else { Verdict::Keep }
    }
}

impl Matcher {
    fn new(patterns: &[Vec<u8>], brings_back: impl Fn(&Pattern) -> bool) -> io::Result<Option<Self>> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let patterns =
            Patterns::new(patterns).map_err(|error: BadPattern| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let wild = |pattern: &Pattern| pattern.without_trailing_glob().iter().any(|byte| br"*[]?^\".contains(byte));
        let prefixes_only = !patterns.iter().any(|pattern| brings_back(pattern) && wild(pattern));
        Ok(Some(Self { patterns, prefixes_only }))
    }

    /// Whether a pattern (an exception, or none) could match below a directory.
    fn reaches_into(&self, directory: &[u8], exceptions: bool) -> bool {
        self.patterns.iter().filter(|pattern| pattern.is_exception() == exceptions).any(|pattern| {
            let prefix = pattern.without_trailing_glob();
            // Compared with a slash at the end of both: `a` reaches into `a`, `ab` does not.
            prefix == directory || prefix.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
        })
    }
}
