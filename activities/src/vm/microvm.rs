//! Cells that are microVMs: guests under QEMU or Firecracker, which run on when the agent ends.
//!
//! ```text
//! prepare (binary) ─► cache disk made or grown ─► boot ─► running
//!                            ▲                      │ what is on the disk is of no use
//!                            └── an empty one ◄─────┴── set aside, kept for inspection: the cell starts cold
//! ```
//!
//! A guest is found again by what it left in its directory ([`::vm::Guest::adopt`]). What the guest is made of, and the network
//! around it, are the binary's own business ([`Guests`]).

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::vm::{Control, Fault, Guest, Hello, Patience, Phase, VmError, disk};
use tokio::time::Instant;

use super::{Cloned, Driver, DriverError, GuestStart, Guests, clones, figures};
use crate::failure::with_source;

/// How long PID 1 may take to answer a request, and to stop when its disk is of no use.
const ANSWER: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(20);
/// What a guest takes to end its daemons and to unmount its disk: a second alone, under tcg four beside others.
const LEAST_GRACE: Duration = Duration::from_secs(10);
/// How long a wait for a guest's end lasts before it is begun anew, and the pause where it could not begin.
const LONG: Duration = Duration::from_secs(3600);
const UNWATCHED: Duration = Duration::from_secs(1);
/// Between two looks at the rules around a guest.
const GUARD: Duration = Duration::from_secs(15);

/// Cells of guests.
pub struct MicrovmDriver<G> {
    guests: G,
}

/// A guest that runs, or is on its way up.
#[derive(Debug)]
pub struct Running {
    guest: Guest,
    /// The cell's directory, and the guest's.
    dir: PathBuf,
    run_dir: PathBuf,
    /// It was asked to stop before.
    asked: AtomicBool,
    /// Found while it may still boot: until when it has to be up.
    boots_until: Option<Instant>,
}

impl<G: Guests> MicrovmDriver<G> {
    pub fn new(guests: G) -> Self {
        Self { guests }
    }

    async fn boot(&self, start: &GuestStart) -> Result<Guest, DriverError> {
        let cache = &start.machine.cache_disk;
        make_disk(cache, start.disk_bytes).await?;
        let (mut guest, mut hello) = up(start).await?;
        if hello.fault == Some(Fault::Disk) {
            let why = hello.why.unwrap_or_default();
            guest.stop(STOP).await.map_err(|error| not_up(&error))?;
            let aside = disk::set_aside(cache).await.map_err(|error| not_up(&error))?;
            tracing::error!(why, kept = %aside.display(), "the cell starts cold: its cache disk is set aside");
            make_disk(cache, start.disk_bytes).await?;
            (guest, hello) = up(start).await?;
        }
        if hello.phase == Phase::Failed {
            guest.kill().await.map_err(|error| not_up(&error))?;
            return Err(DriverError::NotUp { why: hello.why.unwrap_or_default() });
        }
        guest.release();
        Ok(guest)
    }

    /// Takes the cell's network away, unless a guest has it: that one would run on without its rules.
    fn clear(&self, dir: &Path) {
        match Guest::adopt(&self.guests.run_dir(dir)) {
            None => self.guests.clear(dir),
            Some(guest) => {
                tracing::warn!(dir = %dir.display(), pid = guest.process().pid, "a guest still runs, its network stays");
            }
        }
    }
}

/// Makes or grows a cache disk. A guest has its file system grown at each start.
async fn make_disk(path: &Path, bytes: u64) -> Result<(), DriverError> {
    match tokio::fs::metadata(path).await {
        Ok(disk) if disk.len() >= bytes => Ok(()),
        Ok(_) => disk::grow(path, bytes).await.map_err(|error| not_up(&error)),
        // Whatever else is wrong with the path, making the disk says it.
        Err(_) => disk::create(path, bytes).await.map_err(|error| not_up(&error)),
    }
}

async fn up(start: &GuestStart) -> Result<(Guest, Hello), DriverError> {
    Guest::boot(&start.machine, &start.config, start.patience).await.map_err(|error| not_up(&error))
}

