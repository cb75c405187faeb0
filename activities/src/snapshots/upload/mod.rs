//! The client's side: packs a tree and uploads what is new of it.
//!
//! Listing, reading, hashing, compressing and uploading overlap. A full pack is uploaded before the snapshot's id is known; only the last
//! one waits for it, so that a snapshot that is stored already is noticed and a small change costs one round trip.

mod api;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use workflows::contract::SnapshotId;

pub use api::{ApiError, HttpApi, SnapshotApi};
use transfer::Transfer;

use super::Caps;
use super::entry::Node;
use super::manifest::Manifest;
use super::pack::{PackError, ReadyPack, Sink, Stopped, pack};
use super::walk::{LeftOut, Tree, TreeError, Walked, walk};
use crate::objects::{ObjectError, Patience};

/// How far an upload is. Counts only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files read and hashed, and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// Packs uploaded, and their bytes.
    pub packs: u64,
    pub uploaded: u64,
}

/// What a snapshot holds and what was left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub bytes: u64,
    /// By reason, for example `.gitignore`: how many files and directories, and the bytes of the files among them. What is in a
    /// directory that was left out as a whole is not counted.
    pub left_out: Vec<LeftOut>,
    /// For the user: sockets, devices and named pipes that were skipped, ignore files that could not be read, …
    pub warnings: Vec<String>,
}

/// A snapshot that is stored.
#[derive(Debug, Clone)]
pub struct Uploaded {
    pub id: SnapshotId,
    /// It was stored before: nothing was committed.
    pub existed: bool,
    /// What to name in `BuildInput::dockerfile`: a path in the context, or `.kiln/<name>` for one outside of it.
    pub dockerfile: String,
    pub summary: Summary,
    /// Packs that travelled, their bytes, and those of the manifest.
    pub packs: u64,
    pub pack_bytes: u64,
    pub manifest_bytes: u64,
    pub timings: UploadTimings,
}

/// Where the time went; each part begins where the one before ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadTimings {
    /// Listing the tree, and meanwhile fetching the base.
    pub list: Duration,
    /// Reading, hashing, compressing, and uploading all but the last pack.
    pub pack: Duration,
    /// Waiting for the last uploads.
    pub upload: Duration,
    /// Encoding and committing the manifest.
    pub commit: Duration,
}

/// Why a snapshot could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Something about the tree or the command: a missing path or Dockerfile, a file that keeps changing, a cap. For the user.
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("cannot store the snapshot")]
    Api(#[from] ApiError),
    #[error("pack {pack} could not be uploaded")]
    Upload {
        pack: String,
        #[source]
        error: ObjectError,
    },
}

/// Takes snapshots of one project.
pub struct Uploader<A> {
    api: Arc<A>,
    client: reqwest::Client,
    patience: Patience,
    threads: usize,
}

