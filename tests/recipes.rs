//! The recipes of docs/contract.md, run as they are written there: only the names of the example (registry, snapshot, key, address) are
//! replaced by real ones, and a program is put around what is a part of one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::harness::dev::eventually;
use crate::harness::spine::{Ran, Spine, kiln, start, tree};
use crate::harness::tool;

const CONTRACT: &str = include_str!("../docs/contract.md");
/// The SDK that the Python recipe is run with, from PyPI.
const PYTHON_SDK: &str = "temporalio==1.35.0";

/// An installation of their own: a recipe drains one of its cells.
fn installation() -> &'static Spine {
    static SPINE: OnceLock<Spine> = OnceLock::new();
    SPINE.get_or_init(|| start("recipes", &["--cells", "2", "--slots", "4", "--seed", "busybox"]))
}

/// The block of code of this language in which `word` stands, as it is written.
fn recipe(language: &str, word: &str) -> String {
    let blocks = CONTRACT.split("\n```").filter_map(|block| block.strip_prefix(language));
    let mut found = blocks.filter(|block| block.starts_with('\n') && block.contains(word));
    found.next().unwrap_or_else(|| panic!("no recipe in {language} with {word:?}")).to_owned()
}

/// A stored snapshot of a Dockerfile, by an ordinary build.
fn snapshot(name: &str, dockerfile: &str) -> String {
    let spine = installation();
    let dir = tree(&[("Dockerfile", dockerfile)]);
    let args = ["up", dir.path().to_str().unwrap(), "--project", "shop", "--key", name, "--detach", "--output", "json"];
    Ran::of(&mut kiln(&spine.data, &args)).ok();
    shown(&format!("shop/{name}"))["snapshot"].as_str().unwrap().to_owned()
}

fn good(name: &str) -> String {
    snapshot(name, &format!("FROM busybox\nRUN echo {name} > /name\n"))
}

fn shown(build: &str) -> Value {
    Ran::of(&mut kiln(&installation().data, &["builds", "show", build, "--output", "json"])).ok().json()
}

/// The recipe with real names; `key` stands for `web-4f2a`.
fn with_names(recipe: &str, snapshot: &str, key: &str) -> String {
    let ready = &installation().ready;
    let names = [
        ("<64 hex digits>", snapshot),
        ("registry.example", &ready.registry),
        ("temporal.example:7233", &ready.temporal),
        ("web-4f2a", key),
        ("cell/default/c1", "cell/default/dev-2"),
    ];
    names.iter().fold(recipe.to_owned(), |text, (example, real)| text.replace(example, real))
}

/// The commands of a shell recipe; a line that ends with a backslash goes on.
fn commands(recipe: &str) -> Vec<String> {
    let joined = recipe.replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Runs a command line by a shell in which its tool is found and knows the server.
fn shell(command: &str) -> String {
    let ready = &installation().ready;
    let name = command.split(' ').next().unwrap();
    let directories = [tool(name).parent().unwrap().to_owned()];
    let path = std::env::join_paths(directories.into_iter().chain(["/usr/bin".into(), "/bin".into()])).unwrap();
    let output = Command::new("bash")
        .args(["-euc", command])
        .env("PATH", path)
        .env("TEMPORAL_ADDRESS", &ready.temporal)
        .env("TEMPORAL_CLI_ADDRESS", &ready.temporal)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A build that was started without the api is known to it once control has admitted it.
fn until_status(key: &str, status: &str) {
    eventually(status, Duration::from_secs(60), || {
        let args = ["builds", "show", &format!("shop/{key}"), "--output", "json"];
        let ran = Ran::of(&mut kiln(&installation().data, &args));
        (ran.code == 0 && ran.json()["status"] == status).then_some(())
    });
}

#[test]
fn the_temporal_commands_recipe() {
    let recipe = recipe("sh", "temporal workflow start");
    let run = commands(&with_names(&recipe, &good("for-temporal"), "web-temporal"));
    let [start, result, query, _] = run.as_slice() else { panic!("{run:#?}") };
    shell(start);
    assert!(shell(result).contains("COMPLETED"), "the build closes as completed");
    assert!(shell(query).contains("succeeded"));

    let slow = snapshot("slow", "FROM busybox\nRUN sleep 600\n");
    Ran::of(&mut kiln(&installation().data, &["builds", "cancel", "shop/slow"])).ok();
    let run = commands(&with_names(&recipe, &slow, "web-cancelled"));
    shell(&run[0]);
    until_status("web-cancelled", "running");
    shell(&run[3]);
    until_status("web-cancelled", "cancelled");
}

#[test]
fn the_tctl_recipes() {
    let build = recipe("sh", "tctl workflow start");
    let run = commands(&with_names(&build, &good("for-tctl"), "web-tctl"));
    let [start, query] = run.as_slice() else { panic!("{run:#?}") };
    shell(start);
    until_status("web-tctl", "succeeded");
    assert!(shell(query).contains("succeeded"));

    let cell = commands(&with_names(&recipe("sh", "tctl workflow signal"), "", ""));
    let with = |words: &str| cell.iter().find(|command| command.contains(words)).expect("such a command");
    let (drain, undrain) = (with("-n drain"), with("--name undrain"));
    let state = || shell("temporal workflow query --workflow-id cell/default/dev-2 --type status");
    shell(drain);
    eventually("it drains", Duration::from_secs(30), || state().contains("disk replacement").then_some(()));
    shell(undrain);
    eventually("it is ready", Duration::from_secs(30), || state().contains("ready").then_some(()));
}

/// A place that outlives the test, for what is fetched and compiled once.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn done(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A Python that has the SDK.
fn python() -> PathBuf {
    let directory = kept(&format!("recipes-{PYTHON_SDK}"));
    let python = directory.join("bin/python");
    let whole = directory.join("whole");
    if !whole.exists() {
        done(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory));
        done(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYTHON_SDK]));
        std::fs::write(whole, "").unwrap();
    }
    python
}

