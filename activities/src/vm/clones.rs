//! Clones: cells whose cache disk begins as a copy of another cell's, shares its content with it and is never written back.
//!
//! ```text
//! main cell, running or not ─► disk copied (held still meanwhile, where its guest answers) ─► clone's directory ─► Driver::start
//!    .new-<clone>-<order> beside it ───────────────────────────────────────────────────────► <clone>           ─► .gone-<clone> ─► deleted
//! ```
//!
//! A clone's directory lies beside its main cell's and is there whole or not at all. What it is beside its disk it has from its main
//! cell, at each start.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::vm::{Guest, disk};
use serde::{Deserialize, Serialize};
use workflows::contract::CellId;

use super::lock::HOST_LOCK;
use super::record::Record;
use super::{DriverError, Guests, Lock};
use crate::durable;

/// In a clone's directory: what it was copied from. Only what has this file is ever deleted.
const CLONE_OF: &str = "clone-of.json";
/// Before the name of a clone that is not whole yet, and of one that is on its way out. No cell has such a name.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    /// How long the main cell's disk held still; none where its guest did not answer, or does not run. The copy of a disk that is in use
    /// is then as after a power cut.
    pub held_still: Option<Duration>,
    pub took: Duration,
}

/// What a clone was copied from, and by which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    main: CellId,
    operation: String,
}

/// The cell that the one in the directory was copied from; `None` when it is no clone.
pub fn main_of(dir: &Path) -> Option<CellId> {
    origin(dir).map(|origin| origin.main)
}

fn origin(dir: &Path) -> Option<Origin> {
    serde_json::from_slice(&std::fs::read(dir.join(CLONE_OF)).ok()?).ok()
}

/// The clones of these cells that lie beside them.
pub fn find(cells: &[PathBuf]) -> Vec<PathBuf> {
    beside_them(cells).into_iter().filter(|dir| !is_half_done(dir)).collect()
}

/// Removes what a former agent has left half done; for the start of an agent, before it has anything half done itself.
pub fn end_half_done(cells: &[PathBuf]) {
    for dir in beside_them(cells).into_iter().filter(|dir| is_half_done(dir)) {
        if let Err(error) = remove(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "what is left of a clone stays");
        }
    }
}

/// Clones beside these cells that are copies of others, which nobody keeps.
pub fn find_strays(cells: &[PathBuf]) -> Vec<PathBuf> {
    let is_stray = |dir: &PathBuf| main_of(dir).is_some() && !is_of(dir, cells) && !is_half_done(dir);
    let is_kept = |dir: &PathBuf| !matches!(Lock::holder(&dir.join(HOST_LOCK)), Ok(None));
    beside(cells).into_iter().filter(|dir| is_stray(dir) && !is_kept(dir)).collect()
}

fn beside_them(cells: &[PathBuf]) -> Vec<PathBuf> {
    beside(cells).into_iter().filter(|dir| is_of(dir, cells)).collect()
}

fn beside(cells: &[PathBuf]) -> Vec<PathBuf> {
    let mut parents: Vec<_> = cells.iter().filter_map(|dir| dir.parent()).collect();
    parents.sort_unstable();
    parents.dedup();
    let beside = parents.into_iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten();
    let mut found: Vec<_> = beside.map(|entry| entry.path()).collect();
    found.sort_unstable();
    found
}

fn is_of(dir: &Path, cells: &[PathBuf]) -> bool {
    main_of(dir).is_some_and(|main| cells.contains(&dir.with_file_name(main.as_str())))
}

/// Whether the directory is not whole, or is being deleted.
fn is_half_done(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(NEW) || name.starts_with(GONE)
}

/// Whether what lies there is what this operation has made from this cell.
pub(super) fn is_made_by(dir: &Path, main: &CellId, operation: &str) -> bool {
    origin(dir).is_some_and(|origin| origin.main == *main && origin.operation == operation)
}

/// Makes a clone of this cell that another operation has left there this operation's.
///
/// # Errors
/// It cannot be noted.
pub(super) fn hand_over(dir: &Path, main: &CellId, operation: &str) -> Result<(), DriverError> {
    let origin = Origin { main: main.clone(), operation: operation.to_owned() };
    note(dir, &origin).map_err(|error| not_cloned(dir, &error))
}

