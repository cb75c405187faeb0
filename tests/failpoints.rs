//! A process is killed at each named point of a build's way: the build ends well, is published once, and its tag stands.

use std::time::Duration;

use crate::harness::dev::{Dev, eventually};
use crate::harness::invariants;
use crate::harness::running::{Running, outcomes};

/// Where the process dies, and what becomes of the attempt. What was pushed before the builder died is found in BuildKit's history: it is
/// not built twice.
const POINTS: [(&str, &[&str]); 7] = [
    ("after_admit", &["built"]),
    ("after_solve", &["cell_fault", "built"]),
    ("after_push", &["built"]),
    ("after_report", &["built"]),
    ("after_outcome", &["built"]),
    ("before_tag", &["built"]),
    ("after_tag", &["built"]),
];

#[test]
fn faults_a_process_killed_at_any_named_point_costs_no_build_and_publishes_none_twice() {
    let dir = tempfile::tempdir().unwrap();
    let armed = dir.path().join("failpoints");
    std::fs::create_dir(&armed).unwrap();
    let args = ["--cells", "1", "--slots", "1", "--seed", "busybox"];
    let dev = Dev::start_with(&dir.path().join("data"), &args, &[("FAILPOINTS", &armed)]);
    let mut builds = Vec::new();
    for (point, expected) in POINTS {
        let build = Running::of(&dev, &point.replace('_', "-"), 0.0);
        std::fs::write(armed.join(point), "").unwrap();
        build.up(&[]).ok();
        eventually(&format!("somebody comes by {point}"), Duration::from_secs(10), || {
            (!armed.join(point).exists()).then_some(())
        });
        let result = build.succeeds(10);
        assert_eq!(outcomes(&result), expected, "{point}: {result}");
        // Of what was under way to the log when the builder died, BuildKit knows all.
        let told_again = build.log().contains("its output again, from the beginning");
        assert_eq!(told_again, point == "after_push", "{point}: {}", build.log());
        builds.push(build);
    }
    invariants::hold(&dev, &builds);
}
