//! A guest image: the directory that `deploy/guest/build` makes. It is used only if every file is what the manifest says, and the
//! manifest what the pool asks for.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digests::{FileDigests, sha256_hex};

/// The manifest's format that is understood.
const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no manifest of a guest image", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found}, this kiln reads format {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("the image in {} is {found}, not {wanted} as the pool asks for", dir.display())]
    OtherImage { dir: PathBuf, found: String, wanted: String },
    #[error("{} names {file:?} as a part of the image, which is no file beside it", path.display())]
    Elsewhere { path: PathBuf, file: String },
    #[error("{} is damaged: its digest is not what the manifest says", path.display())]
    Damaged { path: PathBuf },
}

/// An image whose files were verified.
#[derive(Debug, Clone)]
pub struct Image {
    pub version: String,
    /// `sha256:<hex>` of the manifest, which names the digests of all files.
    pub digest: String,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub root: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Manifest {
    format: u32,
    version: String,
    kernel: Part,
    initrd: Part,
    root: Part,
}

#[derive(Deserialize)]
struct Part {
    file: String,
    sha256: String,
    bytes: u64,
}

/// Opens images, and remembers what was verified.
#[derive(Debug, Clone, Default)]
pub struct Images {
    verified: FileDigests,
}

impl Images {
    /// Opens and verifies the image in a directory. `wanted` is the digest the pool asks for.
    ///
    /// # Errors
    /// When a file is missing or not what it should be, each by name.
    pub async fn open(&self, dir: &Path, wanted: Option<&str>) -> Result<Image, ImageError> {
        let (dir, wanted, verified) = (dir.to_owned(), wanted.map(str::to_owned), self.verified.clone());
        let manifest = dir.join("manifest.json");
        let task = tokio::task::spawn_blocking(move || verify(&dir, wanted.as_deref(), &verified));
        task.await.map_err(|error| ImageError::Read { path: manifest, source: io::Error::other(error) })?
    }
}

impl Image {
    /// As [`Images::open`], remembering nothing.
    ///
    /// # Errors
    /// As there.
    pub async fn open(dir: &Path, wanted: Option<&str>) -> Result<Self, ImageError> {
        Images::default().open(dir, wanted).await
    }
}

/// The manifest and its digest.
fn manifest(dir: &Path, wanted: Option<&str>) -> Result<(Manifest, String), ImageError> {
    let path = dir.join("manifest.json");
    let text = std::fs::read(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?;
    let digest = format!("sha256:{}", sha256_hex(&text));
    if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
        return Err(ImageError::OtherImage { dir: dir.to_owned(), found: digest, wanted: wanted.to_owned() });
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
    if manifest.format != FORMAT {
        return Err(ImageError::Format { path, found: manifest.format });
    }
    let parts = [&manifest.kernel, &manifest.initrd, &manifest.root];
    if let Some(part) = parts.iter().find(|part| Path::new(&part.file).file_name() != Some(part.file.as_ref())) {
        return Err(ImageError::Elsewhere { path, file: part.file.clone() });
    }
    Ok((manifest, digest))
}

fn verify(dir: &Path, wanted: Option<&str>, verified: &FileDigests) -> Result<Image, ImageError> {
    let (manifest, digest) = manifest(dir, wanted)?;
    let part = |part: &Part| {
        let path = dir.join(&part.file);
        match verified.of(&path) {
            Ok((sha256, bytes)) if bytes == part.bytes && sha256 == part.sha256 => Ok(path),
            Ok(_) => Err(ImageError::Damaged { path }),
            Err(source) => Err(ImageError::Read { path, source }),
        }
    };
    let (kernel, (initrd, root)) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| part(&manifest.kernel));
        let others = (part(&manifest.initrd), part(&manifest.root));
        (kernel.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), others)
    });
    Ok(Image {
        version: manifest.version,
        digest,
        bytes: manifest.kernel.bytes + manifest.initrd.bytes + manifest.root.bytes,
        kernel: kernel?,
        initrd: initrd?,
        root: root?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;

    use super::*;
    use crate::digests::FileId;

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let part = |key: &str| {
            std::fs::write(dir.path().join(key), key).unwrap();
            let sha256 = sha256_hex(key.as_bytes());
            format!(r#""{key}":{{"file":"{key}","sha256":"{sha256}","bytes":{}}}"#, key.len())
        };
        let parts = ["kernel", "initrd", "root"].map(part).join(",");
        std::fs::write(dir.path().join("manifest.json"), format!(r#"{{"format":1,"version":"7",{parts}}}"#)).unwrap();
        dir
    }

    #[tokio::test]
    async fn an_image_is_known_by_its_manifests_digest() {
        let dir = image();
        let image = Image::open(dir.path(), None).await.unwrap();
        assert_eq!((image.version.as_str(), image.bytes), ("7", 16));
        assert!(Image::open(dir.path(), Some(&image.digest)).await.is_ok());
        let other = Image::open(dir.path(), Some("sha256:0")).await.unwrap_err();
        assert!(matches!(&other, ImageError::OtherImage { found, .. } if *found == image.digest), "{other}");
    }

    #[tokio::test]
    async fn damaged_and_missing_files_are_named() {
        let dir = image();
        std::fs::write(dir.path().join("root"), "tooR").unwrap();
        let damaged = Image::open(dir.path(), None).await.unwrap_err();
        assert!(matches!(&damaged, ImageError::Damaged { path } if path.ends_with("root")), "{damaged}");
        std::fs::remove_file(dir.path().join("kernel")).unwrap();
        let missing = Image::open(dir.path(), None).await.unwrap_err();
        assert!(matches!(&missing, ImageError::Read { path, .. } if path.ends_with("kernel")), "{missing}");
    }

    #[tokio::test]
    async fn an_images_parts_lie_beside_its_manifest() {
        let dir = image();
        let manifest = dir.path().join("manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap();
        for outside in ["../root", "/root", "parts/root", ".."] {
            std::fs::write(&manifest, text.replace(r#""file":"root""#, &format!(r#""file":"{outside}""#))).unwrap();
            let error = Image::open(dir.path(), None).await.unwrap_err();
            assert!(matches!(&error, ImageError::Elsewhere { file, .. } if file == outside), "{error}");
        }
    }

    /// The image's root as a file that nobody has written to for long, and that is not what the manifest says.
    #[tokio::test]
    async fn a_file_is_read_once_for_as_long_as_it_is_the_same() {
        let (dir, images) = (image(), Images::default());
        let root = dir.path().join("root");
        images.open(dir.path(), None).await.unwrap();
        let is_new = |name| FileId::of(&File::open(dir.path().join(name)).unwrap()).unwrap().is_none();
        // Unless this machine stood still meanwhile.
        if ["kernel", "initrd", "root"].into_iter().all(is_new) {
            assert!(images.verified.known().is_empty(), "another change could have the same time");
        }
        images.verified.known().clear();

        let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let manifest = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
        let size = std::fs::metadata(&old).unwrap().len();
        let manifest = manifest.replace(r#""bytes":4}}"#, &format!(r#""bytes":{size}}}}}"#));
        std::fs::write(dir.path().join("manifest.json"), manifest).unwrap();
        std::fs::remove_file(&root).unwrap();
        std::os::unix::fs::symlink(&old, &root).unwrap();
        let is_damaged = async || matches!(images.open(dir.path(), None).await, Err(ImageError::Damaged { .. }));
        assert!(is_damaged().await);
        let found = sha256_hex(&std::fs::read(&old).unwrap());
        let id = FileId::of(&File::open(&root).unwrap()).unwrap().unwrap();
        assert_eq!(*images.verified.known(), HashMap::from([(id, found)]), "what it holds is remembered");

        images.verified.known().insert(id, sha256_hex(b"root"));
        assert!(!is_damaged().await, "it was read again");
        std::fs::remove_file(&root).unwrap();
        std::fs::copy(&old, &root).unwrap();
        assert!(is_damaged().await, "another file is another file, whatever its name");
    }
}
