//! A host of the test's own beside `kiln dev`: its agent, its cells, and orders to it through Temporal as a Cell gives them.

use std::fs::{self, File};
use std::io::PipeWriter;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use activities::temporal::{Frontend, connect_patiently};
use activities::workers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Digest as _;
use temporalio_client::{Client, WorkflowGetResultOptions, WorkflowStartOptions};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{ActivityOptions, Worker, WorkerOptions, WorkflowContext, WorkflowContextView, WorkflowResult};
use temporalio_workflow::RetryPolicy;
use workflows::activities::HostActivities;
use workflows::contract::{CloneOrder, HostCell, HostOrder, host_task_queue};

use super::dev::{Dev, Ready, eventually, processes_with};
use super::spine::{Ran, kiln};
use super::{running, tool};

const QUEUE: &str = "test-orders";

/// One order, as a Cell's workflow would give it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    host: String,
    what: String,
    order: HostOrder,
    /// How often it is tried.
    tries: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answered {
    cell: Option<HostCell>,
    refused: Option<String>,
}

#[workflow]
pub struct Order {
    asked: Asked,
}

#[workflow_methods]
impl Order {
    #[init]
    fn new(_ctx: &WorkflowContextView, asked: Asked) -> Self {
        Self { asked }
    }

    #[run(name = "Order")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<Answered> {
        let Asked { host, what, order, tries } = ctx.state(|s| s.asked.clone());
        let options = ActivityOptions::with_start_to_close_timeout(Duration::from_secs(90))
            .task_queue(host_task_queue(&host.parse().unwrap()))
            .heartbeat_timeout(Duration::from_secs(20))
            .retry_policy(RetryPolicy::builder().maximum_attempts(tries).build())
            .do_not_eagerly_execute(true)
            .build();
        let answer = match what.as_str() {
            "start" => ctx.execute_activity(HostActivities::start_cell, order, options).await,
            "stop" => ctx.execute_activity(HostActivities::stop_cell, order, options).await,
            "delete" => ctx.execute_activity(HostActivities::delete_clone, order, options).await,
            "clone" => {
                let order = CloneOrder { order, clone: "copy".parse().unwrap(), slots: 1 };
                let made = ctx.execute_activity(HostActivities::clone_cell, order, options).await;
                let refused = made.err().map(|error| format!("{error:?}"));
                return Ok(Answered { cell: None, refused });
            }
            _ => ctx.execute_activity(HostActivities::inspect_cell, order, options).await,
        };
        Ok(match answer {
            Ok(cell) => Answered { cell: Some(cell), refused: None },
            Err(error) => Answered { cell: None, refused: Some(format!("{error:?}")) },
        })
    }
}

/// Gives orders, on a thread with a worker of its own.
#[derive(Clone)]
pub struct Orders {
    client: Client,
    runtime: tokio::runtime::Handle,
}

impl Orders {
    /// In the namespace of an installation.
    pub fn through(ready: &Ready) -> Self {
        let (address, namespace) = (ready.temporal.clone(), ready.namespace.clone());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect_patiently(&Frontend::plain(&address, &namespace), "tests").await.unwrap();
                tell.send((client.clone(), tokio::runtime::Handle::current())).unwrap();
                let options = WorkerOptions::new(QUEUE).register_workflow::<Order>().unwrap().build();
                // Ends with the test.
                let _ = Worker::new(&workers::runtime().unwrap(), client, options).unwrap().run().await;
            });
        });
        let (client, runtime) = told.recv_timeout(Duration::from_secs(30)).unwrap();
        Self { client, runtime }
    }

    pub fn give(&self, host: &str, what: &str, order: &HostOrder) -> Result<HostCell, String> {
        self.give_up_to(1, host, what, order)
    }

    /// Tried again when it fails, as Temporal does it.
    pub fn give_up_to(&self, tries: u32, host: &str, what: &str, order: &HostOrder) -> Result<HostCell, String> {
        let asked = Asked { host: host.into(), what: what.into(), order: order.clone(), tries };
        let client = self.client.clone();
        let given = self.runtime.spawn(async move {
            let id = format!("order/{}", uuid::Uuid::new_v4());
            let options = WorkflowStartOptions::new(QUEUE, id).build();
            let deadline = Instant::now() + Duration::from_secs(30);
            let started = loop {
                match client.start_workflow(Order::run, asked.clone(), options.clone()).await {
                    // A server that has just started answers before it knows its namespaces.
                    Err(error) if Instant::now() < deadline && format!("{error:?}").contains("NamespaceNotFound") => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    started => break started.unwrap(),
                }
            };
            started.get_result(WorkflowGetResultOptions::default()).await.unwrap()
        });
        let (tell, told) = std::sync::mpsc::channel();
        self.runtime.spawn(async move { tell.send(given.await) });
        let answered: Answered = told.recv_timeout(Duration::from_secs(120)).expect("an answer in time").unwrap();
        answered.cell.ok_or_else(|| answered.refused.unwrap_or_default())
    }
}