pub(super) fn not_up(error: &(dyn std::error::Error + 'static)) -> DriverError {
    DriverError::NotUp { why: with_source(error) }
}

impl<G: Guests> Driver for MicrovmDriver<G> {
    type Cell = Running;

    async fn check(&self, dir: &Path, image: Option<&str>) -> Result<(), DriverError> {
        self.guests.check(dir, image).await
    }

    async fn start(&self, dir: &Path, image: Option<&str>) -> Result<Running, DriverError> {
        if let Some(guest) = Guest::adopt(&self.guests.run_dir(dir)) {
            let why = format!("a guest runs there already (process {})", guest.process().pid);
            return Err(DriverError::NotUp { why });
        }
        let start = self.guests.prepare(dir, image).await?;
        match self.boot(&start).await {
            Ok(guest) => {
                let (dir, run_dir) = (dir.to_owned(), start.machine.dir);
                Ok(Running { guest, dir, run_dir, asked: AtomicBool::new(false), boots_until: None })
            }
            Err(error) => {
                self.clear(dir);
                Err(error)
            }
        }
    }

    fn adopt(&self, dir: &Path) -> Result<Option<Running>, DriverError> {
        let run_dir = self.guests.run_dir(dir);
        let patience = Patience::default();
        Ok(Guest::adopt(&run_dir).map(|guest| Running {
            guest,
            dir: dir.to_owned(),
            run_dir,
            asked: AtomicBool::new(false),
            boots_until: Some(Instant::now() + patience.hello + patience.ready),
        }))
    }

    fn stop(&self, cell: &Running) {
        if cell.asked.swap(true, Ordering::Relaxed) {
            cell.guest.cut_off();
        } else {
            tokio::spawn(ask_to_stop(cell.run_dir.clone()));
        }
    }

    /// Who is cut off before leaves its disk as after a power cut, and connections that nobody closes.
    fn least_grace(&self) -> Duration {
        LEAST_GRACE
    }

    fn kill(&self, cell: &Running) {
        cell.guest.process().signal(libc::SIGKILL);
    }

    fn inspect(&self, cell: &Running) -> Option<u32> {
        cell.guest.process().pid.try_into().ok()
    }

    async fn ended(&self, cell: &mut Running) -> String {
        let how = end_of(cell, &self.guests).await;
        self.clear(&cell.dir);
        how
    }

    async fn replug(&self, dir: &Path) -> Result<Vec<String>, DriverError> {
        self.guests.replug(dir).await
    }

    async fn clone_cell(
        &self,
        main: &Path,
        dir: &Path,
        operation: &str,
        image: Option<&str>,
    ) -> Result<Cloned, DriverError> {
        clones::make(&self.guests, main, dir, (operation, image)).await
    }

    async fn delete_clone(&self, dir: &Path) -> Result<(), DriverError> {
        clones::delete(&self.guests, dir).await
    }
}

/// Over a connection of its own: whoever waits for the cell's end goes on waiting.
async fn ask_to_stop(run_dir: PathBuf) {
    let Some(guest) = Guest::adopt(&run_dir) else { return };
    let asked = async { Control::connect(&guest.control_line()).await?.stop(ANSWER).await };
    if let Err(error) = asked.await {
        tracing::warn!(error = with_source(&error), dir = %run_dir.display(), "the guest takes no request to stop, its power is cut");
        guest.cut_off();
    }
}

/// Waits for the guest's end. One that was found and does not come up is ended.
async fn end_of<G: Guests>(cell: &mut Running, guests: &G) -> String {
    if let Some(until) = cell.boots_until {
        let rest = until.saturating_duration_since(Instant::now());
        let patience = Patience { hello: rest.min(Patience::default().hello), ready: rest, attempts: 1 };
        let settled = cell.guest.settled(patience).await;
        cell.guest.release();
        cell.boots_until = None;
        let why = match settled {
            Ok(hello) if hello.phase == Phase::Failed => Some(hello.why.unwrap_or_default()),
            Ok(_) => None,
            Err(VmError::Ended(end)) => return end.to_string(),
            Err(error) => Some(with_source(&error)),
        };
        if let Some(why) = why {
            if let Err(error) = cell.guest.kill().await {
                tracing::warn!(error = with_source(&error), dir = %cell.dir.display(), "the guest stays");
            }
            return why;
        }
    }
    let name = cell.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let guest = &cell.guest;
    let ended = async {
        loop {
            match guest.ended(LONG).await {
                Ok(Some(end)) => return end.to_string(),
                Ok(None) => {}
                // It may run on, and nobody else would see its end.
                Err(error) => {
                    tracing::warn!(error = with_source(&error), cell = name, "the guest cannot be watched");
                    tokio::time::sleep(UNWATCHED).await;
                }
            }
        }
    };
    tokio::select! {
        how = ended => how,
        never = figures::follow(&name, guest, guests.clock(&cell.dir)) => match never {},
        never = guard(&name, &cell.dir, guests) => match never {},
    }
}

/// Sees to it that the rules around a guest stand for as long as it runs.
async fn guard<G: Guests>(name: &str, dir: &Path, guests: &G) -> Infallible {
    loop {
        tokio::time::sleep(GUARD).await;
        match guests.guard(dir).await {
            Ok(mended) if mended.is_empty() => {}
            Ok(mended) => {
                tracing::error!(cell = name, mended = mended.join(", "), "steps could reach the host: mended")
            }
            Err(error) => {
                tracing::error!(
                    cell = name,
                    error = with_source(&error),
                    "whether steps can reach the host is not known"
                )
            }
        }
    }
}
