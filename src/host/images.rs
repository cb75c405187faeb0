//! What a host runs has a name: `name@sha256:…`, looked up among the host's own images.
//!
//! ```text
//! name@sha256:… ─► <host.image_dir>/<name>/ ─► only root can change it ─► it has this digest ─► started
//! ```
//!
//! Orders come from the network (api, signal, workflow), so they bring no path: whoever could write a directory
//! somewhere on the host, a RUN step for example, would have it run as root. Only a settings file on the host names
//! paths (`cell.json`, `guest.image`).
//!
//! The digest of an image of processes is the SHA-256 of what `sha256sum buildkitd kiln runc` prints in its directory;
//! that of a guest image is the SHA-256 of its `manifest.json`, which has the digests of all its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activities::vm::DriverError;
use serde::Serialize;
use vm::{FileDigests, sha256_hex};
use workflows::contract::{CellImage, is_image_name};

use super::trust;
use crate::settings::Settings;
use crate::terminal;

/// The programs of an image of processes, in the order of their names.
pub const PROGRAMS: [&str; 3] = ["buildkitd", "kiln", "runc"];
/// The file that a guest image is known by.
const MANIFEST: &str = "manifest.json";
/// More files than any image has; a directory with more is none.
const FILES_MAX: usize = 64;

/// The directory of a host's images.
#[derive(Debug, Clone)]
pub struct ImageDir(PathBuf);

/// Images of processes.
#[derive(Debug, Clone)]
pub struct Programs {
    images: ImageDir,
    digests: FileDigests,
}

impl ImageDir {
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Finds an ordered image: its directory, free of links, and the digest that it must have.
    ///
    /// # Errors
    /// The text is no `name@sha256:…`, there is no such image, or somebody besides root can change it.
    pub fn find(&self, ordered: &str) -> Result<(PathBuf, String), DriverError> {
        let refused = |why: String| DriverError::Image { image: ordered.to_owned(), why };
        let image: CellImage =
            ordered.parse().map_err(|error: workflows::contract::InvalidId| refused(error.rule.into()))?;
        let dir = self.open(image.name()).map_err(refused)?;
        Ok((dir, image.digest().to_owned()))
    }

    fn open(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.0.join(name);
        let real = dir.canonicalize().map_err(|error| {
            format!("there is no {} on this host ({error}); `kiln host images` lists its images", dir.display())
        })?;
        trust::whole_path(&real)?;
        let entries = fs::read_dir(&real).map_err(|error| format!("{}: {error}", real.display()))?;
        for (count, entry) in entries.enumerate() {
            let file = entry.map_err(|error| format!("{}: {error}", real.display()))?.path();
            if count >= FILES_MAX {
                return Err(format!("{} has more than {FILES_MAX} files", real.display()));
            }
            if !fs::symlink_metadata(&file).is_ok_and(|file| file.is_file()) {
                return Err(format!("{} is no file: an image has files only, no links", file.display()));
            }
            trust::entry(&file)?;
        }
        Ok(real)
    }

    /// The names of what lies there, in order.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| is_image_name(name));
        names.sort_unstable();
        Ok(names)
    }
}

impl Programs {
    pub fn new(images: ImageDir) -> Self {
        Self { images, digests: FileDigests::default() }
    }

    /// The directory of an ordered image whose programs were verified. Blocks its thread.
    ///
    /// # Errors
    /// As [`ImageDir::find`], or a program is missing or another one.
    pub fn verified(&self, ordered: &str) -> Result<PathBuf, DriverError> {
        let (dir, wanted) = self.images.find(ordered)?;
        let refused = |why: String| DriverError::Image { image: ordered.to_owned(), why };
        let found = self.digest(&dir).map_err(refused)?;
        match found == wanted {
            true => Ok(dir),
            false => Err(refused(format!("the image in {} is {found}", dir.display()))),
        }
    }

    fn digest(&self, dir: &Path) -> Result<String, String> {
        let mut listing = String::new();
        for program in PROGRAMS {
            let file = dir.join(program);
            let read = self.digests.of(&file);
            let (sha256, _) = read.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
            listing.push_str(&format!("{sha256}  {program}\n"));
        }
        Ok(format!("sha256:{}", sha256_hex(listing.as_bytes())))
    }
}

/// What a host can be ordered to run, for `kiln host images`.
#[derive(Debug, Serialize)]
struct Listing {
    images: Vec<String>,
    unusable: Vec<Unusable>,
}

#[derive(Debug, Serialize)]
struct Unusable {
    name: String,
    why: String,
}

