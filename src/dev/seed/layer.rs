//! One layer of an image: a tar archive that depends on its content alone, compressed with zstd.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Higher levels take longer to make the archive smaller than the registry, on this machine, takes to receive it.
const LEVEL: i32 = 3;

/// A finished layer.
pub struct Layer {
    pub blob: Vec<u8>,
    /// Of the blob.
    pub digest: String,
    /// Of the uncompressed archive.
    pub diff_id: String,
}

/// Writes entries in the order they are given; owner is root and the time is zero throughout.
pub struct LayerWriter {
    archive: tar::Builder<Hashed<zstd::Encoder<'static, Vec<u8>>>>,
}

impl LayerWriter {
    pub fn new() -> io::Result<Self> {
        Ok(Self { archive: tar::Builder::new(Hashed::new(zstd::Encoder::new(Vec::new(), LEVEL)?)) })
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.archive.append_data(&mut header, path, io::empty())
    }

    pub fn file(&mut self, path: &str, mode: u32, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = header(tar::EntryType::Regular, mode, size);
        self.archive.append_data(&mut header, path, content)
    }

    pub fn text(&mut self, path: &str, content: &str) -> io::Result<()> {
        self.file(path, 0o644, content.len() as u64, content.as_bytes())
    }

    pub fn symlink(&mut self, path: &str, target: impl AsRef<Path>) -> io::Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.archive.append_link(&mut header, path, target)
    }

    /// Everything below `source`, sorted by name, as `path`; what `skip` (given the path below `source`) says is left out.
    pub fn tree(&mut self, source: &Path, path: &str, skip: &dyn Fn(&Path) -> bool) -> io::Result<()> {
        self.subtree(source, source, path, skip)
    }

    fn subtree(&mut self, root: &Path, source: &Path, path: &str, skip: &dyn Fn(&Path) -> bool) -> io::Result<()> {
        self.dir(path, 0o755)?;
        let mut entries = fs::read_dir(source)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (from, kind) = (entry.path(), entry.file_type()?);
            if from.strip_prefix(root).is_ok_and(skip) {
                continue;
            }
            let to = format!("{path}/{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                self.subtree(root, &from, &to, skip)?;
            } else if kind.is_symlink() {
                self.symlink(&to, fs::read_link(&from)?)?;
            } else if kind.is_file() {
                let meta = entry.metadata()?;
                let executable = meta.permissions().mode() & 0o111 != 0;
                self.file(&to, if executable { 0o755 } else { 0o644 }, meta.len(), File::open(&from)?)?;
            }
        }
        Ok(())
    }

    pub fn finish(self) -> io::Result<Layer> {
        let hashed = self.archive.into_inner()?;
        let diff_id = sha256(hashed.hash);
        let blob = hashed.inner.finish()?;
        Ok(Layer { digest: sha256(Sha256::new_with_prefix(&blob)), blob, diff_id })
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// `sha256:` and the hex digest.
pub fn sha256(hash: Sha256) -> String {
    format!("sha256:{:x}", hash.finalize())
}

/// Passes bytes on and hashes them.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(order: [&str; 2]) -> Layer {
        let dir = tempfile::tempdir().unwrap();
        for name in order {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("left-out")).unwrap();
        let mut writer = LayerWriter::new().unwrap();
        writer.tree(dir.path(), "opt", &|path| path == Path::new("left-out")).unwrap();
        writer.symlink("link", "opt/a").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn the_same_content_is_the_same_layer() {
        let (one, other) = (layer(["a", "b"]), layer(["b", "a"]));
        assert_eq!(one.digest, other.digest);
        let archive = zstd::decode_all(one.blob.as_slice()).unwrap();
        assert_eq!(one.diff_id, sha256(Sha256::new_with_prefix(&archive)));
        let mut archive = tar::Archive::new(archive.as_slice());
        let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, ["opt", "opt/a", "opt/b", "link"].map(std::path::PathBuf::from));
    }
}
