//! Finds what goes into a snapshot: lists a tree in parallel, applies the ignore rules, says what was left out.
//!
//! Nothing is read here but ignore files and links; symbolic links are never followed.

mod dockerfile;
pub mod ignore;
#[cfg(test)]
mod tests;
mod tracked;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use buildkit::compare_paths;

use super::Caps;
use super::entry::{TIMES, canonical_mode, parent, show};
use dockerfile::Dockerfile;
use ignore::{Level, Rules, Verdict, join};

/// What to take a snapshot of.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The build's context.
    pub root: PathBuf,
    /// The Dockerfile, relative to the working directory or absolute, in the context or not; `None` is `Dockerfile` in `root`.
    pub dockerfile: Option<PathBuf>,
    /// Send `.git` as well.
    pub include_git: bool,
    pub caps: Caps,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub reason: String,
    pub entries: u64,
    pub bytes: u64,
}

/// Something about the tree that the user has to put right.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("no Dockerfile: looked for {looked_for}; name another one with -f")]
    NoDockerfile { looked_for: String },
    #[error("{}: {bad}", .path.display())]
    Pattern { path: PathBuf, bad: buildkit::patterns::BadPattern },
    #[error("{0} keeps changing while it is read")]
    Changing(String),
    #[error("{0}")]
    Refused(#[from] super::manifest::rules::Broken),
    #[error("out of memory while compressing")]
    Compression(#[source] io::Error),
}

impl TreeError {
    fn unreadable(path: &Path, error: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), error }
    }
}

/// An entry that goes into the snapshot; a file's content has not been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: Vec<u8>,
    pub mode: u32,
    pub mtime: i64,
    pub kind: FoundKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    Directory,
    /// With the size it had, and where it is when that is not `path` in the tree.
    File {
        size: u64,
        elsewhere: Option<PathBuf>,
    },
    Symlink(Vec<u8>),
}

impl Found {
    /// Of a file when it was listed, bytes; 0 for anything else.
    pub fn size(&self) -> u64 {
        if let FoundKind::File { size, .. } = self.kind { size } else { 0 }
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Walked {
    /// The tree's root, without links.
    pub root: PathBuf,
    /// In the snapshot's order.
    pub found: Vec<Found>,
    /// The Dockerfile's path in the snapshot.
    pub dockerfile: String,
    pub left_out: Vec<LeftOut>,
    pub warnings: Vec<String>,
}

/// Lists a tree with `threads` threads.
pub fn walk(tree: &Tree, threads: usize) -> Result<Walked, TreeError> {
    let root = fs::canonicalize(&tree.root).map_err(|error| TreeError::unreadable(&tree.root, error))?;
    if !root.is_dir() {
        return Err(TreeError::NotADirectory(tree.root.clone()));
    }
    let dockerfile = Dockerfile::find(tree.dockerfile.as_deref(), &root)?;
    let rules = Rules::new(&root, dockerfile.ignore_rules(), tree.include_git)
        .map_err(|bad| TreeError::Pattern { path: dockerfile.ignore_path(), bad })?;
    let walker = Walker { root: &root, rules: &rules, state: Mutex::default(), changed: Condvar::new() };
    std::thread::scope(|scope| {
        walker.push(Task { path: Vec::new(), above: None, detour: false });
        (0..threads.max(1)).for_each(|_| drop(scope.spawn(|| walker.work())));
    });
    let state = walker.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.error {
        return Err(error);
    }
    let mut walked = state.into_walked(root);
    walked.warnings.extend(rules.into_warnings());
    walked.dockerfile = dockerfile.place(&mut walked)?;
    Ok(walked)
}

/// Threads that take directories from one stack until it is empty and nobody is at work.
struct Walker<'a> {
    root: &'a Path,
    rules: &'a Rules,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    /// Tasks taken and not done.
    working: usize,
    seen: Seen,
    error: Option<TreeError>,
}

/// A directory to list.
struct Task {
    path: Vec<u8>,
    above: Option<Arc<Level>>,
    /// Left out unless something below it is kept.
    detour: bool,
}

/// What listing a directory, or many, brought.
#[derive(Default)]
struct Seen {
    /// With the reason to leave the entry out unless something below it is kept.
    found: Vec<(Found, Option<Arc<str>>)>,
    left_out: BTreeMap<Arc<str>, (u64, u64)>,
    warnings: Vec<String>,
    directories: Vec<Task>,
}

impl Walker<'_> {
    fn push(&self, task: Task) {
        self.locked().tasks.push(task);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut seen = Seen::default();
        while let Some(task) = self.next() {
            let listed = self.list(&task, &mut seen);
            let mut state = self.locked();
            state.working -= 1;
            state.tasks.append(&mut seen.directories);
            if let Err(error) = listed {
                state.error.get_or_insert(error);
            }
            drop(state);
            self.changed.notify_all();
        }
        self.locked().seen.merge(seen);
    }

