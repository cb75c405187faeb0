//! How clones get their names, their room and their Cells, on machines that only exist here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use workflows::contract::FailureClass;

use super::*;
use crate::vm::record::Record;
use crate::vm::{Cloned, Driver, Home};

/// Cells that run nothing. A copy is begun at once and done when the gate lets it.
struct Machines {
    copying: watch::Sender<usize>,
    gate: Semaphore,
    started: Mutex<Vec<PathBuf>>,
}

impl Driver for Machines {
    type Cell = CancellationToken;

    async fn check(&self, _dir: &Path, _image: Option<&str>) -> Result<(), DriverError> {
        Ok(())
    }

    async fn start(&self, dir: &Path, _image: Option<&str>) -> Result<CancellationToken, DriverError> {
        self.started.lock().unwrap().push(dir.to_owned());
        Ok(CancellationToken::new())
    }

    fn adopt(&self, _dir: &Path) -> Result<Option<CancellationToken>, DriverError> {
        Ok(None)
    }

    fn stop(&self, cell: &CancellationToken) {
        cell.cancel();
    }

    fn kill(&self, cell: &CancellationToken) {
        cell.cancel();
    }

    fn inspect(&self, _cell: &CancellationToken) -> Option<u32> {
        None
    }

    async fn ended(&self, cell: &mut CancellationToken) -> String {
        cell.cancelled().await;
        "a test says so".into()
    }

    async fn clone_cell(
        &self,
        main: &Path,
        dir: &Path,
        operation: &str,
        image: Option<&str>,
    ) -> Result<Cloned, DriverError> {
        let main = main.file_name().unwrap().to_str().unwrap();
        if clones::is_made_by(dir, &main.parse().unwrap(), operation) {
            return Ok(Cloned { held_still: None, took: Duration::ZERO });
        }
        self.copying.send_modify(|copies| *copies += 1);
        let _passed = self.gate.acquire().await.unwrap();
        std::fs::create_dir(dir).map_err(|_| DriverError::Taken { dir: dir.to_owned() })?;
        std::fs::write(dir.join("disk"), main).unwrap();
        Record::begin(dir, image).unwrap();
        let origin = format!(r#"{{"main":"{main}","operation":"{operation}"}}"#);
        std::fs::write(dir.join("clone-of.json"), origin).unwrap();
        Ok(Cloned { held_still: None, took: Duration::ZERO })
    }

    async fn delete_clone(&self, dir: &Path) -> Result<(), DriverError> {
        std::fs::remove_dir_all(dir).unwrap();
        Ok(())
    }
}

/// The Cells' workflows. A Cell orders its start as soon as it is there.
#[derive(Default)]
struct Temporal {
    running: Mutex<Vec<CellId>>,
    /// What the host answers to that.
    started: Mutex<Vec<Result<HostCell, HostError>>>,
    host: OnceLock<Host>,
    /// Cells are started, and it is not said that they are.
    breaks_off: AtomicBool,
    /// No Cell can be started.
    is_away: AtomicBool,
    /// Another host has just started this Cell.
    elsewhere: Mutex<Option<CellId>>,
}

impl Temporal {
    fn running(&self) -> MutexGuard<'_, Vec<CellId>> {
        self.running.lock().unwrap()
    }
}

impl CellWorkflows for Temporal {
    async fn runs(&self, _pool: &PoolName, cell: &CellId) -> Result<bool, EntityError> {
        Ok(self.running().contains(cell))
    }

    async fn ensure(&self, seed: CellSeed) -> Result<(), EntityError> {
        let broken = || EntityError::Start { id: seed.cell.to_string(), source: "a test says so".into() };
        if self.is_away.load(Ordering::Relaxed) {
            return Err(broken());
        }
        if self.elsewhere.lock().unwrap().as_ref() == Some(&seed.cell) {
            let (host, by) = ("h1".parse().unwrap(), "h2".into());
            return Err(EntityError::Elsewhere { cell: seed.cell, host, by });
        }
        let is_new = !self.running().contains(&seed.cell);
        if is_new {
            self.running().push(seed.cell.clone());
            let started =
                async { self.host.get().unwrap().keeper(&seed.cell)?.start(order(seed.cell.as_str(), "s")).await };
            let started = started.await;
            self.started.lock().unwrap().push(started);
        }
        match self.breaks_off.load(Ordering::Relaxed) {
            true => Err(broken()),
            false => Ok(()),
        }
    }
}

