//! A buildkitd on a directory of its own.

use super::{process::Process, temp_dir, tool};
use buildkit::Client;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub struct Daemon {
    process: Process,
    directory: tempfile::TempDir,
    cgroup: String,
}

impl Daemon {
    /// Starts a daemon and waits until it serves.
    pub fn start() -> Self {
        // SAFETY: geteuid always succeeds and touches nothing.
        assert_eq!(unsafe { libc::geteuid() }, 0, "these tests run buildkitd, which needs root");
        let directory = temp_dir();
        let cgroup = format!("buildkit-test-{}", uuid::Uuid::new_v4().simple());
        let config = format!(
            r#"
            root = "{root}/state"
            [grpc]
            address = ["unix://{root}/socket"]
            # By default one socket for the whole machine: daemons that start at the same time would race for it.
            [otel]
            socketPath = "{root}/otel.sock"
            [worker.oci]
            enabled = true
            snapshotter = "overlayfs"
            binary = "{runc}"
            networkMode = "host"
            gc = false
            defaultCgroupParent = "/{cgroup}"
            [worker.containerd]
            enabled = false
            "#,
            root = directory.path().display(),
            runc = tool("runc").display(),
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        Self { process: spawn(directory.path()), directory, cgroup }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub async fn client(&self) -> Client {
        Client::connect_unix(self.socket()).await.unwrap()
    }

    /// Ends the daemon with everything it runs, at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills the daemon and starts it again on the same state.
    pub fn restart(&mut self) {
        self.kill();
        self.process = spawn(self.directory.path());
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs `buildctl` against this daemon.
    pub fn buildctl(&self, arguments: &[&str]) {
        let mut command = Command::new(tool("buildctl"));
        command.arg("--addr").arg(format!("unix://{}", self.socket().display())).args(arguments);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// In a PID and mount namespace, so that nothing of it outlives it.
fn spawn(directory: &Path) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(tool("buildkitd")).arg("--config").arg(directory.join("config.toml"));
    let process = Process::start(command);
    process.wait_for("running server on");
    process
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        remove_cgroups(&self.cgroup);
    }
}

/// Cgroups of steps that were killed with the daemon are left behind, empty, in every hierarchy.
fn remove_cgroups(name: &str) {
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for top in controllers.map(|entry| entry.path().join(name)).chain([Path::new("/sys/fs/cgroup").join(name)]) {
        remove_cgroup(&top);
    }
}

/// From the leaves up: the files in a cgroup cannot be removed and need not be.
fn remove_cgroup(cgroup: &Path) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
