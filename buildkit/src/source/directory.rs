//! A directory of this machine as a source.

use super::{Entry, EntryKind, Filter, Selection, Source, filter::Verdict, follow::Tree};
use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// A directory tree. Hardlinks are sent as separate files, extended attributes and owners are not sent, sockets,
/// devices and named pipes are left out.
///
/// The tree has to hold still: a file that is gone when the daemon asks for it fails the build.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// # Errors
    /// When `root` does not exist or is no directory. Links in `root` itself are followed.
    pub fn new(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { root })
    }

    /// The tree's root without links in its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn locate(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn walk(
        &self,
        directory: &[u8],
        filter: &mut Filter,
        emit: &mut dyn FnMut(Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        for name in sorted_names(&self.locate(directory))? {
            let path = if directory.is_empty() { name } else { [directory, b"/", &name].concat() };
            let Some(entry) = self.stat(path)? else { continue };
            let below = (entry.kind == EntryKind::Directory).then(|| entry.path.clone());
            let verdict = filter.visit(entry, emit)?;
            match below {
                Some(below) if verdict != Verdict::Prune => match self.walk(&below, filter, emit) {
                    // Not to be sent anyway, unless something below it were to be.
                    Err(error) if verdict == Verdict::Skip && error.kind() == io::ErrorKind::PermissionDenied => {}
                    result => result?,
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// `None` for what is gone meanwhile and for what cannot be sent.
    fn stat(&self, path: Vec<u8>) -> io::Result<Option<Entry>> {
        let located = self.locate(&path);
        let metadata = match fs::symlink_metadata(&located) {
            Err(error) if is_gone(&error) => return Ok(None),
            result => result?,
        };
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            EntryKind::Directory
        } else if file_type.is_symlink() {
            EntryKind::Symlink
        } else if file_type.is_file() {
            EntryKind::File
        } else {
            let what = if file_type.is_socket() { "socket" } else { "device or named pipe" };
            tracing::warn!(path = %located.display(), "{what} left out of the build's context");
            return Ok(None);
        };
        let link =
            if kind == EntryKind::Symlink { fs::read_link(&located)?.into_os_string().into_vec() } else { Vec::new() };
        Ok(Some(Entry {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            size: if kind == EntryKind::File { metadata.size() } else { 0 },
            mtime_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            link,
        }))
    }
}

impl Source for Directory {
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.select(&Selection::default(), &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }

    fn select(&self, selection: &Selection, emit: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        let mut filter = Filter::new(selection, self)?;
        self.walk(b"", &mut filter, emit)
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
        // A file replaced by a link since it was listed must not lead out of the tree.
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.locate(path))?;
        Ok(Box::new(file))
    }
}

impl Tree for Directory {
    fn link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match fs::read_link(self.locate(path)) {
            Ok(target) => Ok(Some(target.into_os_string().into_vec())),
            // Not a link.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) || is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn names(&self, directory: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        match sorted_names(&self.locate(directory)) {
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            result => result,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sorted_names(directory: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| OsString::into_vec(entry.file_name())))
        .collect::<Result<_, _>>()?;
    names.sort_unstable();
    Ok(names)
}