/// A host with the cells a and b.
struct World {
    host: Host,
    machines: Arc<Machines>,
    temporal: Arc<Temporal>,
    dir: tempfile::TempDir,
}

/// `gate`: how many copies may be under way; none is done before it opens.
fn world(max_cells: usize, gate: usize) -> World {
    let machines =
        Arc::new(Machines { copying: watch::Sender::new(0), gate: Semaphore::new(gate), started: Mutex::default() });
    let driver = machines.clone();
    let keep: Keep = Arc::new(move |cell, dir, begin| {
        let home = Home { host: "h1".parse().unwrap(), cell: cell.clone(), dir: dir.to_owned() };
        Keeper::open(driver.clone(), home, begin, Arc::new(|_| {}), CancellationToken::new()).0
    });
    let dir = tempfile::tempdir().unwrap();
    let keepers = ["a", "b"].map(|name| {
        let (cell, dir): (CellId, PathBuf) = (name.parse().unwrap(), dir.path().join(name));
        std::fs::create_dir(&dir).unwrap();
        (cell.clone(), keep(&cell, &dir, Begin::Wanted))
    });
    let host = Host::new("h1".parse().unwrap(), BTreeMap::from(keepers), keep, max_cells);
    let temporal = Temporal { host: OnceLock::from(host.clone()), ..Temporal::default() };
    World { host, machines, temporal: Arc::new(temporal), dir }
}

impl World {
    async fn clone_as(&self, main: &str, operation: &str, clone: &str) -> Result<HostClone, HostError> {
        self.host.make_clone(&*self.temporal, &asked(main, operation, clone)).await
    }

    /// A clone that is being copied when this returns.
    async fn begun(
        &self,
        main: &str,
        operation: &str,
        clone: &str,
    ) -> tokio::task::JoinHandle<Result<HostClone, HostError>> {
        let before = *self.machines.copying.borrow();
        let (host, temporal, order) = (self.host.clone(), self.temporal.clone(), asked(main, operation, clone));
        let making = tokio::spawn(async move { host.make_clone(&*temporal, &order).await });
        self.machines.copying.subscribe().wait_for(|copies| *copies > before).await.unwrap();
        making
    }

    fn disk(&self, clone: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(clone).join("disk")).unwrap_or_default()
    }
}

fn asked(main: &str, operation: &str, clone: &str) -> CloneOrder {
    CloneOrder { order: order(main, operation), clone: clone.parse().unwrap(), slots: 1 }
}

fn order(cell: &str, operation: &str) -> HostOrder {
    let (operation, cell, pool) = (operation.into(), cell.parse().unwrap(), "default".parse().unwrap());
    HostOrder { operation, cell, pool, image: None, grace_ms: 0, clone_of: None }
}

#[tokio::test]
async fn a_name_is_one_cells_from_the_moment_its_clone_is_begun() {
    let world = world(0, 0);
    let first = world.begun("a", "1", "c").await;
    let second = world.clone_as("b", "2", "c").await.unwrap_err();
    assert!(matches!(&second, HostError::Taken { cell } if cell.as_str() == "c"), "{second}");
    assert_eq!(second.class(), FailureClass::Refused);
    world.machines.gate.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(world.disk("c"), "a");
    assert_eq!(*world.machines.copying.borrow(), 1, "of the other cell nothing was copied");
    assert!(matches!(world.clone_as("b", "3", "c").await, Err(HostError::Taken { .. })), "and it stays so");
    assert_eq!(*world.temporal.running(), ["c".parse().unwrap()]);
}

