//! Builds under way on an installation, as their users see them.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::dev::{Dev, eventually, processes_with};
use super::spine::{Ran, kiln, tree};

/// The project of all of them, and the repository of their images.
pub const PROJECT: &str = "faults";
/// The lines that a build's step says, from line 0 on.
pub const LINES: u32 = 20;
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);

/// Says that it is over when it is dropped, so also when a test fails: others go on until then.
pub struct Until<'a>(pub &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A build with one step, whose image differs from attempt to attempt.
pub struct Running<'dev> {
    pub dev: &'dev Dev,
    pub key: String,
    /// `<project>/<key>`
    pub id: String,
    /// What the step's command line and all of its lines have in them, and nothing else on the machine.
    mark: String,
    context: tempfile::TempDir,
}

/// `kiln ARGS` on an installation.
pub fn run(dev: &Dev, args: &[&str]) -> Ran {
    Ran::of(&mut kiln(&dev.data, args))
}

impl<'dev> Running<'dev> {
    /// Starts a build whose step takes `seconds`.
    pub fn start(dev: &'dev Dev, key: &str, seconds: f64) -> Self {
        Self::start_with(dev, key, seconds, &[])
    }

    /// … with more arguments for `kiln up`.
    pub fn start_with(dev: &'dev Dev, key: &str, seconds: f64, more: &[&str]) -> Self {
        let build = Self::of(dev, key, seconds);
        let started = build.up(&[&["--detach"], more].concat()).ok();
        assert_eq!(started.json()["build_id"], build.id.as_str());
        build
    }

    /// … and waits until the step has begun.
    pub fn begin(dev: &'dev Dev, key: &str, seconds: f64) -> Self {
        let build = Self::start(dev, key, seconds);
        build.until_begun();
        build
    }

    /// Not started yet.
    pub fn of(dev: &'dev Dev, key: &str, seconds: f64) -> Self {
        let mark = format!("mark-{}", uuid::Uuid::new_v4().simple());
        let pause = seconds / f64::from(LINES);
        let dockerfile = format!(
            "FROM busybox\nRUN for i in $(seq 0 {LINES}); do echo \"line $i in {mark}\"; test $i = {LINES} || sleep {pause}; \
             done; cat /proc/sys/kernel/random/uuid > /attempt\n"
        );
        let context = tree(&[("Dockerfile", &dockerfile)]);
        Self { dev, key: key.to_owned(), id: format!("{PROJECT}/{key}"), mark, context }
    }

    /// `kiln up` with this build's key, input and tag.
    pub fn up(&self, more: &[&str]) -> Ran {
        let (path, tag) = (self.context.path().to_str().unwrap(), self.tag());
        let mut args = vec!["up", path, "--project", PROJECT, "--key", &self.key, "-t", &tag, "--output", "json"];
        args.extend(more);
        run(self.dev, &args)
    }

    pub fn tag(&self) -> String {
        format!("{}/{PROJECT}:{}", self.dev.ready.registry, self.key)
    }

    pub fn until_begun(&self) {
        eventually("the step has begun", BEGIN_PATIENCE, || self.log().contains(&self.line(0)).then_some(()));
    }

    /// Of all attempts that are there.
    pub fn log(&self) -> String {
        run(self.dev, &["builds", "logs", &self.id]).stdout
    }

    /// The text of the step's line `n`.
    pub fn line(&self, n: u32) -> String {
        format!("line {n} in {}", self.mark)
    }

    pub fn show(&self) -> Value {
        run(self.dev, &["builds", "show", &self.id, "--output", "json"]).ok().json()
    }

    /// Where it is now.
    pub fn cell(&self) -> String {
        self.show()["cell"].as_str().unwrap().to_owned()
    }

    /// Its result, if it has ended.
    pub fn ended(&self) -> Option<Value> {
        let ran = run(self.dev, &["builds", "show", &self.id, "--output", "json"]);
        // An api that was just killed is back soon.
        let shown = (ran.code == 0).then(|| ran.json())?;
        let ended = ["succeeded", "failed", "cancelled"].contains(&shown["status"].as_str().unwrap_or_default());
        ended.then(|| shown["result"].clone())
    }

    /// Waits for its end and gives its result.
    pub fn result(&self, patience: u64) -> Value {
        eventually("the build has ended", Duration::from_secs(patience), || self.ended())
    }

    /// … which is a success.
    pub fn succeeds(&self, patience: u64) -> Value {
        let result = self.result(patience);
        assert_eq!(result["status"], "succeeded", "{}: {result}\n{}", self.id, self.log());
        result
    }

    /// The containers in which a step of it runs now, by their mount namespaces.
    pub fn steps(&self) -> BTreeSet<u64> {
        let spaces = processes_with(&self.mark).into_iter().map(|pid| format!("/proc/{pid}/ns/mnt"));
        // One that has ended meanwhile runs no more.
        spaces.filter_map(|space| std::fs::metadata(space).ok()).map(|space| space.ino()).collect()
    }
}

/// How each attempt ended.
pub fn outcomes(result: &Value) -> Vec<&str> {
    result["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}
