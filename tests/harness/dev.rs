//! A whole installation under test: `kiln dev` in a directory of its own, and what must not be left when it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use buildkit::{Client, Directory, Export, Frontend, Image, Solve, SolveError, StatusUpdate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{clocks, tool};

/// How long a start may take on a machine that does other things as well.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// … and with guests, some of which hang in their boot and are started again.
const GUEST_PATIENCE: Duration = Duration::from_secs(420);
/// How long the kernel and the guards may take to remove what a killed process leaves.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// The ready file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub temporal: String,
    pub namespace: String,
    pub api: String,
    pub api_token: String,
    pub registry: String,
    pub s3: S3,
    pub temporal_ui: String,
    pub cells: Vec<ReadyCell>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyCell {
    pub id: String,
    pub task_queue: String,
    /// Empty for a guest.
    #[serde(default)]
    pub buildkit_socket: PathBuf,
}

/// A running `kiln dev`. Dropping it kills it, and its children end by themselves.
pub struct Dev {
    child: Child,
    pub data: PathBuf,
    pub ready_file: PathBuf,
    pub ready: Ready,
}

/// The command line of `kiln dev` on `data`, with the pinned tools.
pub fn command(data: &Path, args: &[&str]) -> Command {
    let tools = data.with_extension("tools");
    fs::create_dir_all(&tools).unwrap();
    for name in ["temporal", "buildkitd", "runc"] {
        // There already at a second start.
        let _ = std::os::unix::fs::symlink(tool(name), tools.join(name));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("dev").arg("--data-dir").arg(data).arg("--tools-dir").arg(tools).args(args).stdin(Stdio::null());
    if !args.contains(&"qemu") {
        let registries: Vec<_> = registry_ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
        command.arg("--set").arg(format!("registry.plain_http={}", registries.join(",")));
    }
    command
}

/// Ports of the loopback at which tests have registries of their own: they are named when an installation starts, for no other port of the
/// host is open to buildkitd.
fn registry_ports() -> &'static [u16] {
    static PORTS: OnceLock<Vec<u16>> = OnceLock::new();
    PORTS.get_or_init(|| {
        // All at once, so that no port is given out twice.
        let held: Vec<_> = (0..48).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
    })
}

/// One of them that no other test of this process has.
pub fn registry_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    registry_ports()[NEXT.fetch_add(1, Ordering::Relaxed)]
}

