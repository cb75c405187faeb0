//! What is left out of a snapshot, and why.
//!
//! * the Dockerfile's ignore file (docker's rules) and `.kilnignore` (git's rules, in any directory) always win;
//! * what they bring back by `!` is in, whatever `.gitignore` says;
//! * `.gitignore` of the tree leaves out what git does not track. No global, parent or `.ignore` file counts, nor `.git/info/exclude`;
//! * `.git` is left out unless asked for, and a `.kiln` in the root is always.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use buildkit::patterns::{BadPattern, ParentMatch, Patterns, parse_ignore_file};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::TreeError;
use super::tracked::Tracked;
use crate::snapshots::entry::{RESERVED, show};

pub const GITIGNORE: &str = ".gitignore";
pub const KILNIGNORE: &str = ".kilnignore";

/// What is to become of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Left out, for this reason.
    LeaveOut(Arc<str>),
    /// A directory that is left out unless something below it is kept.
    Enter(Arc<str>),
}

/// The rules of the whole tree.
pub struct Rules {
    root: PathBuf,
    docker: Option<Docker>,
    include_git: bool,
    warnings: Mutex<Vec<String>>,
}

/// The Dockerfile's ignore file.
struct Docker {
    name: Arc<str>,
    patterns: Patterns,
    /// Those that bring back, as if they left out.
    exceptions: Patterns,
    exception_texts: Vec<Vec<u8>>,
}

/// The rules in force in one directory.
pub struct Level {
    /// Relative to the root; empty for the root.
    path: Vec<u8>,
    above: Option<Arc<Level>>,
    git: Option<Gitignore>,
    kiln: Option<Gitignore>,
    repository: Option<Arc<Repository>>,
    /// The directory itself is named by a `.gitignore`: so is all that is in it.
    git_ignored: bool,
    docker: Option<ParentMatch>,
}

/// A git repository that the tree is in, or that is in the tree.
struct Repository {
    top: PathBuf,
    /// What to put before a path relative to the root, or to take from it, to get one relative to `top`.
    place: Place,
    tracked: OnceLock<Tracked>,
}

enum Place {
    Above { prefix: Vec<u8> },
    Within { directory: Vec<u8> },
}

impl Rules {
    /// `docker` is the Dockerfile's ignore file: its name for the summary, and its content.
    pub fn new(root: &Path, docker: Option<(String, Vec<u8>)>, include_git: bool) -> Result<Self, BadPattern> {
        let docker = docker.map(|(name, content)| Docker::new(name, &content)).transpose()?;
        Ok(Self { root: root.to_owned(), docker, include_git, warnings: Mutex::default() })
    }

