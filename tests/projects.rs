//! Projects that share one daemon: none is served what came from another's secrets, arguments or mounts.

use std::fs;
use std::sync::{OnceLock, PoisonError, RwLock};

use crate::harness::dev::eventually;
use crate::harness::spine::{self, Ran, Spine, tree};

/// Held while a test counts on the pool's settings; the one that changes them holds it alone.
static POOL: RwLock<()> = RwLock::new(());

/// One cell, so that every build is on the same daemon.
fn one_cell() -> &'static Spine {
    static SPINE: OnceLock<Spine> = OnceLock::new();
    SPINE.get_or_init(|| spine::start("projects", &["--cells", "1", "--slots", "2", "--seed", "busybox"]))
}

/// Builds one Dockerfile for a project. Its last step, which no project has built before, prints what the steps before it left.
fn up(dockerfile: &str, project: &str, more: &[&str]) -> Ran {
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let who = format!("WHO={project}");
    let args = [&["--build-arg", who.as_str()], more].concat();
    one_cell().up(dir.path(), project, &args).ok()
}

const LEFT: &str = "ARG WHO\nRUN echo for $WHO && cat /left\n";

#[test]
fn no_project_is_served_what_anothers_secret_left() {
    let _pool = POOL.read().unwrap_or_else(PoisonError::into_inner);
    let step = "RUN --mount=type=secret,id=tok cat /run/secrets/tok > /left 2>/dev/null || echo no secret > /left";
    let dockerfile = format!("FROM busybox\n{step}\n{LEFT}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "the secret of red\n").unwrap();
    let secret = format!("id=tok,src={}", file.path().display());
    let red = up(&dockerfile, "red-secret", &["--secret", &secret]);
    assert!(red.stderr.contains("the secret of red"), "{}", red.all());
    let blue = up(&dockerfile, "blue-secret", &[]);
    assert!(blue.stderr.contains("no secret") && !blue.stderr.contains("the secret of red"), "{}", blue.all());
    let again = up(&dockerfile, "red-secret", &["--secret", &secret]).json();
    assert_eq!(again["cached_steps"], again["total_steps"], "a project still finds its own results: {again}");
}

#[test]
fn no_project_is_served_what_anothers_proxy_argument_left() {
    let _pool = POOL.read().unwrap_or_else(PoisonError::into_inner);
    let dockerfile = format!("FROM busybox\nRUN echo \"through $HTTP_PROXY\" > /left\n{LEFT}");
    for project in ["red", "blue"] {
        let proxy = format!("HTTP_PROXY=http://{project}.example:3128");
        let built = up(&dockerfile, &format!("{project}-proxy"), &["--build-arg", &proxy]);
        let own = format!("through http://{project}.example:3128");
        assert!(built.stderr.contains(&own), "{}", built.all());
    }
}

#[test]
fn no_project_is_served_what_anothers_cache_mount_left() {
    let _pool = POOL.read().unwrap_or_else(PoisonError::into_inner);
    let mount = "RUN --mount=type=cache,target=/c";
    let fill = format!("FROM busybox\nARG WHO\n{mount} echo kept by $WHO > /c/kept\n");
    up(&fill, "red-mount", &[]);
    let copy = format!("FROM busybox\n{mount} cp /c/kept /left 2>/dev/null || echo an empty mount > /left\n{LEFT}");
    let red = up(&copy, "red-mount", &[]);
    assert!(red.stderr.contains("kept by red-mount"), "{}", red.all());
    let blue = up(&copy, "blue-mount", &[]);
    assert!(blue.stderr.contains("an empty mount") && !blue.stderr.contains("kept by red"), "{}", blue.all());
}

/// Kiln forwards no ssh agent: a step that needs one fails and takes no other's result.
#[test]
fn a_step_that_needs_an_ssh_agent_fails_for_every_project() {
    let dir = tree(&[("Dockerfile", "FROM busybox\nRUN --mount=type=ssh echo never\n")]);
    let ran = one_cell().up(dir.path(), "red-ssh", &[]);
    assert_ne!(ran.code, 0, "{}", ran.all());
    let optional = format!("FROM busybox\nRUN --mount=type=ssh,required=false echo \"$SSH_AUTH_SOCK.\" > /left\n{LEFT}");
    for project in ["red-ssh", "blue-ssh"] {
        let built = up(&optional, project, &[]);
        assert!(!built.stderr.contains("/run/buildkit/ssh_agent"), "{}", built.all());
    }
}

#[test]
fn arguments_that_would_undo_the_isolation_are_refused() {
    let dir = tree(&[("Dockerfile", "FROM busybox\n")]);
    for name in ["BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_OF_A_LATER_VERSION"] {
        let ran = one_cell().up(dir.path(), "red-args", &["--build-arg", &format!("{name}=x")]);
        assert_eq!(ran.code, 3, "{name}: {}", ran.all());
    }
    one_cell().up(dir.path(), "red-args", &["--build-arg", "BUILDKIT_INLINE_CACHE=1"]).ok();
}

#[test]
fn a_pool_of_projects_that_trust_each_other_shares_results() {
    let _pool = POOL.write().unwrap_or_else(PoisonError::into_inner);
    let set = |isolation: &str| {
        one_cell().kiln(&["pools", "set", "default", "--isolation", isolation]).ok();
        eventually("the pool takes it up", std::time::Duration::from_secs(20), || {
            let shown = one_cell().kiln(&["pools", "show", "default", "--output", "json"]).ok().json();
            (shown["settings"]["isolation"] == isolation).then_some(())
        });
    };
    let dockerfile = "FROM busybox\nRUN echo the same for all\n";
    let dir = tree(&[("Dockerfile", dockerfile)]);
    set("none");
    one_cell().up(dir.path(), "red-trusts", &[]).ok();
    let shared = one_cell().up(dir.path(), "blue-trusts", &[]).ok().json();
    set("project");
    let apart = one_cell().up(dir.path(), "blue-trusts", &[]).ok().json();
    assert_eq!(shared["cached_steps"], shared["total_steps"], "{shared}");
    assert!(apart["cached_steps"].as_u64() < apart["total_steps"].as_u64(), "{apart}");
}
