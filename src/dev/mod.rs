//! `kiln dev`: all of Kiln on one machine.
//!
//! ```text
//! kiln dev ── S3 store (in process)
//!   ├── guard ── temporal server start-dev
//!   ├── guard ── docker-registry
//!   ├── guard ── kiln api
//!   ├── guard ── kiln control
//!   └── guard ── kiln host
//!         └── guard ── cell: PID 1 ─┬─ buildkitd          (one for each of --cells)
//!                                   └─ kiln builder
//! ```
//!
//! With `--driver qemu` each cell is a guest under QEMU instead, which has a guard as its supervisor.
//!
//! All guards watch the one pipe that this process holds, the cells' too: the agent between is only who starts them.
//!
//! The module only starts, watches and ends: what the parts do is theirs. Everything it keeps lies in the data directory, and the
//! parts get their settings from the files it writes there, never from its memory. What `--set` says goes into all of these files.

mod children;
mod credentials;
mod data;
mod error;
mod files;
mod guests;
mod keys;
mod parts;
mod ports;
mod preflight;
mod ready;
mod run_image;
mod s3;
mod seed;
mod temporal;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use children::Children;
use data::DataDir;
pub use error::DevError;
use parts::Installation;
pub use ready::usual_file as ready_file;
pub use run_image::{RunImageArgs, run as run_image};

use crate::settings::Resolved;

/// How long the parts may take until everything answers; guests are started again when they hang in their boot.
const START_PATIENCE: Duration = Duration::from_secs(120);
const GUEST_PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    /// Where everything is kept; by default $XDG_DATA_HOME/kiln/dev or ~/.local/share/kiln/dev
    #[arg(long, value_name = "DIR", env = "KILN_DATA")]
    pub data_dir: Option<PathBuf>,
    /// Number of cells
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cells: u32,
    /// Builds that one cell runs at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: u32,
    /// Written with all endpoints as JSON when everything answers (mode 0600)
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Base images to put into the registry before it is ready: busybox, golang
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    pub seed: Vec<seed::Image>,
    /// Directory with temporal, buildkitd and runc, as `make tools` prints it
    #[arg(long, value_name = "DIR", env = "KILN_TOOLS_DIR")]
    pub tools_dir: Option<PathBuf>,
    #[command(flatten)]
    pub guests: guests::GuestArgs,
    #[command(flatten)]
    pub ports: ports::Wanted,
}

/// Runs until SIGTERM, SIGINT or SIGHUP; a second one ends everything at once, with exit code 130.
///
/// # Errors
/// What is missing on this machine, who uses the data directory, which part did not come up.
pub async fn run(args: DevArgs, resolved: &Resolved) -> Result<ExitCode, DevError> {
    let (mut stop, data, installation) = prepare(&args, resolved).map_err(DevError::Refused)?;
    let store = s3::serve(&installation).await.map_err(DevError::NotUp)?;
    let mut children = Children::new(&data).map_err(DevError::NotUp)?;

    let outcome = tokio::select! {
        started = start(&installation, &mut children, &args) => started.map(|()| ExitCode::SUCCESS),
        () = stop.asked() => Ok(ExitCode::from(130)),
    };
    if matches!(outcome, Ok(ExitCode::SUCCESS)) {
        stop.asked().await;
    }
    ready::withdraw(args.ready_file.as_deref(), &installation);
    let outcome = tokio::select! {
        () = children.end() => outcome,
        () = stop.asked() => {
            children.kill().await;
            Ok(ExitCode::from(130))
        }
    };
    store.abort();
    outcome.map_err(DevError::NotUp)
}

/// Checks the machine, takes the data directory and settles what the parts will find there.
fn prepare(args: &DevArgs, resolved: &Resolved) -> anyhow::Result<(Stop, DataDir, Installation)> {
    let stop = Stop::new()?;
    preflight::root()?;
    let tools = tools::Tools::find(args.tools_dir.as_deref())?;
    let data = DataDir::open(args.data_dir.clone())?;
    preflight::overlayfs(data.path())?;
    let installation = Installation::prepare(&data, args, tools, resolved)?;
    ready::withdraw(args.ready_file.as_deref(), &installation);
    Ok((stop, data, installation))
}

/// Starts the parts in the order they need each other, and returns when all of them answer.
async fn start(installation: &Installation, children: &mut Children, args: &DevArgs) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    children.start(installation.temporal());
    children.start(installation.registry());
    let limit = if installation.guests.is_some() { GUEST_PATIENCE } else { START_PATIENCE };
    let patience = tokio::time::timeout(limit, async {
        let temporal = temporal::ready(&installation.settings).await?;
        children.start(installation.api());
        children.start(installation.control());
        credentials::prepare(installation).await?;
        children.start(installation.host());
        ready::registry(installation).await;
        for image in &args.seed {
            seed::push(&installation.settings.registry.address, *image).await?;
        }
        ready::everything(installation, &temporal).await
    });
    patience.await.unwrap_or_else(|_| Err(ready::overdue(installation)))?;
    ready::write(args.ready_file.as_deref(), installation)?;
    ready::announce(installation, begun.elapsed());
    Ok(())
}

/// The signals that end `kiln dev`.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]))
    }

    /// Returns when the next one arrives.
    async fn asked(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
