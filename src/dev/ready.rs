//! When everything answers, and how that is told: the ready file for programs, a few lines for people.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use activities::egress;
use anyhow::Context;
use serde::Serialize;
use temporalio_client::Client;
use temporalio_common::protos::temporal::api::enums::v1::TaskQueueType;
use workflows::contract::{CONTROL_TASK_QUEUE, CellState};

use super::data;
use super::files;
use super::parts::{CellParts, Installation};
use crate::api::CellInfo;
use crate::cell::Network;
use crate::terminal;

/// How often a part that does not answer yet is asked again.
const POLL: Duration = Duration::from_millis(50);

/// Of the list of cells, bytes.
const LONGEST_LIST: usize = 16 << 20;

/// Waits until the registry answers.
pub async fn registry(installation: &Installation) {
    answers(&format!("http://{}/v2/", installation.settings.registry.address)).await;
}

/// Waits until all parts answer: the api's health check, workers of control and of the host, and of each cell buildkitd, its builder and
/// its Cell.
///
/// # Errors
/// Never for a part that does not answer; the caller limits the time.
pub async fn everything(installation: &Installation, temporal: &Client) -> anyhow::Result<()> {
    let cells = installation.cells.iter().map(|cell| cell_ready(installation, temporal, cell));
    let host = installation.host_queue()?;
    let health = format!("{}/healthz", installation.settings.api.url);
    tokio::join!(
        answers(&health),
        polled(installation, temporal, CONTROL_TASK_QUEUE, TaskQueueType::Workflow),
        polled(installation, temporal, &host, TaskQueueType::Activity),
        futures::future::join_all(cells),
    );
    Ok(())
}

