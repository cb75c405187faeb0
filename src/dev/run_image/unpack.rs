//! Unpacking a layer over the ones below it.

use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

/// A file of this name hides the one named by the rest of it.
const WHITEOUT: &str = ".wh.";
/// Hides everything the layers below have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks one layer into `rootfs`.
///
/// # Errors
/// When the compression is unknown or the archive is broken.
pub fn layer(media_type: &str, blob: &[u8], rootfs: &Path) -> anyhow::Result<()> {
    let archive: Box<dyn Read + '_> = match media_type.rsplit(['+', '.']).next() {
        Some("zstd") => Box::new(zstd::Decoder::new(blob)?),
        Some("gzip") => Box::new(flate2::read::MultiGzDecoder::new(blob)),
        Some("tar") => Box::new(blob),
        _ => anyhow::bail!("a layer of type {media_type} cannot be unpacked"),
    };
    entries(archive, rootfs).with_context(|| format!("broken layer of type {media_type}"))
}

fn entries(archive: impl Read, rootfs: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        match hidden(&entry.path()?) {
            Some(Hidden::Path(path)) => remove(&rootfs.join(path))?,
            Some(Hidden::Below(dir)) => {
                for entry in fs::read_dir(rootfs.join(dir))? {
                    remove(&entry?.path())?;
                }
            }
            // Skips entries that would leave the directory.
            None => drop(entry.unpack_in(rootfs)?),
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Hidden {
    Path(PathBuf),
    Below(PathBuf),
}

/// What a whiteout entry hides, `None` for all other entries and for paths that leave the tree.
fn hidden(path: &Path) -> Option<Hidden> {
    let name = path.file_name()?.to_str()?.strip_prefix(WHITEOUT)?;
    let dir = path.parent()?;
    let inside = dir.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside {
        return None;
    }
    let opaque = path.file_name().is_some_and(|name| name == OPAQUE);
    Some(if opaque { Hidden::Below(dir.into()) } else { Hidden::Path(dir.join(name)) })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_name_what_they_hide() {
        assert_eq!(hidden(Path::new("a/.wh.b")), Some(Hidden::Path("a/b".into())));
        assert_eq!(hidden(Path::new("a/.wh..wh..opq")), Some(Hidden::Below("a".into())));
        assert_eq!(hidden(Path::new("../.wh.b")), None);
        assert_eq!(hidden(Path::new("a/b")), None);
    }

    #[test]
    fn a_later_layer_hides_and_replaces() {
        let rootfs = tempfile::tempdir().unwrap();
        let archive = |entries: &[(&str, &str)]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (path, content) in entries {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                header.set_uid(nix::unistd::getuid().as_raw().into());
                header.set_gid(nix::unistd::getgid().as_raw().into());
                builder.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
            builder.into_inner().unwrap()
        };
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        layer(media_type, &archive(&[("etc/one", "1"), ("etc/two", "2")]), rootfs.path()).unwrap();
        layer(media_type, &archive(&[("etc/.wh.one", ""), ("etc/two", "new")]), rootfs.path()).unwrap();
        assert!(!rootfs.path().join("etc/one").exists());
        assert_eq!(fs::read_to_string(rootfs.path().join("etc/two")).unwrap(), "new");
    }
}
