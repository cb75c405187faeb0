//! Times snapshots of a directory: `snapshot TREE [ROUNDS]`.
//!
//! Each round takes a first snapshot of the tree, one of the unchanged tree, and one after 1 % of its files were edited (and restored),
//! against an S3 server in this process that keeps its objects under `$TMPDIR`. A cell then reads all files, first with an empty cache
//! disk, then those of the edited tree with a warm one. Beside each round `tar c TREE | zstd -3 -T0` runs. One
//! JSON object a measurement goes to standard output. Put the tree and `$TMPDIR` on tmpfs to leave the disk out of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use activities::objects::{ObjectSettings, ObjectStore, Patience, http_client};
use activities::snapshots::{
    ApiError, Begun, Caps, Committed, PackRef, SnapshotApi, SnapshotCache, SnapshotError, SnapshotService,
    SnapshotSource, Tree, Uploaded, Uploader,
};
use buildkit::{EntryKind, Source as _};
use bytes::Bytes;
use serde_json::json;
use workflows::contract::{ProjectId, SnapshotId};

#[path = "../tests/support/s3.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "made for tests, which use more of it")]
mod s3;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let root = PathBuf::from(arguments.next().ok_or("which tree?")?);
    let rounds = arguments.next().and_then(|text| text.to_str()?.parse().ok()).unwrap_or(5);
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "no TLS")?;
    let dockerfile = tempfile::NamedTempFile::new()?;
    for round in 0..rounds {
        tar(&root)?;
        let store = s3::TestStore::start().await;
        let bench = Bench::new(&root, dockerfile.path(), &store)?;
        let id = bench.measure("first", round).await?;
        bench.read("cell, cold", &id).await?;
        bench.measure("unchanged", round).await?;
        let edited = Edited::new(&root, 100)?;
        let id = bench.measure("one percent", round).await?;
        drop(edited);
        bench.read("cell, one percent", &id).await?;
    }
    Ok(())
}

/// What a user would do instead.
fn tar(root: &Path) -> Result<(), Failure> {
    let started = Instant::now();
    let mut tar = Command::new("tar").arg("c").arg("-C").arg(root).arg(".").stdout(Stdio::piped()).spawn()?;
    let packed = tar.stdout.take().ok_or("no pipe")?;
    let zstd = Command::new("zstd").args(["-3", "-T0", "-q", "-c"]).stdin(packed).stdout(Stdio::piped()).spawn()?;
    let mut output = zstd.stdout.ok_or("no pipe")?;
    let bytes = std::io::copy(&mut output, &mut std::io::sink())?;
    tar.wait()?;
    println!("{}", json!({ "what": "tar", "ms": milliseconds(started.elapsed()), "bytes": bytes }));
    Ok(())
}

struct Bench {
    uploader: Uploader<DirectApi>,
    tree: Tree,
    objects: ObjectStore,
    project: ProjectId,
    cache: Arc<SnapshotCache>,
    _cache_directory: tempfile::TempDir,
}

impl Bench {
    fn new(root: &Path, dockerfile: &Path, store: &s3::TestStore) -> Result<Self, Failure> {
        let objects = ObjectStore::new(ObjectSettings {
            endpoint: format!("http://{}", store.address()),
            region: "auto".into(),
            bucket: s3::BUCKET.into(),
            access_key: s3::ACCESS_KEY.into(),
            secret_key: s3::SECRET_KEY.into(),
            patience: Patience::default(),
        })?;
        let project: ProjectId = "00000000000000aa".parse()?;
        let service = SnapshotService::new(objects.clone(), Caps::default(), Duration::from_secs(3600));
        let api = DirectApi { service, project: project.clone() };
        let directory = tempfile::tempdir()?;
        let cache = SnapshotCache::open(directory.path(), 4 << 30)?;
        let dockerfile = Some(dockerfile.to_owned());
        let tree = Tree { root: root.to_owned(), dockerfile, include_git: false, caps: Caps::default() };
        let uploader = Uploader::new(api, http_client()?);
        Ok(Self { uploader, tree, objects, project, cache, _cache_directory: directory })
    }

