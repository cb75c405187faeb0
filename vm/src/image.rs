//! A guest image: the directory that `deploy/guest/build` makes. It is used only if every file is what the manifest says, and the
//! manifest what the pool asks for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// The manifest's format that is understood.
const FORMAT: u32 = 1;
/// Changes so far apart have different times, whatever the file system counts in.
const SETTLED: Duration = Duration::from_secs(2);

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

/// Opens images, and remembers what was verified: a file of 50 MB takes a third of a second, and every start asks for three.
#[derive(Debug, Default)]
pub struct Images {
    verified: Arc<Mutex<HashMap<FileId, String>>>,
}

/// A file as it was: whoever writes to it changes the time, which only the kernel sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
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

impl FileId {
    /// `None` where the file was changed so shortly before that another change could get the same time.
    fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let changed = UNIX_EPOCH + Duration::from_secs(metadata.ctime().cast_unsigned());
        let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED);
        Ok(is_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
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

fn verify(dir: &Path, wanted: Option<&str>, verified: &Mutex<HashMap<FileId, String>>) -> Result<Image, ImageError> {
    let (manifest, digest) = manifest(dir, wanted)?;
    let part = |part: &Part| {
        let path = dir.join(&part.file);
        match holds(&path, part, verified) {
            Ok(true) => Ok(path),
            Ok(false) => Err(ImageError::Damaged { path }),
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

/// Whether the file is what the manifest says.
fn holds(path: &Path, part: &Part, verified: &Mutex<HashMap<FileId, String>>) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let id = FileId::of(&file)?;
    let lock = || verified.lock().unwrap_or_else(PoisonError::into_inner);
    if id.is_some_and(|id| id.bytes == part.bytes && lock().get(&id) == Some(&part.sha256)) {
        return Ok(true);
    }
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut file, &mut hasher)?;
    let sha256 = hex(&hasher.finalize());
    let holds = bytes == part.bytes && sha256 == part.sha256;
    // Only if it is still the same: it may have been written to while it was read.
    if let Some(id) = id.filter(|id| FileId::of(&file).is_ok_and(|now| now == Some(*id))) {
        lock().insert(id, sha256);
    }
    Ok(holds)
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

    /// The image's root as a file that nobody has written to for long, and that is not what the manifest says.
    #[tokio::test]
    async fn a_file_is_read_once_for_as_long_as_it_is_the_same() {
        let (dir, images) = (image(), Images::default());
        let root = dir.path().join("root");
        images.open(dir.path(), None).await.unwrap();
        let is_new = |name| FileId::of(&File::open(dir.path().join(name)).unwrap()).unwrap().is_none();
        // Unless this machine stood still meanwhile.
        if ["kernel", "initrd", "root"].into_iter().all(is_new) {
            assert!(images.verified.lock().unwrap().is_empty(), "another change could have the same time");
        }
        images.verified.lock().unwrap().clear();

        let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let manifest = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
        let size = std::fs::metadata(&old).unwrap().len();
        let manifest = manifest.replace(r#""bytes":4}}"#, &format!(r#""bytes":{size}}}}}"#));
        std::fs::write(dir.path().join("manifest.json"), manifest).unwrap();
        std::fs::remove_file(&root).unwrap();
        std::os::unix::fs::symlink(&old, &root).unwrap();
        let is_damaged = async || matches!(images.open(dir.path(), None).await, Err(ImageError::Damaged { .. }));
        assert!(is_damaged().await);
        let found = hex(&Sha256::digest(std::fs::read(&old).unwrap()));
        let id = FileId::of(&File::open(&root).unwrap()).unwrap().unwrap();
        assert_eq!(*images.verified.lock().unwrap(), HashMap::from([(id, found)]), "what it holds is remembered");

        images.verified.lock().unwrap().insert(id, hex(&Sha256::digest("root")));
        assert!(!is_damaged().await, "it was read again");
        std::fs::remove_file(&root).unwrap();
        std::fs::copy(&old, &root).unwrap();
        assert!(is_damaged().await, "another file is another file, whatever its name");
    }
}
