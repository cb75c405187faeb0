//! Temporal's server with mutual TLS at its frontend, its state in memory.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::pki::Pki;
use super::{free_port, tool};

/// The namespace that it has.
pub const NAMESPACE: &str = "kiln-prod";
/// A server that does not answer by then does not come up.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct TemporalServer {
    /// `localhost:port`.
    pub address: String,
    pub pki: Pki,
    /// An authority that it does not trust.
    stranger: Pki,
    /// Certificate and key that it trusts.
    pub client: (PathBuf, PathBuf),
    process: Child,
    dir: tempfile::TempDir,
}

impl TemporalServer {
    /// Starts it, and waits until it has its namespace.
    pub fn start() -> Self {
        let (pki, dir, port) = (Pki::new(), tempfile::tempdir().unwrap(), free_port());
        let (server, client) = (pki.issue("frontend"), pki.issue("client"));
        std::fs::write(dir.path().join("test.yaml"), config(port, &pki.ca(), &server, &client)).unwrap();
        std::fs::write(dir.path().join("dynamic.yaml"), DYNAMIC).unwrap();
        let process = server_command(dir.path()).spawn().unwrap();
        let server = Self { address: format!("localhost:{port}"), pki, stranger: Pki::new(), client, process, dir };
        server.make_namespace();
        server
    }

    /// The variables of Temporal's own client configuration that lead to it.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("TEMPORAL_ADDRESS", self.address.clone()),
            ("TEMPORAL_NAMESPACE", NAMESPACE.into()),
            ("TEMPORAL_TLS_SERVER_CA_CERT_PATH", text(&self.pki.ca())),
            ("TEMPORAL_TLS_CLIENT_CERT_PATH", text(&self.client.0)),
            ("TEMPORAL_TLS_CLIENT_KEY_PATH", text(&self.client.1)),
        ]
    }

    /// A `temporal.toml` with a profile `prod` that leads to it, and other profiles that do not get in.
    pub fn profiles(&self) -> PathBuf {
        let profile = |name: &str, ca: &Path, identity: Option<&(PathBuf, PathBuf)>| {
            let identity = identity.map_or_else(String::new, |(cert, key)| {
                format!("client_cert_path = {cert:?}\nclient_key_path = {key:?}\n")
            });
            format!(
                "[profile.{name}]\nnamespace = {NAMESPACE:?}\n[profile.{name}.tls]\nserver_ca_cert_path = {ca:?}\n{identity}"
            )
        };
        let foreign = self.foreign();
        let text = [
            profile("prod", &self.pki.ca(), Some(&self.client)),
            profile("anonymous", &self.pki.ca(), None),
            profile("foreign", &self.pki.ca(), Some(&foreign)),
            profile("misled", &self.stranger.ca(), Some(&self.client)),
        ];
        let file = self.dir.path().join("temporal.toml");
        std::fs::write(&file, text.concat()).unwrap();
        file
    }

    /// Certificate and key of an authority that it does not trust.
    pub fn foreign(&self) -> (PathBuf, PathBuf) {
        self.stranger.issue("foreign")
    }

    fn make_namespace(&self) {
        let begun = Instant::now();
        loop {
            let mut command = Command::new(tool("temporal"));
            command.args(["operator", "namespace", "create", "-n", NAMESPACE, "--retention", "24h"]);
            let output = command.envs(self.variables()).output().unwrap();
            if output.status.success() {
                return;
            }
            let log = || std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default();
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(begun.elapsed() < PATIENCE, "no namespace: {why}; the server's log:\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for TemporalServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn server_command(dir: &Path) -> Command {
    let mut command = Command::new(tool("temporal-server"));
    command.arg("--root").arg(dir).args(["--config", ".", "--env", "test", "--allow-no-auth", "start"]);
    let log = File::create(dir.join("server.log")).unwrap();
    command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

const DYNAMIC: &str = "\
history.transferProcessorMaxPollRPS: [{value: 2000}]
history.timerProcessorMaxPollRPS: [{value: 2000}]
matching.numTaskqueueReadPartitions: [{value: 1}]
matching.numTaskqueueWritePartitions: [{value: 1}]
system.forceSearchAttributesCacheRefreshOnRead: [{value: true}]
";

/// A free port that fits the schema's signed 16-bit numbers.
fn membership_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(24_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn config(frontend: u16, ca: &Path, server: &(PathBuf, PathBuf), client: &(PathBuf, PathBuf)) -> String {
    let store = "{sql: {pluginName: sqlite, databaseName: default, connectAddr: localhost, connectProtocol: tcp, \
                 connectAttributes: {mode: memory, cache: private}, maxConns: 1, maxIdleConns: 1, maxConnLifetime: 1h}}";
    let service = |port: u16| {
        format!("{{rpc: {{grpcPort: {port}, membershipPort: {}, bindOnLocalHost: true}}}}", membership_port())
    };
    let files = |(cert, key): &(PathBuf, PathBuf)| format!("certFile: {cert:?}, keyFile: {key:?}");
    let trust = format!("client: {{serverName: localhost, rootCaFiles: [{ca:?}]}}");
    format!(
        "\
log: {{stdout: true, level: error}}
persistence:
  defaultStore: default
  visibilityStore: visibility
  numHistoryShards: 1
  datastores: {{default: {store}, visibility: {store}}}
global:
  membership: {{maxJoinDuration: 30s, broadcastAddress: '127.0.0.1'}}
  tls:
    frontend:
      server: {{{}, requireClientAuth: true, clientCaFiles: [{ca:?}]}}
      {trust}
    systemWorker: {{{}, {trust}}}
services:
  frontend: {}
  matching: {}
  history: {}
  worker: {}
clusterMetadata:
  enableGlobalNamespace: false
  failoverVersionIncrement: 10
  masterClusterName: active
  currentClusterName: active
  clusterInformation:
    active: {{enabled: true, initialFailoverVersion: 1, rpcName: frontend, rpcAddress: '127.0.0.1:{frontend}'}}
dcRedirectionPolicy: {{policy: noop}}
dynamicConfigClient: {{filepath: dynamic.yaml, pollInterval: 10s}}
",
        files(server),
        files(client),
        service(frontend),
        service(free_port()),
        service(free_port()),
        service(free_port()),
    )
}
