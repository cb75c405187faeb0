//! What the tests run against: a daemon of their own, a registry with a gate in front of it, contexts on disk.
//!
//! Everything ends with its value, also when a test panics.

mod daemon;
mod gate;
mod process;
mod registry;

pub use daemon::Daemon;
pub use gate::{Gate, Guard};
pub use registry::Registry;

use buildkit::{
    Directory, Export, Frontend, Image, Session, Solve, SolveError, Solved, StatusUpdate, TokenAnswer, TokenRequest,
    TokenTransport, TransportError,
};
use futures::future::BoxFuture;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// No build of a test takes as long.
const LONGEST: Duration = Duration::from_secs(240);

/// What a Dockerfile has to start with to run commands: a shell, and no registry needed.
pub const BASE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n";

/// A directory with a Dockerfile (after [`BASE`]) and busybox in it.
pub struct Context(tempfile::TempDir);

impl Context {
    pub fn new(dockerfile: &str) -> Self {
        let context = Self::bare(&format!("{BASE}{dockerfile}"));
        fs::copy("/bin/busybox", context.path().join("busybox")).expect("Debian's busybox-static is installed");
        context
    }

    /// Nothing but a Dockerfile.
    pub fn bare(dockerfile: &str) -> Self {
        let context = Self(temp_dir());
        context.write("Dockerfile", dockerfile);
        context
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn source(&self) -> Arc<Directory> {
        Arc::new(Directory::new(self.path()).unwrap())
    }
}

/// In memory where there is a tmpfs: the daemon's snapshots are much faster there.
pub fn temp_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let directory = made.unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A build by a new name that keeps its result in the cache.
pub fn solve() -> Solve {
    Solve::new(uuid::Uuid::new_v4().simple().to_string(), Frontend::BuiltIn)
}

/// A build that is pushed.
pub fn push(image: &str) -> Solve {
    solve().export(Export::Image(Image::named(image).push()))
}

/// Runs a build to its end and collects its progress.
pub async fn run(session: &Session, request: Solve) -> (Result<Solved, SolveError>, Vec<StatusUpdate>) {
    let (updates, mut events) = tokio::sync::mpsc::channel(16);
    let collect = async {
        let mut all = Vec::new();
        while let Some(update) = events.recv().await {
            all.push(update);
        }
        all
    };
    let cancel = CancellationToken::new();
    let solved = async { tokio::join!(session.solve(request, updates, &cancel), collect) };
    tokio::time::timeout(LONGEST, solved).await.expect("the build ends")
}

/// The next update of a build that is to have one.
pub async fn next(events: &mut tokio::sync::mpsc::Receiver<StatusUpdate>) -> StatusUpdate {
    tokio::time::timeout(LONGEST, events.recv()).await.ok().flatten().expect("the build says more")
}

/// Everything that steps printed.
pub fn output(updates: &[StatusUpdate]) -> String {
    let logs = updates.iter().flat_map(|update| &update.logs).flat_map(|log| log.data.clone()).collect::<Vec<_>>();
    String::from_utf8_lossy(&logs).into_owned()
}

/// The path of a tool, built from source when it is not there yet.
pub fn tool(name: &str) -> PathBuf {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/tools/build");
    let built = std::process::Command::new(build).arg(name).output().expect("deploy/tools/build runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// Fetches tokens from the tests' own servers, wherever they are.
pub struct Tokens(reqwest::Client);

impl Tokens {
    pub fn new() -> Self {
        install_crypto();
        Self(reqwest::Client::new())
    }
}

impl TokenTransport for Tokens {
    fn send(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenAnswer, TransportError>> {
        Box::pin(async move {
            let failed = |error: reqwest::Error| TransportError::Failed(error.into());
            let mut sent = match request.form {
                Some(form) => self.0.post(request.url).body(form),
                None => self.0.get(request.url),
            };
            if let Some((username, password)) = request.basic {
                sent = sent.basic_auth(username, Some(password));
            }
            let answer = sent.send().await.map_err(failed)?;
            Ok(TokenAnswer { status: answer.status().as_u16(), body: answer.bytes().await.map_err(failed)? })
        })
    }
}

/// The TLS provider that the token client needs, once for the process.
pub fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
}
