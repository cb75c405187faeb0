//! The keeper's own rules, on a machine that only exists here. Real processes are in the integration tests.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::vm::DriverError;

/// A host's machines: at most one cell.
#[derive(Default)]
struct World {
    running: Option<Cell>,
    /// The image of each start.
    starts: Vec<Option<String>>,
    /// Ends by force only.
    stubborn: bool,
    /// How long it takes to end in order, and how often it was asked to.
    tidy: Duration,
    asked: u32,
    /// Does not start.
    broken: bool,
    /// Runs from its start on, and does not come up.
    hangs: bool,
    /// The way to it is broken.
    unplugged: bool,
    /// How often it was cloned.
    clones: u32,
    /// What is deleted stays half there, once.
    stuck: bool,
}

#[derive(Clone)]
struct Cell {
    pid: u32,
    end: CancellationToken,
}

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<World>>);

impl Machine {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn crash(&self) {
        let cell = self.world().running.take().unwrap();
        cell.end.cancel();
    }

    /// A cell on its way up, and whether it stays there.
    fn begin(&self, image: Option<&str>) -> Result<(Cell, bool), DriverError> {
        let mut world = self.world();
        if world.broken {
            return Err(DriverError::NotUp { why: "a test says so".into() });
        }
        assert!(world.running.is_none(), "a second life beside the first");
        world.starts.push(image.map(str::to_owned));
        let pid = u32::try_from(world.starts.len()).unwrap();
        let cell = Cell { pid, end: CancellationToken::new() };
        world.running = Some(cell.clone());
        Ok((cell, world.hangs))
    }

    fn starts(&self) -> usize {
        self.world().starts.len()
    }
}

impl Driver for Machine {
    type Cell = Cell;

    async fn check(&self, _dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        match image {
            Some("bad") => Err(DriverError::Image { image: "bad".into(), why: "a test says so".into() }),
            _ => Ok(()),
        }
    }

    async fn start(&self, _dir: &Path, image: Option<&str>) -> Result<Cell, DriverError> {
        let (cell, hangs) = self.begin(image)?;
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(cell)
    }

    fn adopt(&self, _dir: &Path) -> Result<Option<Cell>, DriverError> {
        Ok(self.world().running.clone())
    }

    fn stop(&self, cell: &Cell) {
        let mut world = self.world();
        world.asked += 1;
        let (stubborn, tidy, machine, cell) = (world.stubborn, world.tidy, self.clone(), cell.clone());
        drop(world);
        match stubborn {
            true => {}
            false if tidy.is_zero() => self.kill(&cell),
            false => drop(tokio::spawn(async move {
                tokio::time::sleep(tidy).await;
                machine.kill(&cell);
            })),
        }
    }

    fn least_grace(&self) -> Duration {
        self.world().tidy * 100
    }

    fn kill(&self, cell: &Cell) {
        self.world().running = None;
        cell.end.cancel();
    }

    fn inspect(&self, cell: &Cell) -> Option<u32> {
        Some(cell.pid)
    }

    async fn ended(&self, cell: &mut Cell) -> String {
        cell.end.cancelled().await;
        "a test says so".into()
    }

    async fn replug(&self, _dir: &Path) -> Result<Vec<String>, DriverError> {
        let mut world = self.world();
        assert!(world.running.is_some(), "there is nothing to plug in");
        Ok(std::mem::take(&mut world.unplugged).then(|| "its tap was down".to_owned()).into_iter().collect())
    }