/// Whole or not at all, and before anything else is there to stay: without it, it would be nobody's.
fn note(dir: &Path, origin: &Origin) -> io::Result<()> {
    durable::replace(&dir.join(CLONE_OF), &serde_json::to_vec(origin)?)
}

/// Makes a cell in `dir` from the one in `main`, which is to run `image`. One that this operation has made before is left as it is.
pub(super) async fn make<G: Guests>(
    guests: &G,
    main: &Path,
    dir: &Path,
    (operation, image): (&str, Option<&str>),
) -> Result<Cloned, DriverError> {
    let begun = Instant::now();
    let origin = Origin { main: name(main)?, operation: operation.to_owned() };
    match self::origin(dir) {
        Some(before) if before == origin => return Ok(Cloned { held_still: None, took: begun.elapsed() }),
        _ if dir.exists() => return Err(DriverError::Taken { dir: dir.to_owned() }),
        _ => {}
    }
    let new = unfinished(dir, &origin);
    let made = async {
        begin(&new, &origin, image).map_err(|error| not_cloned(&new, &error))?;
        let held_still = copy(guests, main, &new).await?;
        std::fs::rename(&new, dir).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => DriverError::Taken { dir: dir.to_owned() },
            _ => not_cloned(dir, &error),
        })?;
        Ok(held_still)
    };
    match made.await {
        Ok(held_still) => Ok(Cloned { held_still, took: begun.elapsed() }),
        Err(error) => {
            let _ = remove(&new);
            Err(error)
        }
    }
}

/// The clone's directory with all but its disk.
fn begin(dir: &Path, origin: &Origin, image: Option<&str>) -> io::Result<()> {
    remove(dir)?;
    std::fs::create_dir(dir)?;
    note(dir, origin)?;
    Record::begin(dir, image)
}

/// Copies the main cell's disk; how long it held still.
async fn copy<G: Guests>(guests: &G, main: &Path, dir: &Path) -> Result<Option<Duration>, DriverError> {
    let (from, to) = (guests.cache_disk(main), guests.cache_disk(dir));
    match Guest::adopt(&guests.run_dir(main)) {
        Some(mut guest) => Ok(guest.copy_disk(&from, &to).await?),
        None => Ok(disk::copy(&from, &to).await.map(|()| None)?),
    }
}

/// Whether a clone was there whose deletion was begun and not ended.
pub(super) fn is_half_gone(dir: &Path) -> bool {
    !dir.exists() && origin(&prefixed(dir, GONE)).is_some()
}

/// Deletes a clone that does not run, whole or not at all as far as anybody can see. Ends what a former deletion has left; one that is not
/// there is deleted.
pub(super) async fn delete<G: Guests>(guests: &G, dir: &Path) -> Result<(), DriverError> {
    let run_dir = guests.run_dir(dir);
    let gone = prefixed(dir, GONE);
    if dir.exists() {
        take_away(guests, dir, &run_dir, &gone)?;
    }
    // Large files take their time.
    let removed = tokio::task::spawn_blocking(move || remove(&run_dir).and_then(|()| remove(&gone))).await;
    removed.map_err(io::Error::other).flatten().map_err(|error| not_cloned(dir, &error))
}

/// From here on it is nobody's.
fn take_away<G: Guests>(guests: &G, dir: &Path, run_dir: &Path, gone: &Path) -> Result<(), DriverError> {
    let refused = |why: &str| DriverError::Machine { why: format!("{} is not deleted: {why}", dir.display()) };
    if origin(dir).is_none() {
        return Err(refused("it is no clone's"));
    }
    if Guest::adopt(run_dir).is_some() {
        return Err(refused("its cell runs"));
    }
    guests.clear(dir);
    let renamed = remove(gone).and_then(|()| std::fs::rename(dir, gone));
    renamed.map_err(|error| not_cloned(dir, &error))
}

