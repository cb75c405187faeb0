//! Temporal's server on PostgreSQL, made for one benchmark: a database cluster in a temporary directory, fsync as PostgreSQL has it,
//! four history shards, one process with all services.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use activities::temporal::{Frontend, connect_patiently};
use temporalio_client::Client;

use super::harness::{free_port, tool};
use super::postgres::Server as Postgres;
use super::report::{family_cpu, process_cpu};

const NAMESPACE: &str = "bench";
/// Of the server's two drivers for PostgreSQL the one that keeps its prepared statements: with the other one, `postgres12`, server and
/// database take nearly twice the CPU a build.
const PLUGIN: &str = "postgres12_pgx";
/// The role that [`Postgres`] makes.
const USER: &str = "kiln";
/// A server that does not answer by then does not come up.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct TemporalServer {
    pub client: Client,
    pub version: String,
    pub postgres_version: String,
    temporal: Child,
    postgres: Postgres,
    _dir: tempfile::TempDir,
}

impl TemporalServer {
    pub async fn start() -> Self {
        let port = free_port();
        let postgres = Postgres::start_with(&[
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            &format!("port={port}"),
            "-c",
            "max_connections=100",
        ]);
        for (database, schema) in [("temporal", "temporal"), ("temporal_visibility", "visibility")] {
            let schema = format!("postgresql/v12/{schema}");
            sql(port, database, &["create"]);
            sql(port, database, &["setup-schema", "-v", "0.0"]);
            sql(port, database, &["update-schema", "--schema-name", &schema]);
        }
        let dir = tempfile::tempdir().unwrap();
        let frontend = free_port();
        std::fs::write(dir.path().join("bench.yaml"), config(port, frontend)).unwrap();
        std::fs::write(dir.path().join("dynamic.yaml"), DYNAMIC).unwrap();
        let temporal = server(&dir).spawn().unwrap();
        let address = format!("127.0.0.1:{frontend}");
        make_namespace(&address, &dir.path().join("server.log"));
        let client = connect_patiently(&Frontend::plain(&address, NAMESPACE), "bench").await.unwrap();
        activities::search_attributes::register(&client, NAMESPACE).await.unwrap();
        Self {
            client,
            version: said(Command::new(tool("temporal-server")).arg("--version")),
            postgres_version: postgres.version(),
            temporal,
            postgres,
            _dir: dir,
        }
    }

    /// CPU milliseconds of the server and of all of PostgreSQL so far.
    pub fn cpu(&self) -> f64 {
        process_cpu(self.temporal.id()) + family_cpu(self.postgres.id())
    }
}

impl Drop for TemporalServer {
    fn drop(&mut self) {
        let _ = self.temporal.kill();
        let _ = self.temporal.wait();
    }
}

fn sql(port: u16, database: &str, args: &[&str]) {
    let mut command = Command::new(tool("temporal-sql-tool"));
    command.args(["--plugin", PLUGIN, "--ep", "127.0.0.1", "-p", &port.to_string(), "-u", USER, "--pw", USER]);
    let output = command.args(["--db", database]).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn server(dir: &tempfile::TempDir) -> Command {
    let mut command = Command::new(tool("temporal-server"));
    command.arg("--root").arg(dir.path()).args(["--config", ".", "--env", "bench", "--allow-no-auth", "start"]);
    let log = std::fs::File::create(dir.path().join("server.log")).unwrap();
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

fn make_namespace(address: &str, log: &Path) {
    let begun = Instant::now();
    loop {
        let args = ["operator", "namespace", "create", "-n", NAMESPACE, "--retention", "24h", "--address", address];
        let output = Command::new(tool("temporal")).args(args).output().unwrap();
        if output.status.success() {
            return;
        }
        if begun.elapsed() >= PATIENCE {
            let (why, log) =
                (String::from_utf8_lossy(&output.stderr), std::fs::read_to_string(log).unwrap_or_default());
            panic!("no namespace: {why}; the server's log:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn said(command: &mut Command) -> String {
    String::from_utf8_lossy(&command.output().unwrap().stdout).split_whitespace().last().unwrap_or("?").to_owned()
}

/// The settings that `kiln dev` gives its server as well.
const DYNAMIC: &str = "\
history.transferProcessorMaxPollRPS: [{value: 2000}]
history.timerProcessorMaxPollRPS: [{value: 2000}]
matching.numTaskqueueReadPartitions: [{value: 1}]
matching.numTaskqueueWritePartitions: [{value: 1}]
matching.enableFairness: [{value: true}]
system.forceSearchAttributesCacheRefreshOnRead: [{value: true}]
";

/// A free port that the schema has room for: it keeps them as signed 16-bit numbers.
fn membership_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn config(postgres: u16, frontend: u16) -> String {
    let store = |database: &str, connections: u16| {
        format!(
            "{{sql: {{pluginName: {PLUGIN}, databaseName: {database}, connectAddr: '127.0.0.1:{postgres}', connectProtocol: tcp, \
             user: {USER}, password: {USER}, maxConns: {connections}, maxIdleConns: {connections}, maxConnLifetime: 1h}}}}"
        )
    };
    let service = |port: u16| {
        format!("{{rpc: {{grpcPort: {port}, membershipPort: {}, bindOnLocalHost: true}}}}", membership_port())
    };
    format!(
        "\
log: {{stdout: true, level: error}}
persistence:
  defaultStore: default
  visibilityStore: visibility
  numHistoryShards: 4
  datastores:
    default: {}
    visibility: {}
global:
  membership: {{maxJoinDuration: 30s, broadcastAddress: '127.0.0.1'}}
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
        store("temporal", 20),
        store("temporal_visibility", 4),
        service(frontend),
        service(free_port()),
        service(free_port()),
        service(free_port()),
    )
}
