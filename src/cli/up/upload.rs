//! The snapshot of a directory, from the command line's side: what is shown of it, and how its errors end the command.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use activities::snapshots::{ApiError, HttpApi, Progress, Summary, Tree, TreeError, UploadError, Uploaded, Uploader};
use workflows::contract::{FailureClass, SnapshotId};

use super::args::UpArgs;
use super::check::Plan;
use crate::cli::client::Client;
use crate::cli::failure::chain;
use crate::cli::progress::{Display, bytes, duration};
use crate::cli::{Failure, client::ClientError};
use crate::settings::Settings;

/// How often the counts are shown.
const REFRESH: Duration = Duration::from_millis(100);

/// What the build needs to know of it.
pub struct Snapshot {
    pub id: SnapshotId,
    /// The Dockerfile's path in the snapshot.
    pub dockerfile: String,
}

/// Packs and uploads, and says what was left out.
pub async fn upload(
    args: &UpArgs,
    plan: &Plan,
    settings: &Settings,
    client: &Client,
    display: &mut Display,
) -> Result<Snapshot, Failure> {
    let begun = Instant::now();
    let uploaded = pack(args, plan, settings, client, display).await.map_err(|error| failure(error, client))?;
    let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    display.note(&format!("{}, {}", told(&uploaded), duration(took)));
    if let Some(line) = left_out(&uploaded.summary) {
        display.note(&line);
    }
    uploaded.summary.warnings.iter().for_each(|warning| display.note(&format!("WARN: {warning}")));
    Ok(Snapshot { id: uploaded.id, dockerfile: uploaded.dockerfile })
}

async fn pack(
    args: &UpArgs,
    plan: &Plan,
    settings: &Settings,
    client: &Client,
    display: &mut Display,
) -> Result<Uploaded, UploadError> {
    let token = client.token().to_owned();
    let api = HttpApi::new(client.http().clone(), client.base().clone(), token, plan.project.clone());
    let uploader = Uploader::new(api, client.uploads().clone());
    let tree = Tree {
        root: plan.root.clone(),
        dockerfile: Some(plan.dockerfile.clone()),
        include_git: args.include_git,
        caps: settings.caps(),
    };
    let counts = Arc::new(Mutex::new(Progress::default()));
    let latest = counts.clone();
    let upload = uploader.upload(&tree, move |progress| {
        *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress.clone();
    });
    tokio::pin!(upload);
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            uploaded = &mut upload => return uploaded,
            _ = refresh.tick() => display.status(&counted(&counts.lock().unwrap_or_else(PoisonError::into_inner))),
        }
    }
}

fn counted(progress: &Progress) -> String {
    let Progress { files, bytes: read, packs, uploaded } = progress;
    format!("[+] Packing: {files} files, {}; uploaded {packs} packs, {}", bytes(*read), bytes(*uploaded))
}

/// `snapshot 3f2a91c0b1d2: 1234 files, 30.10MB; uploaded 3 packs, 1.20MB`
fn told(uploaded: &Uploaded) -> String {
    let Summary { files, bytes: size, .. } = &uploaded.summary;
    let id = &uploaded.id.as_str()[..12];
    let moved = match (uploaded.existed, uploaded.packs) {
        (true, _) => "stored before".to_owned(),
        (false, 0) => "nothing new to upload".to_owned(),
        (false, packs) => {
            format!("uploaded {packs} pack{}, {}", if packs == 1 { "" } else { "s" }, bytes(uploaded.pack_bytes))
        }
    };
    format!("snapshot {id}: {files} files, {}; {moved}", bytes(*size))
}

/// `left out: 12 by .gitignore (1.20MB), 1 by default`; `None` when nothing was.
fn left_out(summary: &Summary) -> Option<String> {
    let told: Vec<String> = summary
        .left_out
        .iter()
        .map(|left| match left.bytes {
            0 => format!("{} by {}", left.entries, left.reason),
            size => format!("{} by {} ({})", left.entries, left.reason, bytes(size)),
        })
        .collect();
    (!told.is_empty()).then(|| format!("left out: {}", told.join(", ")))
}

fn failure(error: UploadError, client: &Client) -> Failure {
    match error {
        UploadError::Tree(error @ TreeError::Refused(_)) => Failure::new(FailureClass::Refused, error.to_string()),
        UploadError::Tree(error) => Failure::usage(error.to_string()),
        UploadError::Api(ApiError::Unreachable(source)) => ClientError::unreachable(client.base(), &*source).into(),
        UploadError::Api(ApiError::Answered { status: 401, .. }) => {
            ClientError::Token { url: client.base().clone(), none_sent: client.token().is_empty() }.into()
        }
        UploadError::Api(ApiError::Answered { class, message, .. }) => {
            Failure::new(FailureClass::from_name(&class).unwrap_or(FailureClass::Transient), message)
        }
        UploadError::Api(ApiError::Unreadable { what }) => {
            ClientError::Unreadable { url: client.base().clone(), what }.into()
        }
        error @ UploadError::Upload { .. } => Failure::new(FailureClass::Transient, chain(&error)),
    }
}