    /// What went wrong on the way and does not matter much: ignore files that cannot be read.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner().unwrap_or_default()
    }

    fn warn(&self, warning: String) {
        if let Ok(mut warnings) = self.warnings.lock() {
            warnings.push(warning);
        }
    }

    /// The rules in the root directory, which holds `names`.
    pub fn root(&self, names: &[Vec<u8>]) -> Level {
        let mut level = Level {
            path: Vec::new(),
            above: None,
            git: None,
            kiln: None,
            repository: Repository::around(&self.root),
            git_ignored: false,
            docker: None,
        };
        self.read_ignore_files(&mut level, names);
        level
    }

    /// The rules in a directory of `above` that is entered. `names` are what it holds.
    pub fn level(&self, above: &Arc<Level>, path: &[u8], names: &[Vec<u8>]) -> Level {
        let nested = names.iter().any(|name| name == b".git");
        let repository = if nested { Some(Repository::within(&self.root, path)) } else { above.repository.clone() };
        let mut level = Level {
            path: path.to_vec(),
            above: Some(Arc::clone(above)),
            git: None,
            kiln: None,
            repository,
            git_ignored: self.is_git_ignored(above, path, true) && !self.is_brought_back(above, path, true),
            docker: self.docker.as_ref().map(|docker| docker.patterns.matches_below(path, above.docker.as_ref()).1),
        };
        self.read_ignore_files(&mut level, names);
        level
    }

    fn read_ignore_files(&self, level: &mut Level, names: &[Vec<u8>]) {
        let read = |name: &str| {
            let there = names.iter().any(|there| there == name.as_bytes());
            there.then(|| self.read_ignore_file(&level.path, name)).flatten()
        };
        (level.git, level.kiln) = (read(GITIGNORE), read(KILNIGNORE));
    }

    /// Lines that cannot be understood are left out, as git does.
    fn read_ignore_file(&self, directory: &[u8], name: &str) -> Option<Gitignore> {
        let path = join(directory, name.as_bytes());
        let content = fs::read(self.root.join(OsStr::from_bytes(&path)))
            .map_err(|error| self.warn(format!("{} is not used: {error}", show(&path))))
            .ok()?;
        let mut builder = GitignoreBuilder::new("");
        for line in String::from_utf8_lossy(&content).lines() {
            if let Err(error) = builder.add_line(None, line) {
                self.warn(format!("{}: a line is not used: {error}", show(&path)));
            }
        }
        builder.build().map_err(|error| self.warn(format!("{} is not used: {error}", show(&path)))).ok()
    }

    /// Judges an entry of the directory that `level` is for.
    pub fn judge(&self, level: &Level, path: &[u8], directory: bool) -> Verdict {
        let name = level.name(path);
        if name == b".git" && !self.include_git {
            return Verdict::LeaveOut(".git".into());
        }
        if path == RESERVED {
            return Verdict::LeaveOut(".kiln (reserved)".into());
        }
        if let Some(docker) = &self.docker
            && docker.patterns.matches_below(path, level.docker.as_ref()).0
        {
            let enter = directory && docker.may_bring_back_below(path);
            return enter_or_leave(enter, &docker.name);
        }
        if matches!(level.matched_kiln(path, directory), Match::Ignore(_)) {
            return Verdict::LeaveOut(KILNIGNORE.into());
        }
        if !self.is_git_ignored(level, path, directory) || self.is_brought_back(level, path, directory) {
            return Verdict::Keep;
        }
        if !directory {
            let tracked = self.is_tracked(level, |tracked, path| tracked.has(path), path);
            return if tracked { Verdict::Keep } else { Verdict::LeaveOut(GITIGNORE.into()) };
        }
        let enter = self.is_tracked(level, |tracked, path| tracked.has_below(path), path)
            || self.docker.as_ref().is_some_and(|docker| docker.may_bring_back_below(path))
            || level.chain().any(|level| level.kiln.as_ref().is_some_and(|kiln| kiln.num_whitelists() > 0));
        enter_or_leave(enter, GITIGNORE)
    }

    fn is_git_ignored(&self, level: &Level, path: &[u8], directory: bool) -> bool {
        level.git_ignored || matches!(level.matched_git(path, directory), Match::Ignore(_))
    }

    /// Whether the rules that always win name this entry with a `!`.
    fn is_brought_back(&self, level: &Level, path: &[u8], directory: bool) -> bool {
        let by_kiln = || matches!(level.matched_kiln(path, directory), Match::Whitelist(_));
        self.docker.as_ref().is_some_and(|docker| docker.exceptions.matches(path)) || by_kiln()
    }

    fn is_tracked(&self, level: &Level, ask: impl Fn(&Tracked, &[u8]) -> bool, path: &[u8]) -> bool {
        let Some(repository) = &level.repository else { return false };
        ask(repository.tracked(self), &repository.relative(path))
    }
}

fn enter_or_leave(enter: bool, reason: &str) -> Verdict {
    if enter { Verdict::Enter(reason.into()) } else { Verdict::LeaveOut(reason.into()) }
}

