//! `kiln host`: the agent of one host. It keeps the host's cells running and obeys the orders of their Cells.
//!
//! ```text
//! claim the cells ─► adopt what runs, start what should ─► worker on host-<id> ─► told to end: leave the cells, or end them (bound)
//! ```
//!
//! What a cell is lies in its directory (`cell.json`, see [`crate::cell::Plan`]; for a guest [`guests`]); how cells are kept is
//! [`activities::vm`]'s. This file says how a cell of processes is started, and with whose end it ends.

mod credentials;
mod guests;
mod images;
mod plan;
mod scrape;
mod trust;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use activities::vm::{
    Begin, Driver, DriverError, GUARD_LOCK, Home, Host, HostError, Keep, Keeper, Launch, Launcher, MicrovmDriver,
    Notice, ProcessDriver, end_half_done_clones, find_clones, find_stray_clones, main_of,
};
use activities::{temporal, workers};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use workflows::contract::{CellId, HostId};

pub use self::credentials::FILE as CREDENTIAL;
use self::credentials::{Credentialed, Credentials};
pub use self::images::list as list_images;
use self::images::{ImageDir, Programs};
pub use self::scrape::routes as metrics_routes;
use crate::cell::{self, GuardOptions, Plan};
use crate::settings::{self, Settings};
use crate::terminal;

/// The file beside `cell.json` that PID 1 reads: the same with the ordered image in it.
const RUNNING_PLAN: &str = "running.json";
/// How long bound cells may take to end with the agent before they are hurried; their own limits are shorter.
const BOUND_GRACE: Duration = Duration::from_secs(4);

/// `kiln host plan`. A plan that does not work out is no success.
///
/// # Errors
/// When the machine cannot be measured.
pub fn plan(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let plan = plan::Plan::of(plan::Machine::this(&settings.host.cells)?, settings);
    match json {
        true => terminal::print_json(&serde_json::to_value(&plan)?)?,
        false => terminal::print(&plan)?,
    }
    Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Runs until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let id: HostId = settings.host.id.parse()?;
    let bound = !settings.host.bound.as_os_str().is_empty();
    let host = open(&settings, &id, bound, &stop)?;
    let mut serving = std::pin::pin!(serve(&settings, &id, &host, stop.clone()));
    tokio::select! {
        // By itself only when it fails: the cells go on, and the next agent adopts them.
        served = &mut serving => return served,
        () = stop.cancelled() => {}
    }
    let resting = async {
        if bound {
            host.rest(BOUND_GRACE).await;
        }
    };
    tokio::join!(serving, resting).0
}

/// Claims the cells and starts to keep them.
///
/// # Errors
/// Not one of them can be had.
fn open(settings: &Settings, id: &HostId, bound: bool, stop: &CancellationToken) -> anyhow::Result<Host> {
    let ward = Ward::new(&settings.host)?;
    match settings.host.driver.as_str() {
        "qemu" | "firecracker" => {
            let guests = guests::Microvms::new(settings, &ward.kiln, ward.supervisor, ward.hold)?;
            keep(settings, id, bound, stop, MicrovmDriver::new(guests))
        }
        _ => {
            let images = Programs::new(ImageDir::new(&settings.host.image_dir));
            keep(settings, id, bound, stop, ProcessDriver::new(Processes { ward, images }))
        }
    }
}

fn keep<D: Driver>(
    settings: &Settings,
    id: &HostId,
    bound: bool,
    stop: &CancellationToken,
    driver: D,
) -> anyhow::Result<Host> {
    let driver = Arc::new(Credentialed::new(driver, Credentials::new(settings)?));
    let notice: Notice = if bound { Arc::new(say) } else { Arc::new(|_| {}) };
    let (host, stop) = (id.clone(), stop.clone());
    let usual = if bound { Begin::Running } else { Begin::Wanted };
    let open = move |cell: &CellId, dir: &Path, begin: Begin| {
        let begin = if begin == Begin::Wanted { usual } else { begin };
        let home = Home { host: host.clone(), cell: cell.clone(), dir: dir.to_owned() };
        Keeper::open(driver.clone(), home, begin, notice.clone(), stop.clone())
    };
    end_half_done_clones(&settings.host.cells);
    warn_of_strays(&settings.host.cells);
    let mut keepers = BTreeMap::new();
    let mut refused: Option<HostError> = None;
    let mut claimed = 0;
    for dir in settings.host.cells.iter().cloned().chain(find_clones(&settings.host.cells)) {
        let cell = cell_of(&dir)?;
        let (keeper, claim) = open(&cell, &dir, Begin::Wanted);
        match claim {
            Ok(()) => claimed += 1,
            Err(error) => {
                tracing::error!(%cell, error = &error as &dyn std::error::Error, "not kept");
                refused = Some(error);
            }
        }
        keepers.insert(cell, keeper);
    }
    let keep: Keep = Arc::new(move |cell, dir, begin| {
        let (keeper, claim) = open(cell, dir, begin);
        if let Err(error) = claim {
            tracing::error!(%cell, error = &error as &dyn std::error::Error, "not kept, until an order tries again");
        }
        keeper
    });
    match refused {
        Some(error) if claimed == 0 => Err(error.into()),
        _ => Ok(Host::new(id.clone(), keepers, keep, settings.host.max_cells)),
    }
}

