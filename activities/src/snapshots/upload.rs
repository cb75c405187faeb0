//! The client's side: packs a tree and uploads what is new of it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use workflows::contract::{ProjectName, SnapshotId};

use super::Caps;
use super::service::{Begun, Committed, PackRef};

/// What to take a snapshot of.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The build's context.
    pub root: PathBuf,
    /// The Dockerfile, relative to the working directory or absolute, in the context or not; `None` is `Dockerfile` in `root`.
    pub dockerfile: Option<PathBuf>,
    /// Send `.git` as well.
    pub include_git: bool,
    pub caps: Caps,
}

/// What the uploader needs of the api.
pub trait SnapshotApi: Send + Sync + 'static {
    /// The project's newest snapshot: the base against which only what is new travels.
    fn latest(&self) -> impl Future<Output = Result<Option<(SnapshotId, Bytes)>, ApiError>> + Send;
    fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> impl Future<Output = Result<Begun, ApiError>> + Send;
    fn commit(
        &self,
        id: &SnapshotId,
        session: &str,
        manifest: Bytes,
    ) -> impl Future<Output = Result<Committed, ApiError>> + Send;
}

/// Why the api did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the api cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The api's own words.
    #[error("{message}")]
    Answered {
        status: u16,
        /// `refused`, `user_error`, …
        class: String,
        message: String,
    },
    #[error("the api's answer cannot be read: {what}")]
    Unreadable { what: &'static str },
}

/// The api over HTTP.
#[derive(Clone)]
pub struct HttpApi {
    client: reqwest::Client,
    base: url::Url,
    token: String,
    project: ProjectName,
}

impl HttpApi {
    /// `base` is the api's URL; `token` the bearer token.
    pub fn new(client: reqwest::Client, base: url::Url, token: String, project: ProjectName) -> Self {
        Self { client, base, token, project }
    }
}

impl SnapshotApi for HttpApi {
    async fn latest(&self) -> Result<Option<(SnapshotId, Bytes)>, ApiError> {
        let _ = (&self.client, &self.base, &self.token, &self.project);
        todo!()
    }

    async fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, ApiError> {
        let _ = (id, session, packs);
        todo!()
    }

    async fn commit(&self, id: &SnapshotId, session: &str, manifest: Bytes) -> Result<Committed, ApiError> {
        let _ = (id, session, manifest);
        todo!()
    }
}

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub reason: String,
    pub entries: u64,
    pub bytes: u64,
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
}

/// Why a snapshot could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Something about the tree or the command: a missing path or Dockerfile, a file that keeps changing, a cap. For the user.
    #[error("{0}")]
    Tree(String),
    #[error("the api refused or failed")]
    Api(#[from] ApiError),
    #[error("pack {sha256} could not be uploaded: {problem}")]
    Upload { sha256: String, problem: String },
}

/// Takes snapshots of one project.
pub struct Uploader<A> {
    api: Arc<A>,
    client: reqwest::Client,
}

impl<A: SnapshotApi> Uploader<A> {
    /// `client` makes the presigned uploads.
    pub fn new(api: A, client: reqwest::Client) -> Self {
        Self { api: Arc::new(api), client }
    }

    /// Takes a snapshot of `tree`. `progress` is called often, from any thread.
    pub async fn upload(
        &self,
        tree: &Tree,
        progress: impl Fn(&Progress) + Send + Sync + 'static,
    ) -> Result<Uploaded, UploadError> {
        let _ = (tree, progress, &self.api, &self.client);
        todo!()
    }
}