impl Docker {
    fn new(name: String, content: &[u8]) -> Result<Self, BadPattern> {
        let lines = parse_ignore_file(content);
        let exception_texts: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(b"!")).map(clean).collect();
        let (patterns, exceptions) = (Patterns::new(&lines)?, Patterns::new(&exception_texts)?);
        Ok(Self { name: name.into(), patterns, exceptions, exception_texts })
    }

    /// Whether an exception could match something in a directory.
    fn may_bring_back_below(&self, directory: &[u8]) -> bool {
        self.exception_texts.iter().any(|pattern| {
            let (mut parts, mut names) = (pattern.split(|byte| *byte == b'/'), directory.split(|byte| *byte == b'/'));
            loop {
                match (parts.next(), names.next()) {
                    (Some(part), _) if part.iter().any(|byte| br"*?[\^".contains(byte)) => return true,
                    (Some(part), Some(name)) if part == name => {}
                    (Some(_), Some(_)) => return false,
                    (_, None) | (None, _) => return true,
                }
            }
        })
    }
}

/// Without slashes at the ends, as patterns are compared.
fn clean(pattern: &[u8]) -> Vec<u8> {
    let pattern = pattern.trim_ascii();
    let start = pattern.iter().take_while(|byte| **byte == b'/').count();
    let end = pattern.iter().rev().take_while(|byte| **byte == b'/').count();
    pattern.get(start..pattern.len().saturating_sub(end)).unwrap_or_default().to_vec()
}

impl Level {
    /// This directory, the one above, and so on.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |level| level.above.as_deref())
    }

    fn name<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        relative_to(path, &self.path)
    }

    fn matched_git(&self, path: &[u8], directory: bool) -> Match<()> {
        self.matched(path, directory, |level| level.git.as_ref())
    }

    fn matched_kiln(&self, path: &[u8], directory: bool) -> Match<()> {
        self.matched(path, directory, |level| level.kiln.as_ref())
    }

    /// The file nearest to the entry that says something about it decides.
    fn matched(&self, path: &[u8], directory: bool, file: impl Fn(&Self) -> Option<&Gitignore>) -> Match<()> {
        for level in self.chain() {
            let Some(file) = file(level) else { continue };
            let relative = Path::new(OsStr::from_bytes(relative_to(path, &level.path)));
            let found = file.matched(relative, directory);
            if !found.is_none() {
                return found.map(|_| ());
            }
        }
        Match::None
    }
}

impl Repository {
    /// The one whose working tree `root` is in.
    fn around(root: &Path) -> Option<Arc<Self>> {
        let top = root.ancestors().find(|above| above.join(".git").exists())?;
        let prefix = root.strip_prefix(top).ok()?.as_os_str().as_bytes().to_vec();
        Some(Arc::new(Self { top: top.to_owned(), place: Place::Above { prefix }, tracked: OnceLock::new() }))
    }

    /// One of its own in a directory of the tree.
    fn within(root: &Path, directory: &[u8]) -> Arc<Self> {
        let place = Place::Within { directory: directory.to_vec() };
        Arc::new(Self { top: root.join(OsStr::from_bytes(directory)), place, tracked: OnceLock::new() })
    }

    /// Read when the first file is ignored; a tree without such files does not need it.
    fn tracked(&self, rules: &Rules) -> &Tracked {
        self.tracked.get_or_init(|| {
            Tracked::of(&self.top).unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                rules.warn(format!("git's index of {} {error}{cause}; .gitignore alone decides", self.top.display()));
                Tracked::default()
            })
        })
    }

    fn relative(&self, path: &[u8]) -> Vec<u8> {
        match &self.place {
            Place::Above { prefix } => join(prefix, path),
            Place::Within { directory } => relative_to(path, directory).to_vec(),
        }
    }
}

/// `name` in `directory`, which is empty for the root.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn relative_to<'p>(path: &'p [u8], directory: &[u8]) -> &'p [u8] {
    if directory.is_empty() { path } else { path.get(directory.len() + 1..).unwrap_or_default() }
}

/// The Dockerfile's ignore file: `<Dockerfile>.dockerignore` beside it, or else `.dockerignore` in the root. Its path and content.
///
/// # Errors
/// When one of them is there and cannot be read, say as it is a directory; the error names that one.
pub fn find_docker_ignore(dockerfile: &Path, root: &Path) -> Result<Option<(PathBuf, Vec<u8>)>, TreeError> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), root.join(".dockerignore")] {
        match fs::read(&path) {
            Ok(content) => return Ok(Some((path, content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TreeError::unreadable(&path, error)),
        }
    }
    Ok(None)
}
