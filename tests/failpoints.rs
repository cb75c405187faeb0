//! A process is killed at each named point of a build's way: the build ends well, is published once, and its tag stands.

use std::time::Duration;

use serde_json::Value;

use crate::harness::dev::Dev;
use crate::harness::spine::{Ran, kiln, tree};

/// Where the process dies.
const POINTS: [&str; 5] = ["after_admit", "after_push", "after_outcome", "before_tag", "after_tag"];

#[test]
fn faults_a_process_killed_at_any_named_point_costs_no_build_and_publishes_none_twice() {
    let dir = tempfile::tempdir().unwrap();
    let armed = dir.path().join("failpoints");
    std::fs::create_dir(&armed).unwrap();
    let args = ["--cells", "1", "--slots", "1", "--seed", "busybox"];
    let dev = Dev::start_with(&dir.path().join("data"), &args, &[("FAILPOINTS", &armed)]);
    for point in POINTS {
        let tree = tree(&[("Dockerfile", &format!("FROM busybox\nRUN echo {point} > /point\n"))]);
        std::fs::write(armed.join(point), "").unwrap();
        let tag = format!("{}/failpoints:{point}", dev.ready.registry);
        let args = ["up", tree.path().to_str().unwrap(), "--project", "points", "--key", point, "-t", &tag];
        let ran: Ran = kiln(&dev.data, &args).args(["--output", "json"]).output().unwrap().into();
        let result = ran.ok().json();
        assert!(!armed.join(point).exists(), "nothing came by {point}");
        assert_eq!(result["status"], "succeeded", "{point}: {result}");
        // What was pushed before the builder died is found in BuildKit's history: it is not built twice.
        assert_eq!(result["attempts"], 1, "{point}: {result}");
        assert_eq!(digest_of(&dev, "failpoints", point), result["digest"], "{point}");
        // The same key again: the recorded outcome, nothing is built.
        let again: Ran = kiln(&dev.data, &args).args(["--output", "json"]).output().unwrap().into();
        assert_eq!(again.ok().json()["digest"], result["digest"], "{point}");
    }
}

/// The digest that the registry has under the tag.
pub fn digest_of(dev: &Dev, repository: &str, tag: &str) -> Value {
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", dev.ready.registry);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let answer = client.get(url).header("accept", accept).send().await.unwrap().error_for_status().unwrap();
        answer.headers()["docker-content-digest"].to_str().unwrap().into()
    })
}
