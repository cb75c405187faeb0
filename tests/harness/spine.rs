//! One `kiln dev` for all tests that only use it, and `kiln up` as a user runs it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dev::{self, Ready};

/// An installation that tests share.
pub struct Spine {
    pub data: PathBuf,
    pub ready: Ready,
}

/// Two cells of two slots, `busybox` seeded.
pub fn spine() -> &'static Spine {
    static SPINE: OnceLock<Spine> = OnceLock::new();
    SPINE.get_or_init(|| start("spine", &["--cells", "2", "--slots", "2", "--seed", "busybox"]))
}

/// It dies with this process: the parent-death signal fires when the thread that spawned it ends, so that thread stays; what
/// `kiln dev` started ends with it.
pub fn start(name: &str, args: &[&str]) -> Spine {
    let data = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&data);
    let ready_file = data.with_extension("ready");
    let _ = fs::remove_file(&ready_file);
    fs::create_dir_all(&data).unwrap();
    let mut command = dev::command(&data, args);
    command.arg("--ready-file").arg(&ready_file).stderr(fs::File::create(data.with_extension("stderr")).unwrap());
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut child = command.spawn().expect("kiln dev starts");
        tell.send(child.id()).unwrap();
        child.wait().expect("it is this thread's child");
    });
    told.recv_timeout(Duration::from_secs(10)).expect("kiln dev is spawned");
    let begun = Instant::now();
    while !ready_file.exists() {
        let log = fs::read_to_string(data.with_extension("stderr")).unwrap_or_default();
        assert!(begun.elapsed() < Duration::from_secs(120), "kiln dev is not ready: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Spine { ready: serde_json::from_slice(&fs::read(&ready_file).unwrap()).unwrap(), data }
}

/// What a run of `kiln` left.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A `kiln` that has not come to its end by then never does.
const LONGEST: Duration = Duration::from_secs(600);

impl Ran {
    /// Runs a command to its end, which is this process's work if it does not come.
    pub fn of(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, end) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if end.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                kill(pid, Signal::SIGKILL).ok();
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        watch.join().unwrap();
        output.into()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The JSON object on the last line of standard output.
    pub fn json(&self) -> serde_json::Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {:?}\n{}", self.stdout, self.stderr))
    }

    /// All of it, for an assertion's message.
    pub fn all(&self) -> String {
        format!("exit {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.all());
        self
    }
}

/// `kiln ARGS` against an installation's settings file.
pub fn kiln(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).arg("--config").arg(data.join("kiln.toml")).stdin(Stdio::null());
    command.env("DOCKER_CONFIG", data.join("no-docker-config")).env("NO_COLOR", "1");
    command
}

impl Spine {
    pub fn kiln(&self, args: &[&str]) -> Ran {
        Ran::of(&mut kiln(&self.data, args))
    }

    /// `kiln up` of a directory, with the JSON result.
    pub fn up(&self, dir: &Path, project: &str, more: &[&str]) -> Ran {
        let dir = dir.to_str().unwrap();
        let mut args = vec!["up", dir, "--project", project, "--output", "json", "--progress", "plain"];
        args.extend(more);
        self.kiln(&args)
    }
}

/// A directory with these files.
pub fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}
