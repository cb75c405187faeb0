//! A cell's directory, the guest in it, and builds in the guest.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use buildkit::{Client, Directory, Frontend, Solve, SolveError, Solved, StatusUpdate};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vm::{
    Accel, BuildkitdConfig, Guest, GuestConfig, GuestNetwork, Hello, HostNetwork, Image, Machine, Patience, Phase,
    Slices, StepLimits, VmError, Vmm, disk,
};

/// A boot takes 7 s where nothing else runs; deadlines are for machines with other work.
pub const PATIENCE: Patience =
    Patience { hello: Duration::from_secs(60), ready: Duration::from_secs(120), attempts: 3 };
/// How long a guest may take to stop.
pub const STOP: Duration = Duration::from_secs(60);
/// For requests over the control channel.
pub const ANSWER: Duration = Duration::from_secs(30);
/// The longest any build of these tests may take.
const BUILD: Duration = Duration::from_secs(240);
const DISK: u64 = 1 << 30;

/// Busybox with its commands, from the context, since there is no registry.
const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
                    RUN /bin/busybox --install -s /bin\n";

/// The directory of the image made from this checkout.
pub fn image_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| build_image(None))
}

/// Builds an image with the `kiln` that `make test-vm` has built (or KILN_BIN); `cache` is where instead of the usual place.
pub fn build_image(cache: Option<&Path>) -> PathBuf {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/guest/build"));
    command.args(std::env::var_os("KILN_BIN"));
    command.envs(cache.map(|cache| ("KILN_GUEST", cache)));
    let output = command.output().expect("deploy/guest/build runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// What a cell is made of, and its directory, which ends with it.
pub struct Cell {
    pub machine: Machine,
    pub config: GuestConfig,
    dir: tempfile::TempDir,
}

impl Cell {
    /// With an empty cache disk. Not in memory: O_DIRECT, as the cache disk is opened, does not work there.
    pub async fn new() -> Self {
        Self::within(Path::new("/var/tmp")).await
    }

    pub async fn within(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let cache_disk = dir.path().join("cache.img");
        disk::create(&cache_disk, DISK).await.unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let machine = Machine {
            dir: dir.path().join("vm"),
            image: Image::open(image_dir(), None).await.unwrap(),
            cache_disk,
            swap_disk: None,
            vcpus: 2,
            memory_mib: 1024,
            huge_pages: false,
            pinned_to: vec![],
            network: HostNetwork::User { forwards: vec![(([127, 0, 0, 1], port).into(), 1234)], restricted: false },
            vmm: Vmm::Qemu(accel()),
            supervisor: None,
        };
        Self { machine, config: config(), dir }
    }

    pub async fn boot(&self) -> (Vm, Hello) {
        self.try_boot().await.unwrap_or_else(|error| panic!("{error}; console:\n{}", self.console()))
    }

    pub async fn try_boot(&self) -> Result<(Vm, Hello), VmError> {
        let (guest, hello) = Guest::boot(&self.machine, &self.config, PATIENCE).await?;
        let vm = Vm::new(guest, self);
        if hello.phase == Phase::Running {
            // buildkitd listens on its socket a moment before it does on the port that leads here.
            let info = async || Client::connect_unix(vm.builds.socket.clone()).await.ok()?.info().await.ok();
            eventually("buildkitd answers on its port", ANSWER, info).await;
        }
        Ok((vm, hello))
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.machine.dir.join("console.log")).unwrap_or_default()).into_owned()
    }

    fn port(&self) -> u16 {
        match &self.machine.network {
            HostNetwork::User { forwards, .. } => forwards[0].0.port(),
            HostNetwork::Tap { .. } => unreachable!("tests use QEMU's own network"),
        }
    }
}

impl Drop for Cell {
    /// Whatever the test did, no guest outlives it.
    fn drop(&mut self) {
        if let Some(guest) = Guest::adopt(&self.machine.dir) {
            // SAFETY: numbers only; the process was found to be this guest's just now.
            unsafe { libc::kill(guest.process().pid, libc::SIGKILL) };
        }
    }
}

/// KVM only when it is asked for: where tests run it is often there and of no use.
fn accel() -> Accel {
    if std::env::var_os("KILN_TEST_KVM").is_some() { Accel::Kvm } else { Accel::Tcg }
}

fn config() -> GuestConfig {
    GuestConfig {
        id: "cell-1".into(),
        network: GuestNetwork {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: vec![Ipv4Addr::new(10, 0, 2, 3)],
            forwarder: false,
            mtu: None,
            steps: Some((Ipv4Addr::new(10, 0, 2, 128), 25)),
        },
        cache_is_copy: false,
        swap: false,
        slices: Slices::default(),
        step: StepLimits::default(),
        buildkitd: BuildkitdConfig {
            listen: Some("tcp://0.0.0.0:1234".into()),
            parallel_steps: Some(8),
            ..BuildkitdConfig::default()
        },
        builder: None,
    }
}

/// A running guest and a connection to its buildkitd.
pub struct Vm {
    pub guest: Guest,
    pub builds: Builds,
    _relay: Relay,
}

impl Vm {
    fn new(guest: Guest, cell: &Cell) -> Self {
        let socket = cell.dir.path().join("buildkit.sock");
        let relay = Relay::start(&socket, cell.port());
        Self { guest, builds: Builds { socket }, _relay: relay }
    }
}