#[tokio::test]
async fn a_clone_that_is_begun_has_its_room() {
    let world = world(3, 0);
    let first = world.begun("a", "1", "c").await;
    let full = world.clone_as("b", "2", "d").await.unwrap_err();
    assert!(matches!(full, HostError::Full { max: 3 }), "{full}");
    assert_eq!(full.class(), FailureClass::Refused);
    world.machines.gate.add_permits(1);
    first.await.unwrap().unwrap();
    assert!(matches!(world.clone_as("b", "3", "d").await, Err(HostError::Full { max: 3 })));
    world.host.delete(&order("c", "4")).await.unwrap();
    world.clone_as("b", "5", "d").await.unwrap();
}

#[tokio::test]
async fn a_clone_that_cannot_be_made_gives_its_name_and_room_back() {
    let world = world(3, 1);
    std::fs::write(world.dir.path().join("c"), "in the way").unwrap();
    assert!(world.clone_as("a", "1", "c").await.is_err());
    std::fs::remove_file(world.dir.path().join("c")).unwrap();
    world.clone_as("b", "2", "c").await.unwrap();
    assert_eq!(world.disk("c"), "b");
}

#[tokio::test]
async fn another_attempt_of_an_order_is_no_other_order() {
    let world = world(3, 0);
    let first = world.begun("a", "1", "c").await;
    let (host, temporal) = (world.host.clone(), world.temporal.clone());
    let second = tokio::spawn(async move { host.make_clone(&*temporal, &asked("a", "1", "c")).await });
    world.machines.gate.add_permits(1);
    let made = first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap(), made, "the first answer");
    assert_eq!(*world.machines.copying.borrow(), 1);
    assert!(matches!(world.clone_as("b", "2", "d").await, Err(HostError::Full { .. })), "one clone, one room");
}

#[tokio::test]
async fn a_clone_is_kept_before_its_cell_orders_anything() {
    let world = world(0, 1);
    world.clone_as("a", "1", "c").await.unwrap();
    let started = std::mem::take(&mut *world.temporal.started.lock().unwrap());
    assert!(matches!(&started[..], [Ok(cell)] if cell.running && cell.generation == 1), "{started:?}");
}

#[tokio::test]
async fn a_clone_whose_cell_cannot_be_asked_for_is_kept_and_the_next_attempt_goes_on_with_it() {
    let world = world(3, 1);
    world.temporal.breaks_off.store(true, Ordering::Relaxed);
    let failed = world.clone_as("a", "1", "c").await.unwrap_err();
    assert_eq!(failed.class(), FailureClass::Transient);
    assert!(world.host.keeper(&"c".parse().unwrap()).unwrap().inspect().running);
    assert!(matches!(world.clone_as("b", "2", "d").await, Err(HostError::Full { .. })), "it has its room");
    world.temporal.breaks_off.store(false, Ordering::Relaxed);
    world.clone_as("a", "1", "c").await.unwrap();
    assert_eq!(*world.machines.copying.borrow(), 1);
}

#[tokio::test]
async fn a_clone_without_a_cell_is_the_next_orders() {
    let world = world(3, 1);
    world.temporal.is_away.store(true, Ordering::Relaxed);
    world.clone_as("a", "1", "c").await.unwrap_err();
    world.temporal.is_away.store(false, Ordering::Relaxed);
    let others = world.clone_as("b", "2", "c").await.unwrap_err();
    assert!(matches!(others, HostError::Taken { .. }), "it is a copy of another cell: {others}");
    world.clone_as("a", "3", "c").await.unwrap();
    assert_eq!(*world.temporal.running(), ["c".parse().unwrap()]);
    assert_eq!(*world.machines.copying.borrow(), 1, "the copy is there");
    assert!(matches!(world.clone_as("a", "4", "c").await, Err(HostError::Taken { .. })), "it has a Cell now");
}