/// Removes a directory and what is in it, last what says that it is a clone's; one that is not there is removed.
fn remove(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for path in entries.map(|entry| entry.map(|entry| entry.path())) {
        let path = path?;
        match path.is_dir() {
            true => std::fs::remove_dir_all(path)?,
            false if path.ends_with(CLONE_OF) => {}
            false => std::fs::remove_file(path)?,
        }
    }
    std::fs::remove_dir_all(dir)
}

/// Where a clone is made: two orders of one name, of whichever cells, have nothing in common.
fn unfinished(dir: &Path, Origin { main, operation }: &Origin) -> PathBuf {
    let order = blake3::hash(format!("{main}\n{operation}").as_bytes()).to_hex();
    let mut name = prefixed(dir, NEW).into_os_string();
    name.push(format!("-{}", &order[..16]));
    name.into()
}

fn prefixed(dir: &Path, prefix: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!("{prefix}{name}"))
}

fn name(dir: &Path) -> Result<CellId, DriverError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    name.parse().map_err(|source| DriverError::Plan { path: dir.to_owned(), source: Box::new(source) })
}

fn not_cloned(dir: &Path, error: &io::Error) -> DriverError {
    DriverError::Machine { why: format!("the clone's directory {}: {error}", dir.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{Clock, Driver as _, GuestStart, MicrovmDriver};

    /// Cells that nobody starts.
    struct Plain;

    impl Guests for Plain {
        async fn check(&self, _dir: &Path, _image: Option<&str>) -> Result<(), DriverError> {
            Ok(())
        }

        fn run_dir(&self, dir: &Path) -> PathBuf {
            dir.join("vm")
        }

        fn cache_disk(&self, dir: &Path) -> PathBuf {
            dir.join("cache.img")
        }

        async fn prepare(&self, _dir: &Path, _image: Option<&str>) -> Result<GuestStart, DriverError> {
            unreachable!("nobody starts them")
        }

        async fn replug(&self, _dir: &Path) -> Result<Vec<String>, DriverError> {
            Ok(Vec::new())
        }

        async fn guard(&self, _dir: &Path) -> Result<Vec<String>, DriverError> {
            Ok(Vec::new())
        }

        fn clear(&self, _dir: &Path) {}

        fn clock(&self, _dir: &Path) -> Clock {
            Clock::Hosts
        }
    }

    /// In memory, where files do not share their content.
    fn cells() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let cells = tempfile::tempdir_in("/dev/shm").unwrap();
        let (main, clone) = (cells.path().join("main"), cells.path().join("clone"));
        std::fs::create_dir(&main).unwrap();
        std::fs::write(main.join("cache.img"), "disk").unwrap();
        (cells, main, clone)
    }

    /// What [`make`] leaves, where files share their content.
    fn made(dir: &Path, operation: &str) {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("cache.img"), "copy").unwrap();
        let origin = Origin { main: "main".parse().unwrap(), operation: operation.into() };
        std::fs::write(dir.join(CLONE_OF), serde_json::to_vec(&origin).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_clone_that_cannot_be_made_leaves_nothing() {
        let (cells, main, clone) = cells();
        let error = MicrovmDriver::new(Plain).clone_cell(&main, &clone, "a", None).await.unwrap_err();
        assert!(error.to_string().contains("XFS (mkfs.xfs -m reflink=1)"), "{error}");
        assert_eq!(std::fs::read_dir(cells.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_clone_is_made_once_and_its_id_is_its_own() {
        let (_cells, main, clone) = cells();
        made(&clone, "a");
        let driver = MicrovmDriver::new(Plain);
        assert_eq!(driver.clone_cell(&main, &clone, "a", None).await.unwrap().held_still, None);
        assert_eq!(std::fs::read_to_string(clone.join("cache.img")).unwrap(), "copy", "it was not made again");
        let taken = driver.clone_cell(&main, &clone, "b", None).await.unwrap_err().to_string();
        assert!(taken.ends_with("clone is there already"), "{taken}");
    }

    #[tokio::test]
    async fn what_is_no_clone_is_not_deleted() {
        let (cells, main, clone) = cells();
        let driver = MicrovmDriver::new(Plain);
        let refused = driver.delete_clone(&main).await.unwrap_err();
        assert!(refused.to_string().ends_with("main is not deleted: it is no clone's"), "{refused}");
        made(&clone, "a");
        driver.delete_clone(&clone).await.unwrap();
        assert!(main.exists() && std::fs::read_dir(cells.path()).unwrap().count() == 1);
    }

    #[tokio::test]
    async fn a_deletion_that_was_cut_off_is_ended_by_the_next() {
        let (cells, main, clone) = cells();
        let gone = cells.path().join(".gone-clone");
        made(&gone, "a");
        assert!(is_half_gone(&clone) && !is_half_gone(&main));
        let driver = MicrovmDriver::new(Plain);
        driver.delete_clone(&clone).await.unwrap();
        assert!(!gone.exists() && main.exists());
        driver.delete_clone(&clone).await.unwrap();
        assert!(!is_half_gone(&clone), "and that is all");
    }

    #[test]
    fn what_a_clone_is_to_run_is_there_before_it_has_its_name() {
        let (cells, _main, clone) = cells();
        let origin = Origin { main: "main".parse().unwrap(), operation: "a".into() };
        let new = unfinished(&clone, &origin);
        begin(&new, &origin, Some("v2")).unwrap();
        assert_eq!(Record::read(&new).unwrap().image.as_deref(), Some("v2"));
        begin(&new, &origin, None).unwrap();
        assert_eq!(Record::read(&new).unwrap().image, None, "a second attempt begins anew");
        assert_eq!((main_of(&new), cells.path().join("clone").exists()), (Some("main".parse().unwrap()), false));
    }

    #[tokio::test]
    async fn a_clone_that_is_handed_over_is_not_made_again() {
        let (_cells, main, clone) = cells();
        made(&clone, "a");
        let name: CellId = "main".parse().unwrap();
        hand_over(&clone, &name, "b").unwrap();
        assert!(is_made_by(&clone, &name, "b") && !is_made_by(&clone, &name, "a"));
        MicrovmDriver::new(Plain).clone_cell(&main, &clone, "b", None).await.unwrap();
        assert_eq!(std::fs::read_to_string(clone.join("cache.img")).unwrap(), "copy");
    }

    #[test]
    fn no_two_orders_make_a_clone_in_one_place() {
        let dir = Path::new("/cells/clone");
        let place = |main: &str, operation: &str| {
            unfinished(dir, &Origin { main: main.parse().unwrap(), operation: operation.into() })
        };
        assert_eq!(place("a", "1"), place("a", "1"), "its next attempt ends what it has left");
        assert!(place("a", "1").to_str().unwrap().starts_with("/cells/.new-clone-"));
        assert_ne!(place("a", "1"), place("a", "2"));
        assert_ne!(place("a", "1"), place("b", "1"));
    }

    #[test]
    fn the_next_agent_finds_clones_and_ends_what_was_left() {
        let (cells, main, clone) = cells();
        made(&clone, "a");
        made(&cells.path().join(".gone-other"), "b");
        made(&cells.path().join(".new-third-0123456789abcdef"), "c");
        let mains = [main.clone()];
        assert_eq!(find(&mains), std::slice::from_ref(&clone));
        end_half_done(&mains);
        let mut left: Vec<_> = std::fs::read_dir(cells.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [clone.clone(), main]);
        assert_eq!(main_of(&clone), Some("main".parse().unwrap()));
        assert!(find(&[cells.path().join("elsewhere")]).is_empty(), "it is another agent's");
    }

    #[test]
    fn a_clone_whose_main_cell_is_no_longer_named_is_found_unless_it_is_kept() {
        let (cells, main, clone) = cells();
        made(&clone, "a");
        made(&cells.path().join(".gone-other"), "b");
        assert!(find_strays(&[main]).is_empty(), "it has its main cell");
        let others = [cells.path().join("elsewhere")];
        assert_eq!(find_strays(&others), std::slice::from_ref(&clone));
        let _another_agent = Lock::take(&clone.join(HOST_LOCK), "host h2").unwrap();
        assert!(find_strays(&others).is_empty());
    }
}