/// The guest's buildkitd.
#[derive(Clone)]
pub struct Builds {
    socket: PathBuf,
}

impl Builds {
    pub async fn client(&self) -> Client {
        Client::connect_unix(self.socket.clone()).await.unwrap()
    }

    /// Runs a build to its end.
    pub async fn build(&self, context: &Context) -> Built {
        self.solve(context, Solve::new(reference(), Frontend::BuiltIn)).await
    }

    pub async fn solve(&self, context: &Context, solve: Solve) -> Built {
        self.watched(context, solve, |_| {}).await
    }

    /// Begins a build; returns when one of its steps has printed `words`.
    pub async fn begin(&self, context: Context, words: &'static str) -> JoinHandle<Built> {
        let printed = Arc::new(Notify::new());
        let (builds, told) = (self.clone(), printed.clone());
        let mut building = tokio::spawn(async move {
            let see = |update: &StatusUpdate| {
                if update.logs.iter().any(|log| String::from_utf8_lossy(&log.data).contains(words)) {
                    told.notify_one();
                }
            };
            builds.watched(&context, Solve::new(reference(), Frontend::BuiltIn), see).await
        });
        tokio::select! {
            () = printed.notified() => building,
            ended = &mut building => panic!("it ended before it said {words:?}: {:?}", ended.map(|built| built.output())),
        }
    }

    async fn watched(&self, context: &Context, solve: Solve, mut see: impl FnMut(&StatusUpdate)) -> Built {
        let reference = solve.reference().to_owned();
        let (updates, mut events) = mpsc::channel::<StatusUpdate>(64);
        let collect = async {
            let mut all = Vec::new();
            while let Some(update) = events.recv().await {
                see(&update);
                all.push(update);
            }
            all
        };
        let (result, updates) = tokio::join!(self.run(context, solve, updates), collect);
        Built { reference, result, updates }
    }

    async fn run(
        &self,
        context: &Context,
        solve: Solve,
        updates: mpsc::Sender<StatusUpdate>,
    ) -> Result<Solved, SolveError> {
        let source = Arc::new(Directory::new(context.0.path()).unwrap());
        let session = self.client().await.session().shared_key("tests").dir("context", source.clone());
        let session = session.dir("dockerfile", source).open().await.unwrap();
        let cancel = CancellationToken::new();
        let solving = session.solve(solve, updates, &cancel);
        tokio::time::timeout(BUILD, solving).await.expect("the build ends in time")
    }
}

pub fn reference() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// What became of a build.
pub struct Built {
    /// By which the daemon knows it.
    pub reference: String,
    pub result: Result<Solved, SolveError>,
    pub updates: Vec<StatusUpdate>,
}

impl Built {
    /// Names of the Dockerfile's steps that were run, not answered from the cache.
    pub fn ran(&self) -> Vec<&str> {
        let vertexes = self.updates.iter().flat_map(|update| &update.vertexes);
        let ran = vertexes.filter(|vertex| vertex.completed_ms.is_some() && !vertex.cached);
        let mut names: Vec<_> = ran.map(|vertex| vertex.name.as_str()).filter(|name| is_step(name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub fn output(&self) -> String {
        let logs = self.updates.iter().flat_map(|update| &update.logs).flat_map(|log| log.data.clone());
        String::from_utf8_lossy(&logs.collect::<Vec<_>>()).into_owned()
    }
}

/// `[stage 2/4] RUN …`, not `[internal] …`.
fn is_step(name: &str) -> bool {
    name.starts_with('[') && !name.starts_with("[internal]")
}

/// A directory to build, with busybox and a Dockerfile.
pub struct Context(tempfile::TempDir);

impl Context {
    pub fn new(dockerfile: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy("/bin/busybox", dir.path().join("busybox")).expect("Debian's busybox-static is installed");
        fs::write(dir.path().join("Dockerfile"), format!("{BASE}{dockerfile}")).unwrap();
        Self(dir)
    }
}

/// A unix socket that leads to the guest's port: the client speaks to unix sockets only.
struct Relay(JoinHandle<()>);

impl Relay {
    fn start(socket: &Path, port: u16) -> Self {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        Self(tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                    // Small requests that wait for an acknowledgement take 40 ms more than the guest does.
                    far.set_nodelay(true)?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, patience: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let answered = tokio::time::timeout(patience, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    answered.await.unwrap_or_else(|_| panic!("{what}: not within {patience:?}"))
}

/// A figure for whoever reads the test's output (`make test-vm` shows it).
pub fn say(line: &str) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("figure: {line} (load {})", load.split(' ').next().unwrap_or_default());
}

/// `kernel 1520 ms, kiln-init 900 ms, buildkitd 2400 ms` and the single marks.
pub fn breakdown(hello: &Hello) -> String {
    let at = |what: &str| hello.timeline.iter().find(|(name, _)| name == what).map_or(0, |(_, ms)| *ms);
    let (init, started, ready) = (at("init"), at("buildkitd_started"), at("buildkitd_answers"));
    let marks: Vec<_> = hello.timeline.iter().map(|(what, ms)| format!("{what} {ms}")).collect();
    format!(
        "kernel {init} ms, kiln-init {} ms, buildkitd {} ms [{}]",
        started - init,
        ready - started,
        marks.join(", ")
    )
}
