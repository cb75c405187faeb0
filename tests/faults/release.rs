//! Control goes out and back under running builds: a release that takes another branch of the workflow, then the one before it, which
//! only understands that branch.

use std::process::Command;
use std::time::Duration;

use super::{TWO_CELLS, kill_9, process};
use crate::harness::dev::{Dev, eventually};
use crate::harness::running::{Running, outcomes};
use crate::harness::{invariants, tool};

#[test]
fn faults_builds_go_on_under_the_next_release_and_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let armed = dir.path().join("failpoints");
    std::fs::create_dir(&armed).unwrap();
    let dev = Dev::start_with(&dir.path().join("data"), TWO_CELLS, &[("FAILPOINTS", &armed)]);
    let arm = |point: &str| std::fs::write(armed.join(point), "").unwrap();
    let until_gone = |point: &str| {
        eventually(&format!("somebody comes by {point}"), Duration::from_secs(60), || {
            (!armed.join(point).exists()).then_some(())
        });
    };
    let first = Running::begin(&dev, "begun-before", 8.0);
    arm("rehearsal");
    kill_9(process(" control --config", dev.data.to_str().unwrap()));
    until_gone("rehearsal");
    let second = Running::begin(&dev, "begun-between", 12.0);
    // The next release dies with a build that is past the branch; the control that comes after it is of the release before.
    arm("after_outcome");
    until_gone("after_outcome");
    for build in [&first, &second] {
        let result = build.succeeds(60);
        assert_eq!(outcomes(&result), ["built"], "{result}");
    }
    // Which of them came first depends on how long the first killed control was waited for.
    assert!([&first, &second].iter().any(|build| history(&dev, build).contains("core_patch")), "one took the branch");
    invariants::hold(&dev, [&first, &second]);
}

fn history(dev: &Dev, build: &Running<'_>) -> String {
    let id = format!("build/{}", build.id);
    let output = Command::new(tool("temporal"))
        .args(["workflow", "show", "--output", "json", "--workflow-id", &id])
        .args(["--address", &dev.ready.temporal, "--namespace", &dev.ready.namespace])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
