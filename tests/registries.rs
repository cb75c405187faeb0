//! Registries that are busy, say no, or hold nothing, under whole builds: a proxy in front of the real one spoils its answers.

use std::path::Path;

use crate::harness::dev::registry_port;
use crate::harness::fault_proxy::{Fault, FaultProxy};
use crate::harness::spine::{Ran, spine, tree};

const ALWAYS: usize = 1_000_000;

async fn proxy() -> FaultProxy {
    FaultProxy::start_at(spine().ready.registry.parse().unwrap(), registry_port()).await
}

fn status(code: u16) -> Fault {
    Fault::Status { code, retry_after: None }
}

fn push(dir: &Path, proxy: &FaultProxy, repository: &str) -> Ran {
    spine().up(dir, "registries", &["-t", &format!("{}/{repository}:v1", proxy.address())])
}

/// With a layer of its own, which has to be pushed.
fn app(name: &str) -> tempfile::TempDir {
    tree(&[("Dockerfile", "FROM busybox\nCOPY name /\n"), ("name", name)])
}

/// Uploads, the manifest by digest (both by buildkitd), and the tag (by Kiln): each meets a registry that is busy at first.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_delays_a_build_and_no_more() {
    let proxy = proxy().await;
    for (times, part, code, retry_after) in [
        (2, "POST /v2/busy/app/blobs/uploads/", 500, None),
        (1, "PUT /v2/busy/app/blobs/uploads/", 503, None),
        (2, "PUT /v2/busy/app/manifests/sha256", 429, Some(1)),
        (1, "HEAD /v2/busy/app/manifests/v1", 500, None),
        (2, "PUT /v2/busy/app/manifests/v1", 429, Some(2)),
    ] {
        proxy.fail(times, part, Fault::Status { code, retry_after });
    }
    proxy.fail(1, "PUT /v2/busy/app/manifests/v1", Fault::CutResponse { after: 0 });
    proxy.fail(1, "HEAD /v2/busy/app/manifests/v1", Fault::Stall);
    let ran = push(app("busy").path(), &proxy, "busy/app").ok();
    assert_eq!(ran.json()["attempts"], 1, "{}", ran.all());
    assert_eq!(proxy.pending(), 0, "every fault has met its request: {:?}", proxy.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_no_is_named_with_what_to_do() {
    for (code, advice) in [(401, "docker login "), (403, "docker login "), (404, "check the name")] {
        // At the push, and at the base image.
        for to_push in [true, false] {
            let proxy = proxy().await;
            proxy.fail(ALWAYS, "/v2/", status(code));
            let address = proxy.address();
            let ran = match to_push {
                true => push(app(&format!("refused with {code}")).path(), &proxy, "refused/app"),
                false => {
                    let base = tree(&[("Dockerfile", &format!("FROM {address}/library/base\nLABEL code={code}\n"))]);
                    spine().up(base.path(), "registries", &[])
                }
            };
            assert_eq!(ran.code, 1, "{code}: {}", ran.all());
            let error = &ran.json()["error"];
            assert_eq!(error["class"], "user_error", "{error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(&format!("registry {address}")), "{code}: {message}");
            assert!(message.contains(advice), "{code}: {message}");
            assert!(!ran.stderr.contains("trying again"), "{}", ran.all());
        }
    }
}

/// The image is pushed; only the tag is refused, to Kiln's own request.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_the_tag_alone_is_named_with_what_to_do() {
    let proxy = proxy().await;
    proxy.fail(ALWAYS, "PUT /v2/tagless/app/manifests/v1", status(403));
    let ran = push(app("tagless").path(), &proxy, "tagless/app");
    assert_eq!(ran.code, 1, "{}", ran.all());
    let message = ran.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("docker login {}", proxy.address())), "{message}");
}