/// Of clones that this agent would keep if it had their main cells: they may run on, and take their disks' room.
fn warn_of_strays(cells: &[PathBuf]) {
    for dir in find_stray_clones(cells) {
        let main = main_of(&dir).map(|main| main.to_string());
        tracing::warn!(dir = %dir.display(), main, "a clone is not kept: its main cell is not among host.cells");
    }
}

/// Takes orders until `stop`.
async fn serve(settings: &Settings, id: &HostId, host: &Host, stop: CancellationToken) -> anyhow::Result<()> {
    let (frontend, identity) = (settings.frontend(), format!("kiln-host {id}"));
    let connecting = temporal::connect_patiently(&frontend, &identity);
    let Some(client) = stop.run_until_cancelled(connecting).await else { return Ok(()) };
    let client = client?;
    host.give_up_foreign(&client, &settings.cell.pool.parse()?, BOUND_GRACE).await;
    let runtime = workers::runtime()?;
    tracing::info!(host = %id, cells = settings.host.cells.len(), "the host's agent is up");
    workers::host(&runtime, &client, id, host.clone())?.run(stop).await?;
    Ok(())
}

/// A cell's directory is named by it.
fn cell_of(dir: &Path) -> anyhow::Result<CellId> {
    let name = dir.file_name().with_context(|| format!("{} names no cell", dir.display()))?;
    Ok(name.to_string_lossy().parse()?)
}

/// For the person who watches the agent's supervisor.
fn say(text: &str) {
    let _ = terminal::print_line(format_args!("kiln host: {text}"));
}

/// How cells of processes are started.
struct Processes {
    ward: Ward,
    images: Programs,
}

/// Whose end is the cells' end, and this program as their guard.
struct Ward {
    /// This program, resolved once: the name changes when a build replaces the file.
    kiln: PathBuf,
    /// The pipe that ends bound cells; for others what never ends.
    supervisor: OwnedFd,
    hold: Option<PathBuf>,
}

impl Ward {
    fn new(settings: &settings::Host) -> anyhow::Result<Self> {
        let hold = Some(settings.bound.clone()).filter(|file| !file.as_os_str().is_empty());
        let supervisor = match hold {
            Some(_) => io::stdin().as_fd().try_clone_to_owned().context("standard input must be a pipe")?,
            None => File::open("/dev/null").context("cannot open /dev/null")?.into(),
        };
        let kiln = std::env::current_exe().context("cannot tell where this program lies")?;
        Ok(Self { kiln, supervisor, hold })
    }
}

impl Processes {
    fn guard(&self, dir: &Path, image: Option<&Path>, plan: &Plan) -> anyhow::Result<std::process::Command> {
        let file = dir.join(RUNNING_PLAN);
        std::fs::write(&file, serde_json::to_vec_pretty(plan)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let kiln = image.map_or_else(|| self.ward.kiln.clone(), |image| image.join("kiln"));
        let options = GuardOptions {
            namespaces: true,
            claim: Some(dir.join(GUARD_LOCK)),
            hold: self.ward.hold.clone(),
            ..GuardOptions::default()
        };
        let log =
            cell::open_log(&plan.logs.cell).with_context(|| format!("cannot open {}", plan.logs.cell.display()))?;
        let mut guard = cell::guarded(&kiln, &options, &kiln, &self.ward.supervisor)?;
        guard.args([cell::INIT_ROLE, "--config"]).arg(file).stdout(log.try_clone()?).stderr(log);
        settings::forget_variables(&mut guard);
        Ok(guard)
    }
}

impl Launcher for Processes {
    fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        plan_of(dir)?;
        image.map_or(Ok(()), |image| self.images.verified(image).map(drop))
    }