    async fn clone_cell(
        &self,
        main: &Path,
        dir: &Path,
        operation: &str,
        image: Option<&str>,
    ) -> Result<Cloned, DriverError> {
        self.world().clones += 1;
        std::fs::create_dir(dir).map_err(|_| DriverError::Taken { dir: dir.to_owned() })?;
        let main = main.file_name().unwrap().to_str().unwrap();
        let origin = format!(r#"{{"main":"{main}","operation":"{operation}"}}"#);
        std::fs::write(dir.join("clone-of.json"), origin).unwrap();
        Record::begin(dir, image).unwrap();
        Ok(Cloned { held_still: Some(Duration::from_millis(8)), took: Duration::from_millis(9) })
    }

    async fn delete_clone(&self, dir: &Path) -> Result<(), DriverError> {
        assert!(self.world().running.is_none(), "it runs");
        let gone = dir.with_file_name(format!(".gone-{}", dir.file_name().unwrap().to_str().unwrap()));
        if dir.exists() {
            std::fs::rename(dir, &gone).unwrap();
        }
        if std::mem::take(&mut self.world().stuck) {
            return Err(DriverError::Machine { why: "a test says so".into() });
        }
        if gone.exists() {
            std::fs::remove_dir_all(gone).unwrap();
        }
        Ok(())
    }
}

fn open_as(host: &str, machine: &Machine, dir: &Path, session: bool) -> (Keeper, Result<(), HostError>) {
    let home = Home { host: host.parse().unwrap(), cell: "c1".parse().unwrap(), dir: dir.to_owned() };
    let begin = if session { Begin::Running } else { Begin::Wanted };
    Keeper::open(Arc::new(machine.clone()), home, begin, Arc::new(|_| {}), CancellationToken::new())
}

fn open(machine: &Machine, dir: &Path) -> Keeper {
    let (keeper, claimed) = open_as("h1", machine, dir, false);
    claimed.unwrap();
    keeper
}

fn order(operation: &str, image: Option<&str>) -> HostOrder {
    HostOrder {
        operation: operation.into(),
        cell: "c1".parse().unwrap(),
        pool: "default".parse().unwrap(),
        image: image.map(str::to_owned),
        grace_ms: 0,
        clone_of: None,
    }
}

async fn runs(keeper: &Keeper, generation: u64) -> HostCell {
    let mut view = keeper.view.clone();
    view.wait_for(|cell| cell.running && cell.generation == generation).await.unwrap().clone()
}

/// Drops the last handle and waits until the task has let go of the cell.
async fn end(keeper: Keeper) {
    let Keeper { asks, mut view, .. } = keeper;
    drop(asks);
    while view.changed().await.is_ok() {}
}

#[tokio::test]
async fn each_operation_is_done_once() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    let by_itself = runs(&keeper, 1).await;
    let started = keeper.start(order("a", None)).await.unwrap();
    assert_eq!((started.pid, started.generation), (by_itself.pid, 1), "it ran already");
    let stopped = keeper.stop(order("b", None)).await.unwrap();
    assert_eq!((stopped.running, stopped.pid, stopped.started_ms), (false, None, None));
    assert_eq!(keeper.start(order("a", None)).await.unwrap(), started, "the first answer");
    assert_eq!(keeper.inspect(), stopped, "and nothing was done");
    assert_eq!(keeper.start(order("c", None)).await.unwrap().generation, 2);
    assert_eq!(keeper.stop(order("b", None)).await.unwrap(), stopped);
    assert!(keeper.inspect().running);
    assert!(matches!(keeper.start(order("b", None)).await, Err(HostError::Reused { .. })));
}

#[tokio::test]
async fn the_next_agent_finds_what_runs_and_what_was_answered() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    let started = keeper.start(order("a", None)).await.unwrap();
    end(keeper).await;
    let keeper = open(&machine, dir.path());
    assert_eq!(runs(&keeper, 1).await, started);
    assert_eq!(keeper.start(order("a", None)).await.unwrap(), started);
    assert_eq!(machine.starts(), 1, "nothing was started anew");
}

#[tokio::test]
async fn a_start_that_does_not_come_to_an_end_is_broken_off_by_a_stop() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    machine.world().hangs = true;
    let keeper = open(&machine, dir.path());
    while machine.world().running.is_none() {
        tokio::task::yield_now().await;
    }
    assert!(!keeper.stop(order("a", None)).await.unwrap().running);
    assert!(machine.world().running.is_none(), "what was on its way up has ended");
    machine.world().hangs = false;
    assert!(keeper.start(order("b", None)).await.unwrap().running);
    assert_eq!(machine.starts(), 2);
}

#[tokio::test]
async fn what_a_failed_start_has_left_is_found_by_the_next() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    machine.world().broken = true;
    let keeper = open(&machine, dir.path());
    keeper.start(order("a", None)).await.unwrap_err();
    machine.world().running = Some(Cell { pid: 7, end: CancellationToken::new() });
    assert_eq!(keeper.start(order("b", None)).await.unwrap().pid, Some(7));
    assert_eq!(machine.starts(), 0, "no second one beside it");
}

/// Asked a second time, a guest is cut off with its disk mounted.
#[tokio::test]
async fn a_cell_has_the_time_to_end_in_order_however_short_the_order_is() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    keeper.start(order("a", None)).await.unwrap();
    machine.world().tidy = Duration::from_millis(100);
    assert!(!keeper.stop(order("b", None)).await.unwrap().running);
    assert_eq!(machine.world().asked, 1);
    end(keeper).await;
}

#[tokio::test]
async fn a_stopped_cell_stays_stopped_but_for_a_new_session() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    keeper.stop(order("a", None)).await.unwrap();
    end(keeper).await;
    let starts = machine.starts();
    let keeper = open(&machine, dir.path());
    assert!(!keeper.stop(order("b", None)).await.unwrap().running);
    assert_eq!(machine.starts(), starts);
    end(keeper).await;
    let (keeper, _) = open_as("h1", &machine, dir.path(), true);
    runs(&keeper, u64::try_from(starts).unwrap() + 1).await;
}

