//! Which files git tracks: read from the index, so that neither git nor its idea of a safe directory is needed.
//!
//! Format: <https://git-scm.com/docs/index-format>, versions 2 to 4. A split index is left to git itself.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The paths in a repository's index, in byte order.
#[derive(Debug, Default)]
pub struct Tracked(Vec<Vec<u8>>);

/// An index that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("cannot be read")]
    Read(#[from] io::Error),
    #[error("is not an index of version 2 to 4")]
    Unknown,
    #[error("is split, and git could not list it")]
    Split,
}

impl Tracked {
    /// Of the repository whose working tree is `top` (which holds `.git`, a directory or a file). None where nothing was ever added.
    pub fn of(top: &Path) -> Result<Self, IndexError> {
        let git = git_directory(top)?;
        let index = match fs::read(git.join("index")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            index => index?,
        };
        let parsed = parse(&index, digest_length(&git)).ok_or(IndexError::Unknown)?;
        let mut paths = if parsed.split { list(top)? } else { parsed.paths };
        paths.sort_unstable();
        Ok(Self(paths))
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.0.binary_search_by(|tracked| tracked.as_slice().cmp(path)).is_ok()
    }

    /// Whether anything below a directory is tracked.
    pub fn has_below(&self, directory: &[u8]) -> bool {
        let prefix = [directory, b"/"].concat();
        let at = self.0.partition_point(|tracked| *tracked < prefix);
        self.0.get(at).is_some_and(|tracked| tracked.starts_with(&prefix))
    }
}

/// `.git`, or where the file `.git` of a worktree or submodule points.
fn git_directory(top: &Path) -> io::Result<PathBuf> {
    let git = top.join(".git");
    if git.is_dir() {
        return Ok(git);
    }
    let text = fs::read(&git)?;
    let target = text.strip_prefix(b"gitdir: ").map(<[u8]>::trim_ascii_end).ok_or(io::ErrorKind::InvalidData)?;
    Ok(top.join(OsStr::from_bytes(target)))
}

/// Bytes of an object id: a repository with SHA-256 says so in its configuration, a worktree's is that of the main one.
fn digest_length(git: &Path) -> usize {
    let common = fs::read_to_string(git.join("commondir")).map_or(git.to_owned(), |path| git.join(path.trim_end()));
    let config = fs::read_to_string(common.join("config")).unwrap_or_default().to_ascii_lowercase();
    let sha256 = config.lines().any(|line| line.trim_start().starts_with("objectformat") && line.contains("sha256"));
    if sha256 { 32 } else { 20 }
}

fn list(top: &Path) -> Result<Vec<Vec<u8>>, IndexError> {
    let listed = Command::new("git").arg("-C").arg(top).args(["ls-files", "-z"]).stderr(Stdio::null()).output();
    let listed = listed.ok().filter(|listed| listed.status.success()).ok_or(IndexError::Split)?;
    Ok(listed.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
}

struct Parsed {
    paths: Vec<Vec<u8>>,
    /// Entries of another file are to be merged in.
    split: bool,
}

/// `None` for what is not an index.
fn parse(index: &[u8], digest: usize) -> Option<Parsed> {
    let rest = index.strip_prefix(b"DIRC")?;
    let (version, rest) = number(rest)?;
    let (count, mut rest) = number(rest)?;
    if !(2..=4).contains(&version) {
        return None;
    }
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count {
        // Ten numbers of 32 bits, the object's id, 16 bits of flags; one of them announces 16 more.
        let head = 40 + digest + 2;
        let flags = u16::from_be_bytes([*rest.get(head - 2)?, *rest.get(head - 1)?]);
        let head = if flags & 0x4000 != 0 { head + 2 } else { head };
        let (path, length) = if version == 4 {
            compressed_path(rest.get(head..)?, paths.last().map_or(b"", Vec::as_slice))?
        } else {
            padded_path(rest.get(head..)?, head)?
        };
        rest = rest.get(head + length..)?;
        paths.push(path);
    }
    Some(Parsed { paths, split: has_extension(rest, digest, b"link") })
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// A path and the bytes it takes: one to eight NULs make the entry a multiple of eight.
fn padded_path(bytes: &[u8], head: usize) -> Option<(Vec<u8>, usize)> {
    let length = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes[..length].to_vec(), (head + length + 8) / 8 * 8 - head))
}