    fn launch(&self, dir: &Path, image: Option<&str>) -> Result<Launch, DriverError> {
        let plan = plan_of(dir)?;
        let image = image.map(|image| self.images.verified(image)).transpose()?;
        let unusable = |source: anyhow::Error| DriverError::Plan { path: dir.to_owned(), source: source.into() };
        let plan = match &image {
            None => plan,
            Some(image) => plan.with_image(image).map_err(unusable)?,
        };
        let command = self.guard(dir, image.as_deref(), &plan).map_err(unusable)?;
        Ok(Launch { command, socket: plan.socket, log: plan.logs.cell })
    }
}

/// What the cell's directory says the cell is.
fn plan_of(dir: &Path) -> Result<Plan, DriverError> {
    if !dir.is_dir() {
        return Err(DriverError::NoDirectory { path: dir.to_owned() });
    }
    let path = dir.join("cell.json");
    let read = trust::read(&path).and_then(|text| Plan::of(&text, &path)).and_then(|plan| {
        let named = dir.file_name().is_some_and(|name| name == plan.id.as_str()) && plan.dir == dir;
        anyhow::ensure!(named, "it describes the cell {} in {}", plan.id, plan.dir.display());
        Ok(plan)
    });
    read.map_err(|source| DriverError::Plan { path, source: source.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has one image.
    fn processes(images: &Path) -> (Processes, String) {
        let image = images.join("v2");
        std::fs::create_dir_all(&image).unwrap();
        images::PROGRAMS.iter().for_each(|program| std::fs::write(image.join(program), program).unwrap());
        let listing = images::PROGRAMS.map(|program| format!("{}  {program}\n", vm::sha256_hex(program.as_bytes())));
        let named = format!("v2@sha256:{}", vm::sha256_hex(listing.concat().as_bytes()));
        let ward = Ward::new(&settings::Host::default()).unwrap();
        (Processes { ward, images: Programs::new(ImageDir::new(images)) }, named)
    }

    /// A cell's directory as `kiln dev` writes it.
    fn home(parent: &Path) -> PathBuf {
        let dir = parent.join("cell-1");
        std::fs::create_dir(&dir).unwrap();
        let logs = cell::Logs { cell: dir.join("log"), ..Plan::example().logs };
        let plan = Plan { dir: dir.clone(), logs, ..Plan::example() };
        std::fs::write(dir.join("cell.json"), serde_json::to_vec(&plan).unwrap()).unwrap();
        dir
    }

    #[test]
    fn a_start_runs_the_images_programs() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, image) = (home(parent.path()), parent.path().canonicalize().unwrap().join("images/v2"));
        let (processes, named) = processes(&parent.path().join("images"));
        let launch = processes.launch(&dir, Some(&named)).unwrap();
        assert_eq!(launch.command.get_program(), image.join("kiln"));
        let plan = Plan::read(&dir.join(RUNNING_PLAN)).unwrap();
        assert_eq!(plan.tools.runc, image.join("runc"));
        assert_eq!(Plan::read(&dir.join("cell.json")).unwrap().tools, Plan::example().tools, "what was set up stays");
    }

    #[test]
    fn what_cannot_be_started_is_said_before_anything_is_touched() {
        let parent = tempfile::tempdir().unwrap();
        let dir = home(parent.path());
        let (processes, named) = processes(&parent.path().join("images"));
        let said = |dir: &Path, image: Option<&str>| processes.check(dir, image).unwrap_err().to_string();
        assert!(said(&dir, Some("v2")).contains("must be name@sha256:"));
        let path = parent.path().join("images/v2");
        assert!(said(&dir, path.to_str()).contains("no path is taken"));
        assert!(said(&dir, Some(&named.replacen("v2", "v3", 1))).contains("there is no "));
        processes.check(&dir, Some(&named)).unwrap();
        let gone = parent.path().join("cell-9");
        assert!(said(&gone, None).ends_with("the cell has no directory on this host"));
        std::fs::rename(&dir, &gone).unwrap();
        let wrong = processes.check(&gone, None).unwrap_err();
        let source = std::error::Error::source(&wrong).unwrap().to_string();
        assert!(source.starts_with("it describes the cell cell-1 in "), "{source}");
    }
}