impl Dev {
    /// Starts on `data` and waits until it is ready.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        Self::start_with(data, args, &[])
    }

    /// As [`Self::start`], on the clocks that faults are tested with.
    pub fn under_faults(data: &Path, args: &[&str]) -> Self {
        Self::start(data, &[args, clocks::flags()].concat())
    }

    /// As [`Self::start`], with these variables in its environment and its children's.
    pub fn start_with(data: &Path, args: &[&str], variables: &[(&str, &Path)]) -> Self {
        // For the requests of the tests; fails only when another test did it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ready_file = data.with_extension("ready");
        // A killed one leaves its own.
        let _ = fs::remove_file(&ready_file);
        let log = data.with_extension("stderr");
        let mut command = command(data, args);
        command.arg("--ready-file").arg(&ready_file).stderr(fs::File::create(&log).unwrap());
        command.envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let patience = if args.contains(&"qemu") { GUEST_PATIENCE } else { START_PATIENCE };
        let ready = eventually("kiln dev is ready", patience, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("kiln dev ended ({status}): {}", fs::read_to_string(&log).unwrap());
            }
            fs::read(&ready_file).ok()
        });
        let ready = serde_json::from_slice(&ready).unwrap();
        Self { child, data: data.to_owned(), ready_file, ready }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything of it, as the host sees it.
    pub fn footprint(&self) -> Footprint {
        Footprint::of(&self.data)
    }

    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order and says how it ended and how long that took.
    pub fn terminate(mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).unwrap();
        let status = eventually("it ends", Duration::from_secs(120), || self.child.try_wait().unwrap());
        (status, begun.elapsed())
    }

    /// Builds a Dockerfile on the first cell, without Kiln; the result carries all output.
    pub async fn solve(&self, dockerfile: &str) -> Built {
        solve(&self.ready.cells[0].buildkit_socket, dockerfile, None).await
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a build ended.
pub struct Built {
    pub result: Result<(), SolveError>,
    pub output: String,
    /// Names of the steps that came from the cache.
    pub cached: BTreeSet<String>,
}

/// Builds a Dockerfile with an empty context, pushed to `name` if one is given.
pub async fn solve(socket: &Path, dockerfile: &str, name: Option<&str>) -> Built {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    let source = Arc::new(Directory::new(dir.path()).unwrap());
    let client = Client::connect_unix(socket).await.unwrap();
    let session = client.session().dir("context", source.clone()).dir("dockerfile", source).open().await.unwrap();
    let mut solve = Solve::new(uuid::Uuid::new_v4().to_string(), Frontend::BuiltIn);
    if let Some(name) = name {
        solve = solve.export(Export::Image(Image::named(name).push()));
    }
    let (updates, events) = tokio::sync::mpsc::channel(64);
    let seen = tokio::spawn(collect(events));
    let cancel = CancellationToken::new();
    let solved = tokio::time::timeout(Duration::from_secs(300), session.solve(solve, updates, &cancel));
    let result = solved.await.expect("the build ends").map(drop);
    let (output, cached) = seen.await.unwrap();
    Built { result, output, cached }
}

async fn collect(mut events: tokio::sync::mpsc::Receiver<StatusUpdate>) -> (String, BTreeSet<String>) {
    let (mut output, mut cached) = (Vec::new(), BTreeSet::new());
    while let Some(update) = events.recv().await {
        update.logs.iter().for_each(|log| output.extend_from_slice(&log.data));
        cached.extend(update.vertexes.into_iter().filter(|vertex| vertex.cached).map(|vertex| vertex.name));
    }
    (String::from_utf8_lossy(&output).into_owned(), cached)
}

/// What an installation is on its host: processes, namespaces, mounts, network interfaces.
#[derive(Debug)]
pub struct Footprint {
    data: PathBuf,
    /// Mount namespaces of its cells.
    namespaces: BTreeSet<u64>,
    /// The hosts' ends of its cells' wires.
    pub links: BTreeSet<String>,
}

impl Footprint {
    fn of(data: &Path) -> Self {
        let own = namespace("self").unwrap();
        let namespaces =
            processes_of(data).into_iter().filter_map(|pid| namespace(&pid.to_string())).filter(|ns| *ns != own);
        let links = cell_dirs(data).filter_map(|dir| wire(&dir)).map(|(name, _)| name);
        Self { data: data.to_owned(), namespaces: namespaces.collect(), links: links.collect() }
    }

    /// Waits until no process, mount, or interface is left.
    pub fn is_gone(&self) {
        let mut left = Vec::new();
        let deadline = Instant::now() + END_PATIENCE;
        let now = ticks();
        while Instant::now() < deadline {
            left = self.left(now);
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("left behind: {left:#?}");
    }

    /// What is left, in words. The kernel gives a namespace's number to another one: what was started after `now` is none of these.
    fn left(&self, now: u64) -> Vec<String> {
        let processes = processes_of(&self.data).into_iter().map(|pid| format!("process {pid}"));
        let in_namespaces = all_processes()
            .filter(|pid| namespace(&pid.to_string()).is_some_and(|ns| self.namespaces.contains(&ns)))
            .filter(|pid| started(&pid.to_string()).is_some_and(|at| at <= now))
            .map(|pid| format!("process {pid} in a cell's namespace"));
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let data = self.data.to_str().unwrap();
        let mounts: Vec<_> =
            mounts.lines().filter(|line| line.contains(data)).map(|line| format!("mount {line}")).collect();
        let links = self
            .links
            .iter()
            .filter(|link| Path::new("/sys/class/net").join(link).exists())
            .map(|link| format!("link {link}"));
        processes.chain(in_namespaces).chain(mounts).chain(links).collect()
    }
}

fn cell_dirs(data: &Path) -> impl Iterator<Item = PathBuf> {
    let cells = data.join("cells");
    names(cells.clone()).map(move |name| cells.join(name))
}

/// The host's end of the wire that a cell got at its last start, and its subnet.
pub fn wire(cell_dir: &Path) -> Option<(String, String)> {
    let network: serde_json::Value = serde_json::from_slice(&fs::read(cell_dir.join("network.json")).ok()?).ok()?;
    Some((network["device"].as_str()?.to_owned(), network["subnet"].as_str()?.to_owned()))
}

/// When a process was started, ticks since the machine's start; proc(5), field 22.
fn started(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Now, in the same ticks, of which Linux shows a hundred a second.
fn ticks() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    (seconds * 100.0) as u64
}

fn names(dir: impl Into<PathBuf>) -> impl Iterator<Item = String> {
    fs::read_dir(dir.into())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn all_processes() -> impl Iterator<Item = u32> {
    names("/proc").filter_map(|name| name.parse().ok())
}

/// Processes whose command line names the directory.
pub fn processes_of(data: &Path) -> Vec<u32> {
    processes_with(data.to_str().unwrap())
}

/// Processes whose command line has `text` in it, arguments separated by spaces.
pub fn processes_with(text: &str) -> Vec<u32> {
    let command_line = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    };
    all_processes().filter(|pid| command_line(*pid).is_some_and(|line| line.contains(text))).collect()
}

fn namespace(pid: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|meta| meta.ino())
}

/// The permission bits of a file.
pub fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// Asks again and again until there is an answer; panics naming `what` when there is none in time.
pub fn eventually<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in {patience:?}: {what}");
        std::thread::sleep(pause);
        // Many questions are a process each: who waits long must not take the machine from what is waited for.
        pause = (pause * 5 / 4).min(Duration::from_millis(250));
    }
}