/// A host with one cell, in a directory of its own, on the services of a `kiln dev`.
pub struct OwnHost {
    pub id: String,
    pub cell: String,
    /// The cell's directory.
    pub dir: PathBuf,
    pub socket: PathBuf,
    config: PathBuf,
    _parent: tempfile::TempDir,
}

impl OwnHost {
    /// Writes the settings of host `id` with cell `cell`; cells outlive the agent unless `bound`.
    pub fn new(installation: &Path, id: &str, cell: &str, bound: bool) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().canonicalize().unwrap();
        let dir = root.join("cells").join(cell);
        fs::create_dir_all(dir.join("builder")).unwrap();
        let (config, socket) = (root.join("host.toml"), dir.join("buildkitd.sock"));
        let own = Self { id: id.into(), cell: cell.into(), dir, socket, config, _parent: parent };
        own.write_cell(installation);
        let mut host = json!({ "id": id, "cells": [own.dir], "image_dir": own.dir.join("images") });
        if bound {
            let hold = root.join("hold");
            File::create(&hold).unwrap();
            host["bound"] = json!(hold);
        }
        let token = host_token(installation, id);
        write_settings(&own.config, installation, |settings| {
            settings["api"]["token"] = token.into();
            settings.insert("host".into(), toml_of(&host));
        });
        own
    }

    /// As `kiln dev` wrote its first cell, with other names.
    fn write_cell(&self, installation: &Path) {
        let model = installation.join("cells/dev-1");
        let mut plan: serde_json::Value = serde_json::from_slice(&fs::read(model.join("cell.json")).unwrap()).unwrap();
        let toml = self.dir.join("kiln.toml");
        plan["id"] = json!(self.cell);
        plan["dir"] = json!(self.dir);
        plan["socket"] = json!(self.socket);
        plan["builder"][3] = json!(toml);
        for log in ["cell", "buildkitd", "builder"] {
            plan["logs"][log] = json!(self.log(log));
        }
        fs::write(self.dir.join("cell.json"), plan.to_string()).unwrap();
        write_settings(&toml, installation, |settings| {
            let cell = json!({
                "id": self.cell, "host": self.id, "slots": 1, "buildkit_socket": self.socket,
                "dir": self.dir.join("builder"), "drain_grace_ms": 1000, "clocks": settings["cell"]["clocks"],
            });
            settings["api"]["token"] = "".into();
            settings["api"]["token_file"] = self.dir.join("api.token").to_str().unwrap().into();
            settings.insert("cell".into(), toml_of(&cell));
        });
    }

    /// Agent and builder reach Temporal there.
    pub fn reach_temporal_at(&self, address: &str) {
        for file in [&self.config, &self.dir.join("kiln.toml")] {
            let mut settings: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
            settings["temporal"]["address"] = address.into();
            fs::write(file, toml::to_string(&settings).unwrap()).unwrap();
        }
    }

    pub fn log(&self, of: &str) -> PathBuf {
        self.dir.join(format!("{of}.log"))
    }

    /// Puts an image with the programs under test where the host looks for images; how orders name it.
    pub fn image(&self, name: &str) -> String {
        programs(&self.dir.join("images").join(name))
    }

    pub fn order(&self, operation: &str, image: Option<&str>) -> HostOrder {
        HostOrder {
            operation: operation.into(),
            cell: self.cell.parse().unwrap(),
            pool: "default".parse().unwrap(),
            image: image.map(str::to_owned),
            grace_ms: 5000,
            clone_of: None,
        }
    }

    /// The command line of its agent.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("host").arg("--config").arg(&self.config).env_remove("KILN_LOG");
        command
    }

    /// Its agent, with what it says in a file. It dies with the thread that starts it, so with the test.
    pub fn agent(&self) -> Agent {
        let (pipe, life) = std::io::pipe().unwrap();
        let said = File::options().create(true).append(true).open(self.log("agent")).unwrap();
        let mut command = self.command();
        command.stdin(pipe).stdout(said.try_clone().unwrap()).stderr(said);
        // SAFETY: prctl is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Agent { child: command.spawn().unwrap(), _life: life }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(self.log("agent")).unwrap_or_default()
    }

    /// Processes of the cell whose command line has `role` in it, oldest first.
    pub fn processes(&self, role: &str) -> Vec<u32> {
        let cell = processes_with(self.dir.to_str().unwrap());
        let mut found: Vec<_> = processes_with(role).into_iter().filter(|pid| cell.contains(pid)).collect();
        found.sort_unstable();
        found
    }

    /// Its guard's process id, from the kernel's list and not from the agent.
    pub fn guard(&self) -> Option<u32> {
        self.processes("__guard --namespaces").first().copied()
    }

    /// Waits until its Cell is in this state.
    pub fn until_cell_is(&self, dev: &Dev, state: &str) {
        eventually(&format!("{} is {state}", self.cell), Duration::from_secs(180), || {
            let shown = running::run(dev, &["cells", "show", &self.cell, "--output", "json"]);
            (shown.code == 0 && shown.json()["status"]["state"] == state).then_some(())
        });
    }

    /// Waits until the builder has said for the `n`th time that it is up.
    pub fn until_builder_is_up(&self, n: usize) {
        eventually("the builder is up", Duration::from_secs(60), || {
            let log = fs::read_to_string(self.log("builder")).unwrap_or_default();
            (log.matches("builder is up").count() >= n).then_some(())
        });
    }
}

