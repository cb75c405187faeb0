//! Wires beyond the loopback: Temporal with mutual TLS, and what a role refuses to start with.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use activities::temporal::{ClientConfig, Frontend, connect, connect_patiently};
use temporalio_client::grpc::WorkflowService as _;
use temporalio_client::{Client, tonic};
use temporalio_common::protos::temporal::api::enums::v1::TaskQueueType;
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeTaskQueueRequest;
use workflows::contract::BuildStatus;

use super::harness::plane::{Act, Plane};
use super::harness::spine::{Ran, spine};
use super::harness::temporal_tls::{NAMESPACE, TemporalServer};

/// How long a role may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The frontend as a profile of a `temporal.toml` has it.
fn frontend(server: &TemporalServer, profiles: &Path, profile: &str) -> Frontend {
    let config = ClientConfig::Used { file: Some(profiles.to_owned()), profile: Some(profile.into()) };
    Frontend { address: server.address.clone(), namespace: NAMESPACE.into(), config }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_run_over_mutual_tls_in_a_namespace_of_another_name() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = TemporalServer::start();
    let profiles = server.profiles();
    for stranger in ["anonymous", "foreign", "misled"] {
        let refused = connect(&frontend(&server, &profiles, stranger), "tests").await;
        assert!(refused.is_err(), "{stranger} got in");
    }
    let plain = Frontend::plain(&server.address, NAMESPACE);
    assert!(connect(&plain, "tests").await.is_err(), "plaintext got in");

    let client = connect_patiently(&frontend(&server, &profiles, "prod"), "tests").await.unwrap();
    activities::search_attributes::register(&client, NAMESPACE).await.unwrap();
    let plane = Plane::on(client.clone(), 1, 2, 0, |_| Act::Push("image".into())).await;
    let result = plane.build("over-tls", &plane.input("over-tls")).await.unwrap();
    assert_eq!(result.status, BuildStatus::Succeeded);
    drop(plane);
    control_comes_up(&server, &client).await;
    tokio::task::spawn_blocking(move || doctor_tells_what_is_wrong_with_temporal(&server)).await.unwrap();
}

/// The kind of problem that `kiln doctor host` finds with Temporal and these variables, if there is one.
fn problem_with_temporal(server: &TemporalServer, changes: &[(&str, &str)]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["doctor", "host", "--output", "json", "--set=host.id=h1", "--set=host.cells=/cells/c1"]);
    command.current_dir(dir.path()).env_clear().env("HOME", dir.path()).envs(server.variables());
    command.envs(changes.iter().copied());
    let ran = Ran::of(&mut command);
    let report = ran.json();
    let found = report["wires"].as_array().unwrap().iter().find(|found| found["wire"] == "temporal").unwrap();
    found["problem"]["kind"].as_str().map(ToOwned::to_owned)
}

fn doctor_tells_what_is_wrong_with_temporal(server: &TemporalServer) {
    let problem = |changes: &[(&str, &str)]| problem_with_temporal(server, changes);
    assert_eq!(problem(&[]), None);
    assert_eq!(problem(&[("TEMPORAL_NAMESPACE", "absent")]).as_deref(), Some("namespace"));
    assert_eq!(problem(&[("TEMPORAL_ADDRESS", "temporal.invalid:7233")]).as_deref(), Some("name"));
    assert_eq!(problem(&[("TEMPORAL_ADDRESS", "localhost:1")]).as_deref(), Some("port"));
    assert_eq!(problem(&[("TEMPORAL_TLS_SERVER_NAME", "other.example")]).as_deref(), Some("tls"));
    assert_eq!(problem(&[("TEMPORAL_TLS_CLIENT_CERT_PATH", "/no/such/file")]).as_deref(), Some("setting"));
    assert_eq!(problem(&[("TEMPORAL_CONFIG_FILE", "/no/such/file")]).as_deref(), Some("setting"));
    assert_eq!(problem(&[("TEMPORAL_TLS", "false")]).as_deref(), Some("answer"), "the server wants TLS");
    let (cert, key) = server.foreign();
    let foreign = [
        ("TEMPORAL_TLS_CLIENT_CERT_PATH", cert.to_str().unwrap()),
        ("TEMPORAL_TLS_CLIENT_KEY_PATH", key.to_str().unwrap()),
    ];
    assert_eq!(problem(&foreign).as_deref(), Some("tls"), "a certificate of another authority");
}

