//! One Temporal dev server for all tests; each test has a namespace of its own.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use activities::temporal::{Frontend, connect_patiently};
use temporalio_client::Client;

use super::{free_port, tool};

/// More than there are tests that need one.
const NAMESPACES: usize = 64;

/// The server's `host:port`.
pub fn address() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| start(NAMESPACES))
}

/// A client in a namespace that no other test uses.
pub async fn client() -> Client {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let namespace = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed) % NAMESPACES);
    connect_patiently(&Frontend::plain(address(), &namespace), "tests").await.expect("the dev server answers")
}

/// Starts a server with the namespaces `t0`, `t1`, …; each costs some of its time, also when nobody uses it. It dies with this
/// process: the parent-death signal fires when the thread that spawned it ends, so that thread stays.
pub fn start(namespaces: usize) -> String {
    let address = format!("127.0.0.1:{}", free_port());
    let (tell, told) = mpsc::channel();
    let mut command = command(&address, namespaces);
    std::thread::spawn(move || {
        let mut child = command.spawn().expect("the dev server starts");
        tell.send(child.id()).unwrap();
        child.wait().expect("it is this thread's child");
    });
    told.recv_timeout(Duration::from_secs(10)).expect("the dev server is spawned");
    address
}

fn command(address: &str, namespaces: usize) -> Command {
    let (host, port) = address.split_once(':').unwrap();
    let mut command = Command::new(tool("temporal"));
    command.args(["server", "start-dev", "--headless", "--ip", host, "--port", port, "--log-level", "error"]);
    for setting in [
        "history.transferProcessorMaxPollRPS=2000",
        "history.timerProcessorMaxPollRPS=2000",
        "matching.numTaskqueueReadPartitions=1",
        "matching.numTaskqueueWritePartitions=1",
        "matching.enableFairness=true",
        "system.forceSearchAttributesCacheRefreshOnRead=true",
    ] {
        command.args(["--dynamic-config-value", setting]);
    }
    for name in ["KilnProject", "KilnStatus", "KilnCell"] {
        command.args(["--search-attribute", &format!("{name}=Keyword")]);
    }
    for n in 0..namespaces {
        command.args(["--namespace", &format!("t{n}")]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}
