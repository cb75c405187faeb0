//! The command line as its users see it: what goes in, everything that comes out, and the exit code.

use std::path::Path;
use std::process::{Command, Output};

use super::harness::free_port;

/// Runs `kiln` in a directory with nothing of this machine's settings.
fn kiln(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir(directory).env_clear().env("HOME", directory).env("PATH", "/usr/bin:/bin");
    command
}

/// Exit code and both streams, with the directory's path as `DIR`.
fn told(directory: &Path, output: Output) -> String {
    let path = directory.canonicalize().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(&*path.to_string_lossy(), "DIR");
    let code = output.status.code().map_or("none".to_owned(), |code| code.to_string());
    format!("exit {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

fn run(directory: &Path, args: &[&str]) -> String {
    told(directory, kiln(directory, args).output().unwrap())
}

/// A directory with a Dockerfile in `web`.
fn with_dockerfile() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("web")).unwrap();
    std::fs::write(directory.path().join("web/Dockerfile"), "FROM scratch\n").unwrap();
    directory
}

#[test]
fn a_missing_path_is_wrong_use() {
    let directory = with_dockerfile();
    assert_eq!(
        run(directory.path(), &["up", "nowhere"]),
        "\
exit 2
--- stdout
--- stderr
kiln: cannot use DIR/nowhere as the context: no such file or directory
"
    );
}

#[test]
fn a_file_is_no_context() {
    let directory = with_dockerfile();
    assert_eq!(
        run(directory.path(), &["up", "web/Dockerfile"]),
        "\
exit 2
--- stdout
--- stderr
kiln: DIR/web/Dockerfile is no directory
  the context is the directory to build; name a Dockerfile with --file
"
    );
}

#[test]
fn a_missing_dockerfile_says_what_was_looked_for() {
    let directory = with_dockerfile();
    assert_eq!(
        run(directory.path(), &["up"]),
        "\
exit 2
--- stdout
--- stderr
kiln: no Dockerfile: looked for DIR/Dockerfile and DIR/dockerfile
  name another one with --file, or another directory
"
    );
    assert_eq!(
        run(directory.path(), &["up", "-f", "other", "web"]),
        "\
exit 2
--- stdout
--- stderr
kiln: no Dockerfile: looked for DIR/other
"
    );
}

#[test]
fn an_invalid_tag_is_named() {
    let directory = with_dockerfile();
    assert_eq!(
        run(directory.path(), &["up", "-t", "r.example/Web:v1", "web"]),
        "\
exit 2
--- stdout
--- stderr
kiln: invalid tag \"r.example/Web:v1\": invalid reference format
  a tag is [host[:port]/]repository[:tag], the repository in lower case
"
    );
}

#[test]
fn an_api_that_is_not_there_is_one_clear_line() {
    let directory = with_dockerfile();
    let api = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(
        run(directory.path(), &["up", "--api", &api, "--progress", "plain", "web"]),
        format!(
            "\
exit 75
--- stdout
--- stderr
kiln: cannot reach the api at {api}/: connection refused
  start one with `kiln dev`, or name another one with --api or KILN_API_URL
"
        )
    );
}

#[test]
fn in_json_a_failure_is_an_object_as_well() {
    let directory = with_dockerfile();
    let output = kiln(directory.path(), &["up", "--output", "json", "nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stdout).unwrap();
    let object: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&object["status"], &object["error"]["class"]), (&"failed".into(), &"usage".into()));
    assert_eq!(object["build_id"], serde_json::Value::Null);
}

/// Of every command, whatever is wrong.
#[test]
fn in_json_mistakes_of_the_line_and_of_settings_are_objects_as_well() {
    let directory = with_dockerfile();
    for (args, url) in [
        (&["up", "--tga", "x", "--output", "json"][..], None),
        (&["up", "--output=json", "--timeout", "0s", "web"], None),
        (&["up", "--output", "json", "web"], Some("nonsense")),
        (&["builds", "ls", "--limit", "many", "--output", "json"], None),
        (&["builds", "--output", "json", "ls"], Some("nonsense")),
        (&["builds", "retry", "--output", "json", "web/a", "--secret", "wrong"], None),
    ] {
        let mut command = kiln(directory.path(), args);
        command.envs(url.map(|url| ("KILN_API_URL", url)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let object: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(object["error"]["class"], "usage", "{args:?}: {text}");
        assert!(object["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
        let is_build = args[0] == "up" || args[1] == "retry";
        assert_eq!(object.get("timings_ms").is_some(), is_build, "{args:?}: {text}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_wrong_use() {
    use std::os::unix::ffi::OsStrExt as _;
    let directory = with_dockerfile();
    let mut command = kiln(directory.path(), &["up", "--build-arg", "DRINK", "web"]);
    let output = command.env("DRINK", std::ffi::OsStr::from_bytes(b"caf\xe9")).output().unwrap();
    assert_eq!(
        told(directory.path(), output),
        "\
exit 2
--- stdout
--- stderr
kiln: the variable DRINK is not UTF-8 text, so it cannot be a build argument
  set it to UTF-8 text, or give the value with --build-arg DRINK=VALUE
"
    );
}

#[test]
fn a_wrong_flag_shows_the_usage() {
    let directory = with_dockerfile();
    let told = run(directory.path(), &["up", "--tga", "x"]);
    assert!(told.starts_with("exit 2\n--- stdout\n--- stderr\nerror: unexpected argument '--tga' found\n"), "{told}");
    let told = run(directory.path(), &["up", "--project", "My Project", "web"]);
    assert!(told.contains("invalid project \"My Project\": must match [a-z0-9][a-z0-9-]{0,62}"), "{told}");
}

#[test]
fn a_setting_that_is_wrong_is_named_with_its_place() {
    let directory = with_dockerfile();
    let mut command = kiln(directory.path(), &["builds", "ls"]);
    let output = command.env("KILN_API_URL", "nonsense").output().unwrap();
    assert_eq!(
        told(directory.path(), output),
        "\
exit 2
--- stdout
--- stderr
kiln: invalid setting api.url = \"nonsense\" (from KILN_API_URL): must be a URL, http://… or https://…
"
    );
}

#[test]
fn config_shows_origins_and_hides_secrets() {
    let directory = with_dockerfile();
    std::fs::write(directory.path().join("kiln.toml"), "[cell]\nslots = 2\n").unwrap();
    let mut command = kiln(directory.path(), &["config", "--output", "json", "--set", "cell.pool=p"]);
    let output = command.env("KILN_API_TOKEN", "kept-to-itself").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("kept-to-itself"), "{text}");
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown = |key: &str| object["settings"][key].clone();
    assert_eq!(shown("cell.slots"), serde_json::json!({"value": 2, "origin": "kiln.toml"}));
    assert_eq!(shown("cell.pool"), serde_json::json!({"value": "p", "origin": "--set"}));
    assert_eq!(shown("api.token"), serde_json::json!({"value": "(secret)", "origin": "KILN_API_TOKEN"}));
    assert_eq!(shown("cell.platform"), serde_json::json!({"value": "", "origin": "default"}));
}

#[test]
fn every_command_explains_itself() {
    let directory = with_dockerfile();
    for command in ["up", "builds", "cells", "projects", "config", "completions", "dev"] {
        let told = run(directory.path(), &[command, "--help"]);
        assert!(told.starts_with("exit 0\n") && told.contains("Usage: kiln"), "{command}: {told}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let told = run(directory.path(), &["completions", shell]);
        assert!(told.starts_with("exit 0\n") && told.contains("no-cache"), "{shell}");
    }
}