#[tokio::test]
async fn a_cell_that_is_to_rest_is_not_started_by_its_keeper() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let home = Home { host: "h1".parse().unwrap(), cell: "c1".parse().unwrap(), dir: dir.path().to_owned() };
    let driver = Arc::new(machine.clone());
    let (keeper, _) = Keeper::open(driver, home, Begin::Resting, Arc::new(|_| {}), CancellationToken::new());
    keeper.replug().await.unwrap();
    assert_eq!(machine.starts(), 0);
    keeper.start(order("a", None)).await.unwrap();
    assert_eq!(machine.starts(), 1, "until that is ordered");
}

#[tokio::test]
async fn a_second_agent_is_refused_until_the_first_is_gone() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let first = open(&machine, dir.path());
    runs(&first, 1).await;
    let (second, claimed) = open_as("h2", &machine, dir.path(), false);
    let said = with_source(&claimed.unwrap_err());
    let holder = format!("is held by host h1, process {}", std::process::id());
    assert!(said.starts_with("cell c1 is not this host's to run: ") && said.ends_with(&holder), "{said}");
    assert!(matches!(second.stop(order("a", None)).await, Err(HostError::Claimed { .. })));
    assert!(machine.world().running.is_some());
    end(first).await;
    assert!(!second.stop(order("a", None)).await.unwrap().running);
}

#[tokio::test]
async fn a_cell_that_ends_unasked_comes_back_and_that_is_said() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = said.clone();
    let notice: Notice = Arc::new(move |text| told.lock().unwrap().push(text.to_owned()));
    let home = Home { host: "h".parse().unwrap(), cell: "c1".parse().unwrap(), dir: dir.path().to_owned() };
    let driver = Arc::new(machine.clone());
    let (keeper, _) = Keeper::open(driver, home, Begin::Wanted, notice, CancellationToken::new());
    runs(&keeper, 1).await;
    machine.crash();
    runs(&keeper, 2).await;
    machine.crash();
    runs(&keeper, 3).await;
    let said = said.lock().unwrap().clone();
    assert_eq!(
        said,
        [
            "c1 ended (a test says so), starting it again in 250ms",
            "c1 ended (a test says so), starting it again in 500ms"
        ]
    );
}

#[tokio::test]
async fn what_does_not_start_is_tried_again_and_can_be_stopped() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    machine.world().broken = true;
    let keeper = open(&machine, dir.path());
    let failed = keeper.start(order("a", None)).await.unwrap_err();
    assert_eq!(failed.class(), workflows::contract::FailureClass::CellFault);
    machine.world().broken = false;
    let mut view = keeper.view.clone();
    view.wait_for(|cell| cell.running).await.unwrap();
    machine.world().broken = true;
    machine.crash();
    assert!(!keeper.stop(order("b", None)).await.unwrap().running);
    assert!(
        matches!(keeper.start(order("a", None)).await, Err(HostError::Driver(_))),
        "a failure is no answer to keep"
    );
}

#[tokio::test]
async fn an_image_is_checked_first_then_the_cell_is_started_anew_with_it() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    let first = runs(&keeper, 1).await;
    let refused = keeper.start(order("a", Some("bad"))).await.unwrap_err();
    assert_eq!(refused.class(), workflows::contract::FailureClass::Refused);
    assert_eq!(keeper.inspect(), first);
    let updated = keeper.start(order("b", Some("v2"))).await.unwrap();
    assert_eq!((updated.image.as_deref(), updated.generation), (Some("v2"), 2));
    let kept = keeper.start(order("c", None)).await.unwrap();
    assert_eq!((kept.image, kept.generation), (updated.image, 2), "no image: what it ran last");
    assert_eq!(machine.world().starts, [None, Some("v2".to_owned())]);
}

#[tokio::test]
async fn a_cell_that_ignores_its_end_is_killed() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    machine.world().stubborn = true;
    let keeper = open(&machine, dir.path());
    runs(&keeper, 1).await;
    assert!(!keeper.stop(order("a", None)).await.unwrap().running);
    assert!(machine.world().running.is_none());
}

#[tokio::test]
async fn the_way_to_a_cell_is_mended_while_it_runs() {
    let (machine, dir) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, dir.path());
    runs(&keeper, 1).await;
    machine.world().unplugged = true;
    assert_eq!(keeper.replug().await.unwrap().mended, ["its tap was down"]);
    assert!(keeper.replug().await.unwrap().mended.is_empty(), "once");
    keeper.stop(order("a", None)).await.unwrap();
    assert!(keeper.replug().await.unwrap().mended.is_empty(), "nor where nothing runs");
    assert_eq!(machine.starts(), 1);
}

