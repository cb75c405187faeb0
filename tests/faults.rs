//! Builds while things are killed, stopped and filled up: each ends well elsewhere or again, with one tag and nothing doubled.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::dev::{Dev, eventually, processes_with};
use crate::harness::spine::{Ran, kiln, tree};
use crate::harness::tool;

const TWO_CELLS: &[&str] = &["--cells", "2", "--slots", "1", "--seed", "busybox"];
/// Long enough to be hit in its middle.
const SLOW: &str = "FROM busybox\nRUN echo begun; sleep 6; echo finished\n";

/// A running build that has begun its step.
struct Running {
    _dir: tempfile::TempDir,
    id: String,
}

fn run(data: &Path, args: &[&str]) -> Ran {
    kiln(data, args).output().unwrap().into()
}

fn begin(dev: &Dev, dockerfile: &str, key: &str) -> Running {
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let path = dir.path().to_str().unwrap();
    let args = ["up", path, "--project", "faults", "--key", key, "--detach", "--output", "json"];
    let id = run(&dev.data, &args).ok().json()["build_id"].as_str().unwrap().to_owned();
    eventually("the step has begun", Duration::from_secs(30), || {
        run(&dev.data, &["builds", "logs", &id]).stdout.contains("begun").then_some(())
    });
    Running { _dir: dir, id }
}

impl Running {
    fn show(&self, dev: &Dev) -> Value {
        run(&dev.data, &["builds", "show", &self.id, "--output", "json"]).json()
    }

    fn cell(&self, dev: &Dev) -> String {
        self.show(dev)["cell"].as_str().unwrap().to_owned()
    }

    /// Waits for its end and gives its result.
    fn result(&self, dev: &Dev, patience: u64) -> Value {
        eventually("the build has ended", Duration::from_secs(patience), || {
            let shown = self.show(dev);
            let ended = ["succeeded", "failed", "cancelled"].contains(&shown["status"].as_str().unwrap_or_default());
            ended.then(|| shown["result"].clone())
        })
    }
}

/// The one process whose command line has both texts and that is no guard of another.
fn process(text: &str, also: &str) -> Pid {
    let of_both = processes_with(text).into_iter().filter(|pid| processes_with(also).contains(pid));
    let found: Vec<u32> = of_both.filter(|pid| !processes_with("__guard").contains(pid)).collect();
    assert_eq!(found.len(), 1, "{text:?} and {also:?}: {found:?}");
    Pid::from_raw(found[0].cast_signed())
}

fn outcomes(result: &Value) -> Vec<&str> {
    result["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}

#[test]
fn faults_a_killed_builders_build_is_tried_again_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = begin(&dev, SLOW, "builder");
    let cell = build.cell(&dev);
    let config = dev.data.join("cells").join(&cell).join("kiln.toml");
    kill(process(" builder ", config.to_str().unwrap()), Signal::SIGKILL).unwrap();
    let result = build.result(&dev, 40);
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(outcomes(&result), ["cell_fault", "built"]);
    assert_eq!(result["tags"].as_array().unwrap().len(), 1);
    assert_eq!(result["tags"][0]["outcome"], "written");
}

#[test]
fn faults_a_killed_buildkitds_build_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = begin(&dev, SLOW, "buildkitd");
    let cell = build.cell(&dev);
    let config = dev.data.join("cells").join(&cell).join("buildkitd.toml");
    kill(process("buildkitd --config", config.to_str().unwrap()), Signal::SIGKILL).unwrap();
    let result = build.result(&dev, 60);
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(outcomes(&result), ["cell_fault", "built"]);
}

#[test]
fn faults_a_killed_host_agent_costs_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = begin(&dev, SLOW, "agent");
    let guards = processes_with("__guard --namespaces");
    let config = dev.data.join("host.toml");
    kill(process(" host ", config.to_str().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another agent has adopted both cells", Duration::from_secs(30), || {
        let log = std::fs::read_to_string(dev.data.join("logs/host.log")).unwrap_or_default();
        (log.matches("adopted").count() == 2).then_some(())
    });
    let result = build.result(&dev, 40);
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(outcomes(&result), ["built"]);
    let ours = processes_with(dev.data.to_str().unwrap());
    let kept = guards.iter().filter(|guard| ours.contains(guard)).count();
    assert_eq!(kept, 2, "the cells' guards are the same");
    let footprint = dev.footprint();
    dev.kill_9();
    footprint.is_gone();
}

#[test]
fn faults_temporal_stopped_for_20_s_restarts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = begin(&dev, SLOW, "temporal");
    let server = process("server start-dev", dev.data.to_str().unwrap());
    kill(server, Signal::SIGSTOP).unwrap();
    // The outage itself, not a wait for something.
    std::thread::sleep(Duration::from_secs(20));
    kill(server, Signal::SIGCONT).unwrap();
    let result = build.result(&dev, 60);
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(outcomes(&result), ["built"]);
}

/// Its first run stays in its step; any further one finds what that left in the cache mount, and ends.
const ONCE: &str = "FROM busybox\nRUN --mount=type=cache,target=/c echo begun; test -e /c/was || { touch /c/was; sleep 120; }; : \
                    kiln-faults-once\n";

fn tctl(dev: &Dev, args: &[&str]) {
    let mut command = std::process::Command::new(tool("tctl"));
    command.args(["--ns", &dev.ready.namespace, "--address", &dev.ready.temporal, "workflow"]).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Somebody terminates a build behind Kiln's back: its cell is free again within seconds, and the key builds again.
#[test]
fn faults_a_terminated_build_frees_its_cell_and_its_key_builds_again() {
    let dir = tempfile::tempdir().unwrap();
    // The one cell: another one would not have what the first run left.
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--slots", "1", "--seed", "busybox"]);
    let build = begin(&dev, ONCE, "terminated");
    tctl(&dev, &["terminate", "-w", "build/faults/terminated", "-re", "a test"]);
    eventually("the step has ended", Duration::from_secs(30), || {
        processes_with("kiln-faults-once").is_empty().then_some(())
    });
    let path = build._dir.path().to_str().unwrap();
    let again = run(&dev.data, &["up", path, "--project", "faults", "--key", "terminated", "--output", "json"]).ok();
    assert_eq!(again.json()["status"], "succeeded", "{}", again.all());
    assert_eq!(build.result(&dev, 10)["status"], "succeeded");
}

/// Somebody resets a build in mid-build: the new run builds, the former one's attempt publishes nothing.
#[test]
fn faults_a_reset_build_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), TWO_CELLS);
    let build = begin(&dev, SLOW, "reset");
    let first = build.show(&dev)["run_id"].clone();
    tctl(&dev, &["reset", "-w", "build/faults/reset", "--reset_type", "FirstWorkflowTask", "--reason", "a test"]);
    let result = build.result(&dev, 90);
    assert_eq!((&result["status"], outcomes(&result)), (&Value::from("succeeded"), vec!["built"]));
    assert_ne!(build.show(&dev)["run_id"], first, "it is the new run that ended");
    assert_eq!(result["tags"][0]["outcome"], "written");
    let tag = result["tags"][0]["tag"].as_str().unwrap().rsplit_once(':').unwrap().1;
    assert_eq!(super::failpoints::digest_of(&dev, "faults", tag), result["digest"]);
}