#[tokio::test]
async fn a_clone_that_its_main_cell_cannot_remember_is_kept() {
    let world = world(3, 1);
    // In the way of the main cell's record.
    std::fs::create_dir(world.dir.path().join("a/host.new")).unwrap();
    let failed = world.clone_as("a", "1", "c").await.unwrap_err();
    assert!(matches!(failed, HostError::Record { .. }), "{failed}");
    assert!(matches!(world.clone_as("b", "2", "d").await, Err(HostError::Full { .. })), "it has its room");
    std::fs::remove_dir(world.dir.path().join("a/host.new")).unwrap();
    world.clone_as("a", "1", "c").await.unwrap();
}

#[tokio::test]
async fn a_clone_that_was_deleted_is_not_started_by_an_attempt_that_comes_late() {
    let world = world(3, 1);
    world.clone_as("a", "1", "c").await.unwrap();
    world.host.delete(&order("c", "2")).await.unwrap();
    world.temporal.running().clear();
    let late = world.clone_as("a", "1", "c").await.unwrap_err();
    assert!(late.to_string().contains("is not there"), "{late}");
    assert!(world.temporal.running().is_empty());
}

#[tokio::test]
async fn a_copy_whose_name_another_host_was_quicker_to_take_is_undone() {
    let world = world(3, 1);
    *world.temporal.elsewhere.lock().unwrap() = Some("c".parse().unwrap());
    let refused = world.clone_as("a", "1", "c").await.unwrap_err();
    assert!(refused.to_string().starts_with("whose cell it is cannot be asked"), "{refused}");
    assert!(!world.dir.path().join("c").exists());
    world.clone_as("b", "2", "d").await.unwrap();
}

/// A clone of a cell that the host does not have any more.
fn stray(world: &World) -> PathBuf {
    let dir = world.dir.path().join("c");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("clone-of.json"), r#"{"main":"former","operation":"1"}"#).unwrap();
    dir
}

#[tokio::test]
async fn a_clone_is_deleted_also_where_its_main_cell_is_no_longer_the_hosts() {
    let world = world(0, 1);
    let dir = stray(&world);
    let order = HostOrder { clone_of: Some("former".parse().unwrap()), ..order("c", "2") };
    assert!(!world.host.delete(&order).await.unwrap().running);
    assert!(!dir.exists());
    assert!(!world.machines.started.lock().unwrap().contains(&dir), "nothing is started to be deleted");
    assert!(world.host.keeper(&"c".parse().unwrap()).is_err());
}

#[tokio::test]
async fn what_another_agent_keeps_is_not_deleted() {
    let world = world(0, 1);
    let dir = stray(&world);
    let _another_agent = crate::vm::Lock::take(&dir.join("host.lock"), "host h2").unwrap();
    let refused = world.host.delete(&order("c", "2")).await.unwrap_err();
    assert!(matches!(refused, HostError::Claimed { .. }), "{refused}");
    assert!(dir.exists() && world.host.keeper(&"c".parse().unwrap()).is_err());
}

#[tokio::test]
async fn a_clone_is_not_said_to_be_deleted_where_that_cannot_be_told() {
    let world = world(0, 1);
    let of = |main: &str| HostOrder { clone_of: Some(main.parse().unwrap()), ..order("c", "1") };
    assert!(!world.host.delete(&of("a")).await.unwrap().running, "it would lie beside a");
    let unknown = world.host.delete(&of("former")).await.unwrap_err();
    assert!(matches!(unknown, HostError::UnknownCell { .. }), "nobody knows where that one's clones lie: {unknown}");
    let dir = world.dir.path().join("c");
    std::fs::create_dir(&dir).unwrap();
    assert!(matches!(world.host.delete(&of("a")).await, Err(HostError::UnknownCell { .. })), "what is there?");
    assert!(dir.exists());
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(world.dir.path().join("a"), world.dir.path().join("unmounted")).unwrap();
    assert!(matches!(world.host.delete(&of("a")).await, Err(HostError::UnknownCell { .. })), "a's disk is not there");
}