impl Listing {
    fn of(images: &ImageDir, has_guests: bool) -> io::Result<Self> {
        let (mut listing, programs) = (Self { images: vec![], unusable: vec![] }, Programs::new(images.clone()));
        for name in images.names()? {
            let digest = images.open(&name).and_then(|dir| match has_guests {
                true => manifest_digest(&dir),
                false => programs.digest(&dir),
            });
            match digest {
                Ok(digest) => listing.images.push(format!("{name}@{digest}")),
                Err(why) => listing.unusable.push(Unusable { name, why }),
            }
        }
        Ok(listing)
    }
}

fn manifest_digest(dir: &Path) -> Result<String, String> {
    let file = dir.join(MANIFEST);
    let text = fs::read(&file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    Ok(format!("sha256:{}", sha256_hex(&text)))
}

/// `kiln host images`.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let images = ImageDir::new(&settings.host.image_dir);
    let listing = Listing::of(&images, settings.host.driver != "process")
        .map_err(|error| anyhow::anyhow!("cannot read host.image_dir {}: {error}", images.0.display()))?;
    if json {
        terminal::print_json(&serde_json::to_value(&listing)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for image in &listing.images {
        terminal::print_line(image)?;
    }
    for Unusable { name, why } in &listing.unusable {
        terminal::note(format_args!("{name} is unusable: {why}"));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const PRINTED: &str = "\
2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae  buildkitd
fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9  kiln
baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096  runc
";

    /// A host's images with one of three programs, `v2`, and how an order names it.
    fn images() -> (tempfile::TempDir, Programs, String) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("v2");
        fs::create_dir(&image).unwrap();
        for (program, text) in PROGRAMS.into_iter().zip(["foo", "bar", "baz"]) {
            fs::write(image.join(program), text).unwrap();
        }
        let programs = Programs::new(ImageDir::new(dir.path()));
        (dir, programs, format!("v2@sha256:{}", sha256_hex(PRINTED.as_bytes())))
    }

    fn why(programs: &Programs, ordered: &str) -> String {
        programs.verified(ordered).unwrap_err().to_string()
    }

    #[test]
    fn an_image_is_known_by_what_sha256sum_prints() {
        let (dir, programs, ordered) = images();
        assert_eq!(programs.verified(&ordered).unwrap(), dir.path().canonicalize().unwrap().join("v2"));
        fs::write(dir.path().join("v2/runc"), "bad").unwrap();
        assert!(why(&programs, &ordered).contains("the image in "));
        fs::remove_file(dir.path().join("v2/runc")).unwrap();
        assert!(why(&programs, &ordered).contains("runc cannot be read"));
    }

    #[test]
    fn an_order_brings_no_path() {
        let (dir, programs, ordered) = images();
        let digest = ordered.split_once('@').unwrap().1;
        let path = dir.path().join("v2").display().to_string();
        let outside =
            [path.clone(), format!("{path}@{digest}"), format!("../v2@{digest}"), format!(".@{digest}"), "v2".into()];
        for ordered in outside {
            assert!(why(&programs, &ordered).contains("no path is taken"), "{ordered}");
        }
        assert!(why(&programs, &format!("v3@{digest}")).contains("there is no "));
    }

    /// Another user of the host than root.
    #[test]
    fn what_others_can_write_is_not_run() {
        let (dir, programs, ordered) = images();
        let image = dir.path().join("v2");
        let with_mode = |path: &Path, mode: u32| {
            let former = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            let said = why(&programs, &ordered);
            fs::set_permissions(path, former).unwrap();
            said
        };
        for path in [dir.path(), &image, &image.join("kiln")] {
            assert!(with_mode(path, 0o777).contains("has mode 777: only root may write"), "{}", path.display());
        }
        std::os::unix::fs::chown(&image, Some(4711), None).unwrap();
        assert!(why(&programs, &ordered).contains("belongs to user 4711"));
        std::os::unix::fs::chown(&image, Some(0), None).unwrap();
        programs.verified(&ordered).unwrap();
        symlink("/bin/true", image.join("extra")).unwrap();
        assert!(why(&programs, &ordered).contains("extra is no file"));
    }

    #[test]
    fn a_host_lists_its_images_as_orders_name_them() {
        let (dir, _, ordered) = images();
        fs::create_dir(dir.path().join("unfinished")).unwrap();
        fs::create_dir(dir.path().join("guest")).unwrap();
        fs::write(dir.path().join("guest").join(MANIFEST), "foo").unwrap();
        fs::write(dir.path().join(".hidden"), "").unwrap();
        let images = ImageDir::new(dir.path());
        let listed = Listing::of(&images, false).unwrap();
        assert_eq!(listed.images, [ordered]);
        assert_eq!(listed.unusable.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["guest", "unfinished"]);
        let guests = Listing::of(&images, true).unwrap();
        assert_eq!(guests.images, [format!("guest@sha256:{}", sha256_hex(b"foo"))]);
        assert!(Listing::of(&ImageDir::new(&dir.path().join("none")), true).unwrap().images.is_empty());
    }
}