fn clone_order(operation: &str, clone: &str) -> CloneOrder {
    CloneOrder { order: order(operation, None), clone: clone.parse().unwrap(), slots: 1 }
}

#[tokio::test]
async fn a_clone_is_made_once_runs_what_its_main_cell_runs_and_is_deleted_with_its_directory() {
    let (machine, cells) = (Machine::default(), tempfile::tempdir().unwrap());
    let (main, clone) = (cells.path().join("c1"), cells.path().join("c2"));
    std::fs::create_dir(&main).unwrap();
    let keeper = open(&machine, &main);
    keeper.start(order("a", Some("v2"))).await.unwrap();
    let made = keeper.clone_as(clone_order("b", "c2")).await.unwrap();
    assert_eq!((made.clone.as_str(), made.held_still_ms, made.took_ms), ("c2", Some(8), 9));
    assert_eq!(keeper.clone_as(clone_order("b", "c2")).await.unwrap(), made);
    assert_eq!(machine.world().clones, 1, "the first answer");
    let taken = keeper.clone_as(clone_order("c", "c2")).await.unwrap_err();
    assert_eq!(taken.class(), workflows::contract::FailureClass::Refused);
    let refused = keeper.delete(order("d", None)).await.unwrap_err();
    assert!(refused.to_string().ends_with("only clones are deleted with their disks"), "{refused}");
    assert!(keeper.inspect().running && main.exists());
    keeper.stop(order("e", None)).await.unwrap();

    let copy = open(&machine, &clone);
    let started = copy.start(order("a", None)).await.unwrap();
    assert_eq!((started.image.as_deref(), started.generation), (Some("v2"), 1), "a record of its own");
    assert!(!copy.delete(order("b", None)).await.unwrap().running);
    assert!(!clone.exists() && machine.world().running.is_none());
    assert!(main.exists());
}

/// A clone by the name of the cell that orders are for, and what is beside it.
fn clone(cells: &Path) -> PathBuf {
    let dir = cells.join("c1");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("clone-of.json"), r#"{"main":"c0","operation":"a"}"#).unwrap();
    dir
}

#[tokio::test]
async fn a_deletion_is_ended_by_its_next_attempt() {
    let (machine, cells) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, &clone(cells.path()));
    runs(&keeper, 1).await;
    machine.world().stuck = true;
    keeper.delete(order("a", None)).await.unwrap_err();
    assert_eq!(std::fs::read_dir(cells.path()).unwrap().count(), 1, "half of it is there");
    assert!(!keeper.delete(order("a", None)).await.unwrap().running);
    assert_eq!(std::fs::read_dir(cells.path()).unwrap().count(), 0);
    assert!(!keeper.delete(order("a", None)).await.unwrap().running, "and once more");
}

#[tokio::test]
async fn an_attempt_that_waited_for_another_finds_the_clone_deleted() {
    let (machine, cells) = (Machine::default(), tempfile::tempdir().unwrap());
    let keeper = open(&machine, &clone(cells.path()));
    let attempts = [keeper.delete(order("a", None)), keeper.delete(order("a", None))];
    for answer in futures::future::join_all(attempts).await {
        assert!(!answer.unwrap().running);
    }
    // A new clone of that name is not the former one's.
    let dir = clone(cells.path());
    keeper.delete(order("a", None)).await.unwrap();
    assert!(dir.exists());
}

#[tokio::test]
async fn the_next_agent_ends_a_deletion_that_was_cut_off() {
    let (machine, cells) = (Machine::default(), tempfile::tempdir().unwrap());
    let dir = clone(cells.path());
    std::fs::rename(&dir, cells.path().join(".gone-c1")).unwrap();
    let (keeper, claimed) = open_as("h1", &machine, &dir, false);
    assert!(claimed.is_err(), "there is nothing to keep");
    keeper.delete(order("a", None)).await.unwrap();
    assert_eq!(std::fs::read_dir(cells.path()).unwrap().count(), 0);
    let main = cells.path().join("c1");
    let (keeper, _) = open_as("h1", &machine, &main, false);
    assert!(keeper.delete(order("b", None)).await.is_err(), "what was never seen is no deleted clone");
}

#[tokio::test]
async fn a_cell_without_a_directory_is_refused() {
    let (_, claimed) = open_as("h1", &Machine::default(), Path::new("/nowhere/c1"), false);
    assert!(claimed.unwrap_err().to_string().starts_with("/nowhere/c1 is not there"));
}