    async fn measure(&self, what: &str, round: u32) -> Result<SnapshotId, Failure> {
        let (started, used) = (Instant::now(), cpu());
        let Uploaded { id, summary, packs, pack_bytes, manifest_bytes, timings, .. } =
            self.uploader.upload(&self.tree, |_| {}).await?;
        let (ms, cpu) = (milliseconds(started.elapsed()), milliseconds(cpu().saturating_sub(used)));
        let parts = [timings.list, timings.pack, timings.upload, timings.commit].map(milliseconds);
        let line = json!({
            "what": what, "round": round, "ms": ms, "cpu_ms": cpu, "list_pack_upload_commit_ms": parts,
            "files": summary.files, "bytes": summary.bytes, "packs": packs, "pack_bytes": pack_bytes, "manifest_bytes": manifest_bytes,
        });
        println!("{line}");
        Ok(id)
    }

    /// Reads every file of a snapshot as buildkitd would.
    async fn read(&self, what: &str, id: &SnapshotId) -> Result<(), Failure> {
        let (started, used) = (Instant::now(), cpu());
        let source = SnapshotSource::open(&self.objects, &self.cache, &self.project, id, &Caps::default()).await?;
        let view = source.context();
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<u64> {
            let entries = view.entries()?;
            let files: Vec<&[u8]> = entries
                .iter()
                .filter(|entry| entry.kind == EntryKind::File)
                .map(|entry| entry.path.as_slice())
                .collect();
            view.want(&files);
            files.iter().map(|path| std::io::copy(&mut view.open(path)?, &mut std::io::sink())).sum()
        });
        let bytes = read.await??;
        let (ms, cpu, fetched) =
            (milliseconds(started.elapsed()), milliseconds(cpu().saturating_sub(used)), source.fetched());
        let line = json!({
            "what": what, "ms": ms, "cpu_ms": cpu, "bytes": bytes, "fetched_pack_bytes": fetched.pack_bytes,
            "fetched_manifest_bytes": fetched.manifest_bytes, "requests": fetched.requests, "frames": fetched.frames,
        });
        println!("{line}");
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// CPU time of this process, the store's included, in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// Every `n`th file with a byte more, until dropped.
struct Edited(Vec<(PathBuf, u64)>);

impl Edited {
    fn new(root: &Path, n: usize) -> Result<Self, Failure> {
        let mut files = Vec::new();
        list(root, &mut files)?;
        files.sort();
        let mut edited = Self(Vec::new());
        for path in files.into_iter().step_by(n) {
            let mut file = std::fs::OpenOptions::new().append(true).open(&path)?;
            edited.0.push((path, file.metadata()?.len()));
            std::io::Write::write_all(&mut file, b"\n")?;
        }
        Ok(edited)
    }
}

impl Drop for Edited {
    fn drop(&mut self) {
        for (path, length) in &self.0 {
            let restored = std::fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(*length));
            restored.unwrap_or_else(|error| eprintln!("{} keeps a byte more: {error}", path.display()));
        }
    }
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => list(&entry.path(), files)?,
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}

/// The api without HTTP.
struct DirectApi {
    service: SnapshotService,
    project: ProjectId,
}

impl SnapshotApi for DirectApi {
    async fn latest(&self) -> Result<Option<(SnapshotId, Bytes)>, ApiError> {
        self.service.latest(&self.project).await.map_err(answered)
    }

    async fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, ApiError> {
        self.service.begin(&self.project, id, session, packs).await.map_err(answered)
    }

    async fn commit(&self, id: &SnapshotId, session: &str, manifest: Bytes) -> Result<Committed, ApiError> {
        self.service.commit(&self.project, id, session, manifest, None).await.map_err(answered)
    }
}

fn answered(error: SnapshotError) -> ApiError {
    ApiError::Answered { status: 400, class: "refused".into(), message: error.to_string() }
}