    /// Waits for a task; `None` when there will be no more.
    fn next(&self) -> Option<Task> {
        let mut state = self.locked();
        loop {
            if state.error.is_some() {
                return None;
            }
            if let Some(task) = state.tasks.pop() {
                state.working += 1;
                return Some(task);
            }
            if state.working == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn list(&self, task: &Task, seen: &mut Seen) -> Result<(), TreeError> {
        let directory = self.root.join(OsStr::from_bytes(&task.path));
        let failed = |error| TreeError::unreadable(&directory, error);
        let entries: io::Result<Vec<fs::DirEntry>> = fs::read_dir(&directory).and_then(Iterator::collect);
        let entries = match entries {
            Err(error) if task.detour && error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        let names: Vec<Vec<u8>> = entries.iter().map(|entry| entry.file_name().into_vec()).collect();
        let level = Arc::new(match &task.above {
            None => self.rules.root(&names),
            Some(above) => self.rules.level(above, &task.path, &names),
        });
        for (entry, name) in entries.iter().zip(&names) {
            self.see(entry, join(&task.path, name), &level, seen)?;
        }
        Ok(())
    }

    fn see(&self, entry: &fs::DirEntry, path: Vec<u8>, level: &Arc<Level>, seen: &mut Seen) -> Result<(), TreeError> {
        let kind = entry.file_type().map_err(|error| TreeError::unreadable(&entry.path(), error))?;
        let detour = match self.rules.judge(level, &path, kind.is_dir()) {
            Verdict::Keep => None,
            Verdict::Enter(reason) => Some(reason),
            Verdict::LeaveOut(reason) => {
                let size = if kind.is_file() { entry.metadata().map_or(0, |metadata| metadata.len()) } else { 0 };
                seen.leave_out(reason, size);
                return Ok(());
            }
        };
        if let Some(what) = special(kind) {
            seen.warnings.push(format!("{} is skipped: it is a {what}", show(&path)));
            return Ok(());
        }
        let Some(found) = find(entry, path, kind)? else { return Ok(()) };
        if found.kind == FoundKind::Directory {
            let above = Some(Arc::clone(level));
            seen.directories.push(Task { path: found.path.clone(), above, detour: detour.is_some() });
        }
        seen.found.push((found, detour));
        Ok(())
    }
}

/// What cannot be in a snapshot.
fn special(kind: fs::FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_socket() => Some("socket"),
        kind if kind.is_fifo() => Some("named pipe"),
        kind if kind.is_block_device() || kind.is_char_device() => Some("device"),
        _ => None,
    }
}

/// `None` for what is gone meanwhile.
fn find(entry: &fs::DirEntry, path: Vec<u8>, kind: fs::FileType) -> Result<Option<Found>, TreeError> {
    let failed = |error| TreeError::unreadable(&entry.path(), error);
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(failed)?,
    };
    let mut found = Found {
        path,
        mode: canonical_mode(metadata.mode(), kind.is_dir()),
        mtime: canonical_time(metadata.mtime()),
        kind: FoundKind::File { size: metadata.len(), elsewhere: None },
    };
    if kind.is_dir() {
        found.kind = FoundKind::Directory;
    } else if kind.is_symlink() {
        let target = fs::read_link(entry.path()).map_err(failed)?;
        found.kind = FoundKind::Symlink(OsString::from(target).into_vec());
        found.mode = 0o777;
    }
    Ok(Some(found))
}

pub fn canonical_time(seconds: i64) -> i64 {
    seconds.clamp(*TIMES.start(), *TIMES.end())
}

impl Seen {
    fn leave_out(&mut self, reason: Arc<str>, size: u64) {
        let (entries, bytes) = self.left_out.entry(reason).or_default();
        *entries += 1;
        *bytes += size;
    }

    /// Drops the directories that were entered for what might be kept below them, where nothing was.
    fn without_empty_detours(&mut self, found: Vec<(Found, Option<Arc<str>>)>) -> Vec<Found> {
        let mut kept: Vec<Found> = Vec::with_capacity(found.len());
        // Those that the entry at hand is in, from the outermost.
        let mut detours: Vec<(Found, Arc<str>)> = Vec::new();
        for (entry, detour) in found {
            while let Some((_, reason)) = detours.pop_if(|(above, _)| parent(&entry.path) != above.path) {
                self.leave_out(reason, 0);
            }
            match detour {
                Some(reason) => detours.push((entry, reason)),
                None => {
                    kept.extend(detours.drain(..).map(|(above, _)| above));
                    kept.push(entry);
                }
            }
        }
        detours.into_iter().for_each(|(_, reason)| self.leave_out(reason, 0));
        kept
    }

    fn merge(&mut self, other: Self) {
        self.found.extend(other.found);
        self.warnings.extend(other.warnings);
        for (reason, (entries, bytes)) in other.left_out {
            let sum = self.left_out.entry(reason).or_default();
            *sum = (sum.0 + entries, sum.1 + bytes);
        }
    }
}

impl State {
    fn into_walked(self, root: PathBuf) -> Walked {
        let mut seen = self.seen;
        let mut found = std::mem::take(&mut seen.found);
        found.sort_unstable_by(|(left, _), (right, _)| compare_paths(&left.path, &right.path));
        let found = seen.without_empty_detours(found);
        seen.warnings.sort_unstable();
        let left_out = seen.left_out.into_iter();
        let left_out =
            left_out.map(|(reason, (entries, bytes))| LeftOut { reason: reason.to_string(), entries, bytes });
        Walked { root, found, left_out: left_out.collect(), warnings: seen.warnings, dockerfile: String::new() }
    }
}
