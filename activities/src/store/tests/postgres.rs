//! A PostgreSQL server of a test's own: a temporary directory, a Unix socket, no network.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown};

pub struct Server {
    url: String,
    process: Child,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts a server that loses everything when it dies.
    pub fn start() -> Self {
        Self::start_with(&["-c", "listen_addresses=", "-c", "fsync=off"])
    }

    /// Starts a server with these arguments beside its places.
    pub fn start_with(args: &[&str]) -> Self {
        let programs = programs().expect("PostgreSQL's initdb is not installed: run `deploy/setup test`");
        let directory = tempfile::tempdir().unwrap();
        let owner = owner();
        chown(directory.path(), Some(owner.0), Some(owner.1)).unwrap();
        let data = directory.path().join("data");
        let made = command(&programs.join("initdb"), owner)
            .args(["--auth=trust", "--no-sync", "--username=kiln", "--encoding=UTF8", "-D"])
            .arg(&data)
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        let process = command(&programs.join("postgres"), owner)
            .args(args)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .spawn()
            .unwrap();
        let url = format!("postgres://kiln@localhost/postgres?host={}", directory.path().display());
        wait_for_ready(&data);
        Self { url, process, directory }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its major version.
    pub fn version(&self) -> String {
        let data = self.directory.path().join("data/PG_VERSION");
        std::fs::read_to_string(data).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        // A fast shutdown: it ends its sessions and its own children.
        kill(pid, Signal::SIGINT).ok();
        self.process.wait().ok();
    }
}

/// Gives a file or directory to the user that the server runs as.
pub fn give(path: &Path) {
    let (uid, gid) = owner();
    chown(path, Some(uid), Some(gid)).unwrap();
}

fn programs() -> Option<PathBuf> {
    let versioned = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = versioned.map(|entry| entry.path().join("bin")).collect();
    places.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    places.into_iter().find(|place| place.join("initdb").exists() && place.join("postgres").exists())
}

/// PostgreSQL refuses to run as root.
fn owner() -> (Uid, Gid) {
    if !Uid::current().is_root() {
        return (Uid::current(), Gid::current());
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).unwrap());
    user.map(|user| (user.uid, user.gid)).expect("a user to run PostgreSQL as")
}

fn command(program: &Path, (uid, gid): (Uid, Gid)) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env("TZ", "UTC").env("LC_ALL", "C").stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if Uid::current().is_root() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
}

/// The server writes `ready` into the last line of its pid file when it takes connections.
fn wait_for_ready(data: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let status = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        if status.lines().last().is_some_and(|line| line.trim() == "ready") {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "PostgreSQL does not start: {status}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
