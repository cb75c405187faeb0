//! Projects that share one daemon and one registry: none is served what came from another's secrets, arguments, mounts or private
//! bases, and none publishes or reads where its policy does not say.

use std::fs;
use std::path::Path;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use workflows::contract::BuildStatus;

use crate::harness::dev::eventually;
use crate::harness::gate::{Ask, Gate, Keys};
use crate::harness::plane::{Act, INSTALLATION, Plane};
use crate::harness::spine::{self, Ran, Spine, kiln, tree};

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
    let dir = tree(&[("Dockerfile", "FROM busybox\nRUN --mount=type=ssh,required=true echo never\n")]);
    let ran = one_cell().up(dir.path(), "red-ssh", &[]);
    assert_ne!(ran.code, 0, "{}", ran.all());
    let step = "RUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\" && echo socket > /left || echo none-$((6*7)) > /left";
    let optional = format!("FROM busybox\n{step}\n{LEFT}");
    for project in ["red-ssh", "blue-ssh"] {
        let built = up(&optional, project, &[]);
        assert!(built.stderr.contains("none-42"), "{}", built.all());
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
        eventually("the pool takes it up", Duration::from_secs(20), || {
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

/// `kiln up` with a docker configuration; the result as it is.
fn up_with(config: &Path, dockerfile: &str, project: &str, more: &[&str]) -> Ran {
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let path = dir.path().to_str().unwrap();
    let args = [&["up", path, "--project", project, "--output", "json", "--progress", "plain"], more].concat();
    Ran::of(kiln(&one_cell().data, &args).env("DOCKER_CONFIG", config))
}

/// The daemon has the private image from the project that may read it, and gives it to no other: neither by tag nor by digest, as a
/// base, as the source of a copy or of a mount, nor through `ONBUILD` of a base that is the project's own.
#[tokio::test(flavor = "multi_thread")]
async fn no_project_gets_a_private_base_that_the_daemon_has_from_another() {
    let gate =
        Gate::open(&one_cell().ready.registry, Ask::TokenForPassword(Duration::from_secs(60)), &Keys::new()).await;
    let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    gate.docker_config(with.path());
    let tag = format!("{}/private/base:v1", gate.address);
    let made = up_with(with.path(), "FROM busybox\nRUN echo of red > /private\n", "red-base", &["-t", &tag]).ok();
    let out = format!("{}/private/out:v1", gate.address);
    let pinned = format!("{}/private/base@{}", gate.address, made.json()["digest"].as_str().unwrap());
    let uses = |image: &str| {
        [
            format!("FROM {image}\nRUN cat /private\n"),
            format!("FROM busybox\nCOPY --from={image} /private /\nRUN cat /private\n"),
            format!("FROM busybox\nRUN --mount=from={image},target=/m cat /m/private\n"),
            format!("ARG WHERE={image}\nFROM ${{WHERE%nothing}}\nRUN cat /private\n"),
        ]
    };
    for dockerfile in [tag.as_str(), pinned.as_str()].into_iter().flat_map(uses) {
        let red = up_with(with.path(), &dockerfile, "red-base", &["--no-cache", "-t", &out]).ok();
        assert!(red.stderr.contains("of red"), "{dockerfile}: {}", red.all());
        let blue = up_with(without.path(), &dockerfile, "blue-base", &[]);
        assert_eq!(blue.code, 1, "{dockerfile}: {}", blue.all());
        let error = &blue.json()["error"];
        assert_eq!(error["class"], "user_error", "{dockerfile}: {error}");
        assert!(error["message"].as_str().unwrap().contains(&gate.address), "{dockerfile}: {error}");
    }
    let own = format!("{}/blue-base/onbuild:v1", one_cell().ready.registry);
    let trigger = format!("FROM busybox\nONBUILD COPY --from={pinned} /private /\n");
    up_with(without.path(), &trigger, "blue-base", &["-t", &own]).ok();
    let blue = up_with(without.path(), &format!("FROM {own}\nRUN cat /private\n"), "blue-base", &[]);
    assert_eq!(blue.code, 1, "{}", blue.all());
    let own = format!("{}/red-base/onbuild:v1", one_cell().ready.registry);
    up_with(with.path(), &trigger, "red-base", &["-t", &own]).ok();
    let red = up_with(with.path(), &format!("FROM {own}\nRUN cat /private\n"), "red-base", &["-t", &out]).ok();
    assert!(red.stderr.contains("of red"), "{}", red.all());
}

/// An unreadable base of a stage that is not built is no reason to fail.
#[test]
fn a_base_that_no_stage_needs_may_be_unreadable() {
    let dockerfile = "FROM busybox AS wanted\nFROM 127.0.0.1:1/no/such:image\n";
    one_cell().up(tree(&[("Dockerfile", dockerfile)]).path(), "red-stages", &["--target", "wanted"]).ok();
}

/// What `-t` names is written by its own project alone, and what `FROM` names is read by it alone.
#[test]
fn a_projects_images_in_the_installations_registry_are_its_own() {
    let registry = &one_cell().ready.registry;
    let port = registry.rsplit_once(':').unwrap().1;
    let dir = tree(&[("Dockerfile", "FROM busybox\nLABEL of=blue\n")]);
    let theirs = format!("{registry}/blue:tag");
    let blue = one_cell().up(dir.path(), "blue", &["-t", &theirs]).ok().json();
    let red = tree(&[("Dockerfile", "FROM busybox\nLABEL of=red\n")]);
    for tag in [
        theirs.clone(),
        format!("localhost:{port}/blue:tag"),
        format!("{registry}/library/busybox:latest"),
        format!("{registry}/redder/app:v1"),
    ] {
        let ran = one_cell().up(red.path(), "red", &["-t", &tag]);
        assert_eq!(ran.code, 3, "{tag}: {}", ran.all());
    }
    for image in [
        theirs.clone(),
        format!("localhost:{port}/blue:tag"),
        format!("{registry}/blue@{}", blue["digest"].as_str().unwrap()),
    ] {
        let ran = one_cell().up(tree(&[("Dockerfile", &format!("FROM {image}\n"))]).path(), "red", &[]);
        assert_eq!(ran.code, 3, "{image}: {}", ran.all());
    }
    one_cell().kiln(&["projects", "set", "red", "--repositories", &format!("own,{registry}/blue")]).ok();
    one_cell().up(tree(&[("Dockerfile", &format!("FROM {theirs}\nLABEL by=red\n"))]).path(), "red", &[]).ok();
    one_cell().kiln(&["projects", "set", "red", "--repositories", "default"]).ok();
    let ran = one_cell().up(red.path(), "red", &["-t", &theirs]);
    assert_eq!(ran.code, 3, "{}", ran.all());
}

/// A workflow can be started without the command line and the api.
#[tokio::test(flavor = "multi_thread")]
async fn admit_refuses_what_the_api_would_have_refused() {
    let plane = Plane::start(1, 1, 0, |_| Act::Push("image".into())).await;
    let with_tag = |tag: &str| {
        let mut input = plane.input("v1");
        input.tags = vec![format!("{INSTALLATION}/{tag}")];
        input
    };
    let project = plane.input("v1").project;
    for tag in [format!("not-{project}/app:v1"), format!("{project}x:v1"), "app:v1".to_owned()] {
        let refused = plane.build("other-namespace", &with_tag(&tag)).await.unwrap_err();
        assert_eq!(refused.class, "refused", "{tag}: {refused:?}");
    }
    let mut salted = plane.input("v1");
    salted.args.insert("BUILDKIT_SANDBOX_HOSTNAME".into(), "x".into());
    let refused = plane.build("salted", &salted).await.unwrap_err();
    assert_eq!(refused.class, "refused", "{refused:?}");
    let built = plane.build("plain", &plane.input("v1")).await.unwrap();
    assert_eq!(built.status, BuildStatus::Succeeded);
}