impl<A: SnapshotApi> Uploader<A> {
    /// `client` makes the presigned uploads: one of [`crate::objects::http_client`].
    pub fn new(api: A, client: reqwest::Client) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self { api: Arc::new(api), client, patience: Patience::default(), threads }
    }

    /// Other limits than the default ones for uploads.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Takes a snapshot of `tree`. `progress` is called often, from any thread.
    pub async fn upload(
        &self,
        tree: &Tree,
        progress: impl Fn(&Progress) + Send + Sync + 'static,
    ) -> Result<Uploaded, UploadError> {
        let mut clock = Clock::start();
        let listed = blocking({
            let (tree, threads) = (tree.clone(), self.threads);
            move || walk(&tree, threads)
        });
        let (walked, base) = tokio::join!(listed, self.base(&tree.caps));
        let (walked, (base_id, base)) = (Arc::new(walked?), base?);
        let mut timings = UploadTimings { list: clock.lap(), ..UploadTimings::default() };

        let counters = Arc::new(Counters::new(progress));
        let transfer =
            Transfer::new(Arc::clone(&self.api), self.client.clone(), self.patience.clone(), Arc::clone(&counters));
        let (transfer, manifest, last) = self.pack(tree, &walked, base, transfer, &counters).await?;
        timings.pack = clock.lap();

        let summary = summarise(&walked, &manifest);
        let (id, encoded) = blocking(move || manifest.encode()).await.map_err(TreeError::Compression)?;
        let mut uploaded = Uploaded {
            existed: true,
            dockerfile: walked.dockerfile.clone(),
            summary,
            packs: 0,
            pack_bytes: 0,
            manifest_bytes: 0,
            timings,
            id,
        };
        if base_id.as_ref() == Some(&uploaded.id) {
            return Ok(uploaded);
        }
        let session = transfer.finish(&uploaded.id, last).await?;
        uploaded.timings.upload = clock.lap();
        if let Some(session) = session {
            uploaded.manifest_bytes = encoded.len() as u64;
            uploaded.existed = self.api.commit(&uploaded.id, &session, encoded.into()).await?.existed;
            uploaded.timings.commit = clock.lap();
        }
        let progress = counters.progress();
        (uploaded.packs, uploaded.pack_bytes) = (progress.packs, progress.uploaded);
        Ok(uploaded)
    }

    /// The project's newest snapshot. One that cannot be read is no base: then everything travels.
    async fn base(&self, caps: &Caps) -> Result<(Option<SnapshotId>, Arc<Manifest>), UploadError> {
        let Some((id, stored)) = self.api.latest().await? else { return Ok((None, Arc::default())) };
        let caps = caps.clone();
        blocking(move || match Manifest::decode_as(&id, &stored, &caps) {
            Ok(manifest) => Ok((Some(id), Arc::new(manifest))),
            Err(error) => {
                tracing::warn!(snapshot = %id, %error, "the project's newest snapshot cannot be read; uploading in full");
                Ok((None, Arc::default()))
            }
        })
        .await
    }

    /// Packs the tree while packs are uploaded; returns the manifest and the last packs, which wait for its id.
    async fn pack(
        &self,
        tree: &Tree,
        walked: &Arc<Walked>,
        base: Arc<Manifest>,
        mut transfer: Transfer<A>,
        counters: &Arc<Counters>,
    ) -> Result<(Transfer<A>, Manifest, Vec<ReadyPack>), UploadError> {
        let (sender, mut packs) = mpsc::channel(1);
        let sink = Channel { packs: sender, counters: Arc::clone(counters) };
        let (walked, caps, threads) = (Arc::clone(walked), tree.caps.clone(), self.threads);
        let packing = tokio::task::spawn_blocking(move || pack(&walked, &base, &caps, threads, &sink));
        let mut last: Option<ReadyPack> = None;
        while let Some(pack) = packs.recv().await {
            if let Some(full) = last.replace(pack) {
                transfer.add(full).await?;
            }
        }
        match join(packing.await) {
            Ok(manifest) => Ok((transfer, manifest, last.into_iter().collect())),
            Err(PackError::Tree(error)) => Err(error.into()),
            // The channel is open until packing has ended.
            Err(PackError::Stopped) => Err(ApiError::Unreadable { what: "packing was stopped".into() }.into()),
        }
    }
}

/// Runs on a thread that may block and compute.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    join(tokio::task::spawn_blocking(work).await)
}

/// A panic goes on where it is noticed.
fn join<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Hands packs from the packing threads to the uploads. With the receiver gone, packing ends.
struct Channel {
    packs: mpsc::Sender<ReadyPack>,
    counters: Arc<Counters>,
}

impl Sink for Channel {
    fn pack(&self, pack: ReadyPack) -> Result<(), Stopped> {
        self.packs.blocking_send(pack).map_err(|_| Stopped)
    }

    fn read(&self, files: u64, bytes: u64) -> Result<(), Stopped> {
        self.counters.read(files, bytes);
        if self.packs.is_closed() { Err(Stopped) } else { Ok(()) }
    }
}

/// Counts, and tells the caller of each change.
struct Counters {
    files: AtomicU64,
    bytes: AtomicU64,
    packs: AtomicU64,
    uploaded: AtomicU64,
    tell: Box<dyn Fn(&Progress) + Send + Sync>,
}

impl Counters {
    fn new(tell: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        let zero = AtomicU64::default;
        Self { files: zero(), bytes: zero(), packs: zero(), uploaded: zero(), tell: Box::new(tell) }
    }

    fn read(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (self.tell)(&self.progress());
    }

    fn uploaded(&self, bytes: u64) {
        self.packs.fetch_add(1, Ordering::Relaxed);
        self.uploaded.fetch_add(bytes, Ordering::Relaxed);
        (self.tell)(&self.progress());
    }

    fn progress(&self) -> Progress {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Progress {
            files: get(&self.files),
            bytes: get(&self.bytes),
            packs: get(&self.packs),
            uploaded: get(&self.uploaded),
        }
    }
}

struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the last lap.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

fn summarise(walked: &Walked, manifest: &Manifest) -> Summary {
    let mut summary =
        Summary { left_out: walked.left_out.clone(), warnings: walked.warnings.clone(), ..Summary::default() };
    for entry in &manifest.entries {
        match entry.node {
            Node::Directory => summary.directories += 1,
            Node::Symlink(_) => summary.symlinks += 1,
            Node::File(_) => summary.files += 1,
        }
        summary.bytes += entry.size();
    }
    summary
}