impl Drop for OwnHost {
    /// Cells that outlive their agent must not outlive the test.
    fn drop(&mut self) {
        for guard in self.processes("__guard --namespaces") {
            let _ = kill(Pid::from_raw(guard.cast_signed()), Signal::SIGQUIT);
        }
        // No panic here: the test may be in one already.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.processes("").is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A running agent. Dropping it kills it.
pub struct Agent {
    pub child: Child,
    _life: PipeWriter,
}

impl Agent {
    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order.
    pub fn terminate(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        eventually("it ends", Duration::from_secs(120), || self.child.try_wait().unwrap());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an image of the programs under test in a directory; its name and digest.
pub fn programs(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let sources = [tool("buildkitd"), PathBuf::from(env!("CARGO_BIN_EXE_kiln")), tool("runc")];
    for (name, source) in ["buildkitd", "kiln", "runc"].into_iter().zip(sources) {
        // Files, no links; by name, as the digest's definition says.
        fs::copy(source, dir.join(name)).unwrap();
    }
    let listing = Command::new("sha256sum").args(["buildkitd", "kiln", "runc"]).current_dir(dir).output().unwrap();
    assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
    let name = dir.file_name().unwrap().to_str().unwrap();
    let digest: String = sha2::Sha256::digest(&listing.stdout).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}@sha256:{digest}")
}

fn toml_of(value: &serde_json::Value) -> toml::Value {
    toml::Value::try_from(value).unwrap()
}

/// A new credential for the agent of a host.
fn host_token(installation: &Path, id: &str) -> String {
    let issued = Ran::of(&mut kiln(installation, &["tokens", "create", "--host", id]));
    issued.ok().stdout.trim().to_owned()
}

/// The installation's shared settings, changed.
fn write_settings(file: &Path, installation: &Path, change: impl FnOnce(&mut toml::Table)) {
    let mut settings: toml::Table = fs::read_to_string(installation.join("kiln.toml")).unwrap().parse().unwrap();
    change(&mut settings);
    fs::write(file, toml::to_string(&settings).unwrap()).unwrap();
}