#[test]
fn doctor_finds_nothing_wrong_with_a_kiln_dev() {
    let spine = spine();
    for (role, settings) in [
        ("builder", spine.data.join("cells/dev-1/kiln.toml")),
        ("control", spine.data.join("control.toml")),
        ("api", spine.data.join("kiln.toml")),
        ("host", spine.data.join("host.toml")),
        ("cli", spine.data.join("kiln.toml")),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["doctor", role, "--output", "json", "--config"]).arg(&settings);
        let ran = Ran::of(&mut command);
        assert_eq!((ran.code, &ran.json()["ok"]), (0, &serde_json::Value::Bool(true)), "{role}: {}", ran.all());
    }
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_kiln"));
    wrong.args(["doctor", "--output", "json", "--set=api.token=wrong", "--config"]).arg(spine.data.join("kiln.toml"));
    let ran = Ran::of(&mut wrong);
    assert_eq!((ran.code, &ran.json()["wires"][0]["problem"]["kind"]), (1, &"credential".into()), "{}", ran.all());
}

/// As a process, with Temporal's own variables and nothing of Kiln's about Temporal.
async fn control_comes_up(server: &TemporalServer, client: &Client) {
    let dir = tempfile::tempdir().unwrap();
    activities::sealed::Identity::generate().write(&dir.path().join("identity")).unwrap();
    let text = format!(
        "[store]\nurl = \"sqlite://{0}/kiln.db\"\n[seal]\nidentity_file = \"{0}/identity\"\n[s3]\nendpoint = \"http://127.0.0.1:1\"\n\
         bucket = \"kiln\"\nregion = \"auto\"\naccess_key = \"a\"\nsecret_key = \"b\"\n",
        dir.path().display()
    );
    std::fs::write(dir.path().join("kiln.toml"), text).unwrap();
    let mut control = role(dir.path(), "control", server).spawn().unwrap();
    until_polled(client, "entities").await;
    control.kill().unwrap();
    control.wait().unwrap();
}

fn role(dir: &Path, role: &str, server: &TemporalServer) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg(role).arg("--config").arg(dir.join("kiln.toml")).envs(server.variables());
    command.stderr(std::fs::File::create(dir.join(format!("{role}.log"))).unwrap());
    command
}

/// Waits until a worker asks the queue for workflow tasks.
async fn until_polled(client: &Client, queue: &str) {
    let polled = async {
        loop {
            let request = DescribeTaskQueueRequest {
                namespace: NAMESPACE.into(),
                task_queue: Some(TaskQueue { name: queue.into(), ..TaskQueue::default() }),
                task_queue_type: TaskQueueType::Workflow.into(),
                ..DescribeTaskQueueRequest::default()
            };
            let described = client.clone().describe_task_queue(tonic::Request::new(request)).await.unwrap();
            if !described.into_inner().pollers.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polled).await.unwrap_or_else(|_| panic!("no worker on {queue}"));
}

/// What every role needs, all of it on the loopback.
const SETTINGS: &str = r#"
[store]
url = "sqlite:kiln.db"
[s3]
endpoint = "http://127.0.0.1:1"
bucket = "kiln"
[seal]
recipient = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg"
identity_file = "key"
[logs]
dir = "logs"
[host]
id = "h1"
cells = ["/cells/c1"]
[cell]
id = "c1"
dir = "cell"
buildkit_socket = "buildkitd.sock"
"#;

/// Runs `kiln` with these settings and one more, in a directory with nothing of this machine's.
fn run(args: &[&str], setting: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kiln.toml"), SETTINGS).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).arg(format!("--set={setting}")).current_dir(dir.path());
    Ran::of(command.env_clear().env("HOME", dir.path()))
}

#[test]
fn nothing_starts_with_plaintext_beyond_the_loopback() {
    for (args, setting) in [
        (&["host"][..], "temporal.address=temporal.internal:7233"),
        (&["api"], "api.listen=0.0.0.0:0"),
        (&["api"], "logs.listen=0.0.0.0:0"),
        (&["api"], "store.url=postgres://kiln@db.internal/kiln?sslmode=require"),
        (&["control"], "s3.endpoint=http://s3.internal"),
        (&["control"], "temporal.address=10.0.0.9:7233"),
        (&["builder"], "logs.address=kiln.internal:7081"),
        (&["builder"], "cell.services_at=198.51.100.7"),
        (&["builds", "ls"], "api.url=http://kiln.internal"),
    ] {
        let ran = run(args, setting);
        let key = setting.split('=').next().unwrap();
        assert_eq!(ran.code, 2, "{args:?} {setting}: {}", ran.all());
        assert!(ran.stderr.contains(key) && ran.stderr.contains("tls.allow_plaintext"), "{}", ran.stderr);
    }
}

#[test]
fn plaintext_that_is_permitted_is_tried() {
    let ran = run(&["builds", "ls", "--set", "tls.allow_plaintext=true"], "api.url=http://kiln.invalid");
    assert_eq!(ran.code, 75, "{}", ran.all());
}