async fn cell_ready(installation: &Installation, temporal: &Client, cell: &CellParts) {
    // A guest's is the guest's own; its builder waits for it.
    while installation.guests.is_none() && !buildkit_answers(cell).await {
        tokio::time::sleep(POLL).await;
    }
    polled(installation, temporal, &cell.task_queue(), TaskQueueType::Activity).await;
    while !settled(installation, cell).await {
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the Cell has made up its mind: a cell of a former run is looked at anew before it gets builds, and one that was drained or
/// taken out stays so.
async fn settled(installation: &Installation, cell: &CellParts) -> bool {
    let settings = &installation.settings.api;
    let request = reqwest::Client::new().get(format!("{}/v1/cells", settings.url)).bearer_auth(settings.token.reveal());
    let Ok(response) = request.timeout(Duration::from_secs(2)).send().await else { return false };
    let Ok(body) = egress::body(response, LONGEST_LIST).await else { return false };
    let cells: Vec<CellInfo> = serde_json::from_slice(&body).unwrap_or_default();
    cells.iter().filter(|info| info.hint.cell == cell.id).any(|info| match info.hint.state {
        CellState::Provisioning | CellState::Starting | CellState::Unhealthy => info.detail.taken_out,
        _ => true,
    })
}

async fn buildkit_answers(cell: &CellParts) -> bool {
    match buildkit::Client::connect_unix(&cell.socket).await {
        Ok(client) => client.workers().await.is_ok_and(|workers| !workers.is_empty()),
        Err(_) => false,
    }
}

/// Waits until a worker asks the queue for work.
async fn polled(installation: &Installation, temporal: &Client, queue: &str, kind: TaskQueueType) {
    while !super::temporal::has_poller(temporal, &installation.settings.temporal.namespace, queue, kind).await {
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until `url` is answered with success.
async fn answers(url: &str) {
    let client = reqwest::Client::new();
    loop {
        let answer = client.get(url).timeout(Duration::from_secs(2)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why the start is given up.
pub fn overdue(installation: &Installation) -> anyhow::Error {
    anyhow::anyhow!("not everything came up in time; the logs are in {}", installation.data.join("logs").display())
}

/// The ready file in the data directory.
const NAME: &str = "ready.json";

/// The ready file. Its keys are a contract: tests and scripts read them.
#[derive(Serialize)]
struct Ready<'a> {
    /// `host:port`, as `registry`.
    temporal: &'a str,
    namespace: &'a str,
    /// A URL, as `temporal_ui`.
    api: &'a str,
    api_token: &'a str,
    registry: &'a str,
    s3: ReadyS3<'a>,
    temporal_ui: String,
    cells: Vec<ReadyCell<'a>>,
}

#[derive(Serialize)]
struct ReadyS3<'a> {
    endpoint: &'a str,
    region: &'a str,
    bucket: &'a str,
    access_key: &'a str,
    secret_key: &'a str,
}

#[derive(Serialize)]
struct ReadyCell<'a> {
    id: &'a str,
    task_queue: String,
    /// None in a guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    buildkit_socket: Option<&'a Path>,
}

impl<'a> ReadyCell<'a> {
    fn of(installation: &Installation, cell: &'a CellParts) -> Self {
        let buildkit_socket = Some(cell.socket.as_path()).filter(|_| installation.guests.is_none());
        Self { id: cell.id.as_str(), task_queue: cell.task_queue(), buildkit_socket }
    }
}

impl<'a> Ready<'a> {
    fn of(installation: &'a Installation) -> Self {
        let settings = &installation.settings;
        Self {
            temporal: &settings.temporal.address,
            namespace: &settings.temporal.namespace,
            api: &settings.api.url,
            api_token: settings.api.token.reveal(),
            registry: &settings.registry.address,
            s3: ReadyS3 {
                endpoint: &settings.s3.endpoint,
                region: &settings.s3.region,
                bucket: &settings.s3.bucket,
                access_key: &settings.s3.access_key,
                secret_key: settings.s3.secret_key.reveal(),
            },
            temporal_ui: temporal_ui(installation),
            cells: installation.cells.iter().map(|cell| ReadyCell::of(installation, cell)).collect(),
        }
    }
}

/// Where the ready file is written: where it was asked for, and always in the data directory, where other commands look for it.
fn places<'a>(asked: Option<&'a Path>, installation: &Installation) -> impl Iterator<Item = Cow<'a, Path>> {
    [Cow::Owned(installation.data.join(NAME))].into_iter().chain(asked.map(Cow::Borrowed))
}

/// Where the ready file of this user's `kiln dev` is when it runs: commands without an address of their own look there.
pub fn usual_file() -> Option<PathBuf> {
    Some(data::usual_path()?.join(NAME))
}

/// Writes the ready file, whole or not at all.
///
/// # Errors
/// When it cannot be written; the message names it.
pub fn write(asked: Option<&Path>, installation: &Installation) -> anyhow::Result<()> {
    let ready = Ready::of(installation);
    places(asked, installation).try_for_each(|file| {
        files::write_json(&file, &ready).with_context(|| format!("cannot write {}", file.display()))
    })
}

/// Removes the ready file: nothing answers yet, or any more.
pub fn withdraw(asked: Option<&Path>, installation: &Installation) {
    for file in places(asked, installation) {
        let _ = std::fs::remove_file(file);
    }
}

/// Tells people where things are, on standard error.
pub fn announce(installation: &Installation, took: Duration) {
    let settings = &installation.settings;
    let in_host = installation.cells.iter().filter_map(|cell| match cell.network() {
        Some(Network::Host { why }) => Some((cell.id.as_str(), why)),
        _ => None,
    });
    let (cells, mut reasons): (Vec<_>, Vec<_>) = in_host.unzip();
    reasons.dedup();
    if !cells.is_empty() {
        let (cells, reasons) = (cells.join(", "), reasons.join("; "));
        terminal::note(format_args!("warning: the steps of {cells} run in the host's network: {reasons}"));
    }
    terminal::note(format_args!(
        "kiln dev: ready after {:.1} s, {} cells\n  api          {}\n  temporal     {}, console {}\n  registry     {}\n  \
         settings     {}\n  logs         {}",
        took.as_secs_f64(),
        installation.cells.len(),
        settings.api.url,
        settings.temporal.address,
        temporal_ui(installation),
        settings.registry.address,
        installation.data.join("kiln.toml").display(),
        installation.data.join("logs").display(),
    ));
}

fn temporal_ui(installation: &Installation) -> String {
    format!("http://127.0.0.1:{}", installation.ports.temporal_ui)
}