/// The recipe in a program that has what it takes for granted: the imports, the snapshot, a coroutine around it.
fn python_program(snapshot: &str, key: &str) -> String {
    let recipe = with_names(&recipe("python", "Client.connect"), snapshot, key).replace('\n', "\n    ");
    format!(
        "import asyncio\n\
         from temporalio.client import Client, WorkflowFailureError\n\
         from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy\n\
         snapshot = {snapshot:?}\n\
         async def main():{recipe}\n    \
             return result\n\
         print(asyncio.run(main())[\"status\"])\n"
    )
}

#[test]
#[ignore = "fetches an SDK: make recipes"]
fn the_python_recipe() {
    let python = python();
    let run = |snapshot: &str, key: &str| {
        Ran::from(Command::new(&python).args(["-c", &python_program(snapshot, key)]).output().unwrap())
    };
    assert_eq!(run(&good("for-python"), "web-python").ok().stdout, "succeeded\n");
    let missing = run(&"0".repeat(64), "web-python-missing");
    assert_eq!(missing.code, 1, "{}", missing.all());
    assert!(missing.stderr.contains("is not stored for this project"), "{}", missing.all());
}

/// The recipe in `tests/recipes/go`, built.
fn go_program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recipes/go");
    let directory = kept("recipes-go");
    std::fs::create_dir_all(&directory).unwrap();
    for name in ["go.mod", "go.sum"] {
        std::fs::copy(source.join(name), directory.join(name)).unwrap();
    }
    let program = std::fs::read_to_string(source.join("main.go")).unwrap();
    let recipe = recipe("go", "c.ExecuteWorkflow")
        .replace("\"registry.example", "registry+\"")
        .replace("build/shop/web-4f2a", "\"+id+\"");
    std::fs::write(directory.join("main.go"), program.replace("\t// the recipe\n", &recipe)).unwrap();
    let mut build = Command::new("go");
    build
        .args(["build", "-mod=readonly", "-o", "recipe", "."])
        .current_dir(&directory)
        .env("GOFLAGS", "-buildvcs=false");
    done(&mut build);
    directory.join("recipe")
}

#[test]
#[ignore = "compiles an SDK: make recipes"]
fn the_go_recipe() {
    let program = go_program();
    let ready = &installation().ready;
    let run = |snapshot: &str, key: &str| {
        let args = [&ready.temporal, &ready.registry, snapshot, &format!("build/shop/{key}")];
        Ran::from(Command::new(&program).args(args).output().unwrap())
    };
    // The SDK's own log goes to standard output as well.
    let last = |ran: &Ran| ran.stdout.lines().last().unwrap_or_default().to_owned();
    assert_eq!(last(&run(&good("for-go"), "web-go").ok()), "succeeded");
    let missing = run(&"0".repeat(64), "web-go-missing");
    assert_eq!((missing.code, last(&missing).as_str()), (1, "refused"), "{}", missing.all());
}
