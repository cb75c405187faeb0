//! The Dockerfile and its ignore file: both are always sent, wherever they are.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use buildkit::compare_paths;

use super::ignore::{find_docker_ignore, join};
use super::{Found, FoundKind, TreeError, Walked, canonical_time};
use crate::snapshots::entry::RESERVED;

/// Where they are.
pub struct Dockerfile {
    path: PathBuf,
    /// Relative to the root, when it is a plain file in it.
    within: Option<Vec<u8>>,
    /// The ignore file's path and content.
    ignore: Option<(PathBuf, Vec<u8>)>,
    ignore_within: Option<Vec<u8>>,
}

impl Dockerfile {
    /// `named` as on the command line; `root` without links.
    pub fn find(named: Option<&Path>, root: &Path) -> Result<Self, TreeError> {
        let candidates = match named {
            Some(path) => vec![path.to_owned()],
            None => vec![root.join("Dockerfile"), root.join("dockerfile")],
        };
        let looked_for = || candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ");
        let found = candidates.iter().find(|path| path.is_file());
        let path = found.ok_or_else(|| TreeError::NoDockerfile { looked_for: looked_for() })?.clone();
        let ignore = find_docker_ignore(&path, root)?;
        let ignore_within = ignore.as_ref().and_then(|(path, _)| place_within(path, root));
        Ok(Self { within: place_within(&path, root), path, ignore, ignore_within })
    }

    /// The ignore file's name for the summary, and its content.
    pub fn ignore_rules(&self) -> Option<(String, Vec<u8>)> {
        let (path, content) = self.ignore.clone()?;
        Some((path.file_name()?.to_string_lossy().into_owned(), content))
    }

    pub fn ignore_path(&self) -> PathBuf {
        self.ignore.as_ref().map_or_else(PathBuf::new, |(path, _)| path.clone())
    }

    /// Sees to it that both are in what was found, and says where the Dockerfile is: in the context when both are part of it, else as
    /// `.kiln/<name>`, with the ignore file beside it as `<name>.dockerignore`.
    pub fn place(&self, walked: &mut Walked) -> Result<String, TreeError> {
        let is_found = |path: &Vec<u8>| {
            let at = walked.found.binary_search_by(|found| compare_paths(&found.path, path));
            at.is_ok_and(|at| matches!(walked.found[at].kind, FoundKind::File { .. }))
        };
        let ignore_found = self.ignore.is_none() || self.ignore_within.as_ref().is_some_and(is_found);
        if let Some(within) = self.within.as_ref().filter(|within| is_found(within) && ignore_found)
            && let Ok(path) = std::str::from_utf8(within)
        {
            return Ok(path.to_owned());
        }
        self.send_beside(walked)
    }

    fn send_beside(&self, walked: &mut Walked) -> Result<String, TreeError> {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or("Dockerfile");
        let mut beside = vec![reserved_directory()];
        beside.push(reserved_file(name, &self.path)?);
        if let Some((path, _)) = &self.ignore {
            beside.push(reserved_file(&format!("{name}.dockerignore"), path)?);
        }
        let at = walked.found.partition_point(|found| compare_paths(&found.path, RESERVED).is_lt());
        walked.found.splice(at..at, beside);
        Ok(format!("{}/{name}", String::from_utf8_lossy(RESERVED)))
    }
}

fn reserved_directory() -> Found {
    Found { path: RESERVED.to_vec(), mode: 0o755, mtime: 0, kind: FoundKind::Directory }
}

fn reserved_file(name: &str, path: &Path) -> Result<Found, TreeError> {
    let metadata = fs::metadata(path).map_err(|error| TreeError::unreadable(path, error))?;
    let source = fs::canonicalize(path).map_err(|error| TreeError::unreadable(path, error))?;
    let kind = FoundKind::File { size: metadata.len(), elsewhere: Some(source) };
    Ok(Found { path: join(RESERVED, name.as_bytes()), mode: 0o644, mtime: canonical_time(metadata.mtime()), kind })
}

/// Where a plain file is in the root. One that is a link is sent as if it was outside: what it leads to may be.
fn place_within(path: &Path, root: &Path) -> Option<Vec<u8>> {
    let plain = |path: &Path| -> io::Result<bool> { Ok(fs::symlink_metadata(path)?.is_file()) };
    if !plain(path).ok()? {
        return None;
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::canonicalize(parent).ok()?,
        _ => std::env::current_dir().and_then(fs::canonicalize).ok()?,
    };
    let relative = directory.strip_prefix(root).ok()?;
    Some(join(relative.as_os_str().as_bytes(), path.file_name()?.as_bytes()))
}
