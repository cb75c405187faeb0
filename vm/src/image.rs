//! A guest image: the directory that `deploy/guest/build` makes. It is used only if every file is what the manifest says, and the
//! manifest what the pool asks for.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

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

impl Image {
    /// Opens and verifies the image in a directory. `wanted` is the digest the pool asks for.
    ///
    /// # Errors
    /// When a file is missing or not what it should be, each by name.
    pub async fn open(dir: &Path, wanted: Option<&str>) -> Result<Self, ImageError> {
        let (dir, wanted) = (dir.to_owned(), wanted.map(str::to_owned));
        let manifest = dir.join("manifest.json");
        let task = tokio::task::spawn_blocking(move || verify(&dir, wanted.as_deref()));
        task.await.map_err(|error| ImageError::Read { path: manifest, source: io::Error::other(error) })?
    }
}

impl Image {
    /// Whether the directory's manifest is the one that is wanted and its files are there; what they hold is looked at by [`Image::open`]
    /// only.
    ///
    /// # Errors
    /// When there is no manifest, another one, or a file is missing.
    pub fn check(dir: &Path, wanted: Option<&str>) -> Result<(), ImageError> {
        let (manifest, _) = manifest(dir, wanted)?;
        [manifest.kernel, manifest.initrd, manifest.root].iter().try_for_each(|part| {
            let path = dir.join(&part.file);
            std::fs::metadata(&path).map(drop).map_err(|source| ImageError::Read { path, source })
        })
    }
}

/// The manifest and its digest.
fn manifest(dir: &Path, wanted: Option<&str>) -> Result<(Manifest, String), ImageError> {
    let path = dir.join("manifest.json");
    let text = std::fs::read(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?;
    let digest = format!("sha256:{}", hex(&Sha256::digest(&text)));
    if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
        return Err(ImageError::OtherImage { dir: dir.to_owned(), found: digest, wanted: wanted.to_owned() });
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
    if manifest.format != FORMAT {
        return Err(ImageError::Format { path, found: manifest.format });
    }
    Ok((manifest, digest))
}

fn verify(dir: &Path, wanted: Option<&str>) -> Result<Image, ImageError> {
    let (manifest, digest) = manifest(dir, wanted)?;
    Ok(Image {
        version: manifest.version,
        digest,
        bytes: manifest.kernel.bytes + manifest.initrd.bytes + manifest.root.bytes,
        kernel: part(dir, &manifest.kernel)?,
        initrd: part(dir, &manifest.initrd)?,
        root: part(dir, &manifest.root)?,
    })
}

fn part(dir: &Path, part: &Part) -> Result<PathBuf, ImageError> {
    let path = dir.join(&part.file);
    let read = |source| ImageError::Read { path: path.clone(), source };
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut std::fs::File::open(&path).map_err(read)?, &mut hasher).map_err(read)?;
    if bytes == part.bytes && hex(&hasher.finalize()) == part.sha256 {
        Ok(path)
    } else {
        Err(ImageError::Damaged { path })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let part = |key: &str| {
            std::fs::write(dir.path().join(key), key).unwrap();
            let sha256 = hex(&Sha256::digest(key));
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
        assert!(Image::check(dir.path(), Some(&image.digest)).is_ok());
        assert!(matches!(Image::check(dir.path(), Some("sha256:0")), Err(ImageError::OtherImage { .. })));
    }

    #[tokio::test]
    async fn damaged_and_missing_files_are_named() {
        let dir = image();
        std::fs::write(dir.path().join("root"), "tooR").unwrap();
        let damaged = Image::open(dir.path(), None).await.unwrap_err();
        assert!(matches!(&damaged, ImageError::Damaged { path } if path.ends_with("root")), "{damaged}");
        std::fs::remove_file(dir.path().join("kernel")).unwrap();
        let missing = [Image::open(dir.path(), None).await.unwrap_err(), Image::check(dir.path(), None).unwrap_err()];
        assert!(missing.iter().all(|error| matches!(error, ImageError::Read { path, .. } if path.ends_with("kernel"))));
    }
}