/// A path that says how many bytes of the one before to drop, and what then follows.
fn compressed_path(bytes: &[u8], last: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut at = 0;
    let mut drop = 0_usize;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        drop = drop.checked_mul(128)?.checked_add(usize::from(byte & 0x7f))?;
        if byte & 0x80 == 0 {
            break;
        }
        drop += 1;
    }
    let length = bytes.get(at..)?.iter().position(|byte| *byte == 0)?;
    let kept = last.get(..last.len().checked_sub(drop)?)?;
    Some(([kept, &bytes[at..at + length]].concat(), at + length + 1))
}

fn has_extension(mut rest: &[u8], digest: usize, wanted: &[u8; 4]) -> bool {
    while rest.len() > digest {
        let Some((signature, after)) = rest.split_first_chunk::<4>() else { return false };
        if signature == wanted {
            return true;
        }
        let Some((length, after)) = number(after) else { return false };
        let Some(next) = after.get(length as usize..) else { return false };
        rest = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(top: &Path, arguments: &[&str]) {
        let status = Command::new("git").arg("-C").arg(top).args(arguments).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    }

    /// A repository with these options, and files added to it.
    fn repository(init: &[&str], options: &[(&str, &str)]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        git(top.path(), &[&["init", "-q"], init].concat());
        for (name, value) in options {
            git(top.path(), &["config", name, value]);
        }
        fs::create_dir_all(top.path().join("src/deep/er")).unwrap();
        for name in ["a", "src/b", "src/deep/er/with space", "src/deep/er/with\nline", "zzz", "not added"] {
            fs::write(top.path().join(name), name).unwrap();
        }
        git(top.path(), &["add", "a", "src", "zzz"]);
        top
    }

    fn check(tracked: &Tracked) {
        for path in ["a", "src/b", "src/deep/er/with space", "src/deep/er/with\nline", "zzz"] {
            assert!(tracked.has(path.as_bytes()), "{path}");
        }
        assert_eq!(tracked.0.len(), 5);
        assert!(tracked.has_below(b"src") && tracked.has_below(b"src/deep"));
        assert!(!tracked.has_below(b"a") && !tracked.has_below(b"sr") && !tracked.has(b"not added"));
    }

    #[test]
    fn reads_every_version_of_the_index() {
        for version in ["2", "4"] {
            let top = repository(&[], &[("index.version", version)]);
            git(top.path(), &["update-index", "--index-version", version]);
            check(&Tracked::of(top.path()).unwrap());
        }
        // An intent to add makes it version 3.
        let top = repository(&[], &[("index.version", "2")]);
        git(top.path(), &["add", "-N", "not added"]);
        assert!(Tracked::of(top.path()).unwrap().has(b"not added"));
    }

    #[test]
    fn reads_long_object_ids_and_a_split_index() {
        check(&Tracked::of(repository(&["--object-format=sha256"], &[]).path()).unwrap());
        let top = repository(&[], &[]);
        git(top.path(), &["update-index", "--split-index"]);
        check(&Tracked::of(top.path()).unwrap());
    }

    #[test]
    fn follows_a_git_file() {
        let top = repository(&[], &[]);
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(top.path().join(".git"), elsewhere.path().join("git")).unwrap();
        fs::write(top.path().join(".git"), format!("gitdir: {}/git\n", elsewhere.path().display())).unwrap();
        check(&Tracked::of(top.path()).unwrap());
    }

    #[test]
    fn a_repository_without_an_index_tracks_nothing() {
        let top = tempfile::tempdir().unwrap();
        git(top.path(), &["init", "-q"]);
        assert!(Tracked::of(top.path()).unwrap().0.is_empty());
    }

    #[test]
    fn what_is_not_an_index_is_an_error() {
        let top = repository(&[], &[]);
        let path = top.path().join(".git/index");
        let good = fs::read(&path).unwrap();
        for cut in [0, 3, 11, 40, 80, good.len() / 2] {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(matches!(Tracked::of(top.path()), Err(IndexError::Unknown)), "{cut}");
        }
    }
}
