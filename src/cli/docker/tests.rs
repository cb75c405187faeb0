use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use activities::sealed::Hidden;

use super::*;

/// A helper that knows one server, notes what it was asked, and fails on another one.
const HELPER: &str = r#"#!/bin/sh
read server
echo "$1 $server" >> "$(dirname "$0")/asked"
case "$server" in
  ghcr.io) echo '{"ServerURL":"ghcr.io","Username":"jo","Secret":"from helper"}' ;;
  https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"<token>","Secret":"refresh"}' ;;
  broken.example) echo "keychain is locked" >&2; exit 1 ;;
  *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"#;

fn config(directory: &Path, json: &str) -> DockerConfig {
    let helper = directory.join("docker-credential-fake");
    std::fs::write(&helper, HELPER).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(directory.join("config.json"), json).unwrap();
    let file = ConfigFile::read(&directory.join("config.json")).unwrap();
    DockerConfig { file, search: Some(directory.to_owned()) }
}

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn password(username: &str, password: &str) -> Credential {
    Credential::Password { username: username.into(), password: Hidden::new(password) }
}

#[tokio::test]
async fn the_file_holds_credentials_under_any_of_dockers_keys() {
    let directory = tempfile::tempdir().unwrap();
    // am86c2VjcmV0OnBhcnQ= is jo:secret:part
    let config = config(
        directory.path(),
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "am86c2VjcmV0OnBhcnQ"},
            "http://r.example:5000/v2/": {"username": "sam", "password": "pw"},
            "token.example": {"auth": "am86eA==", "identitytoken": "refresh"},
            "bearer.example": {"registrytoken": "bearer"},
            "empty.example": {},
            "unasked.example": {"auth": "am86eA=="}},
          "HttpHeaders": {"a": "b"}}"#,
    );
    let asked = ["docker.io", "r.example:5000", "token.example", "bearer.example", "empty.example", "none.example"];
    let found = config.resolve(&hosts(&asked)).await;
    let expected = [
        ("bearer.example", Credential::RegistryToken { registry_token: Hidden::new("bearer") }),
        ("docker.io", password("jo", "secret:part")),
        ("r.example:5000", password("sam", "pw")),
        ("token.example", Credential::IdentityToken { identity_token: Hidden::new("refresh") }),
    ];
    assert_eq!(found.credentials, expected.map(|(host, credential)| (host.to_owned(), credential)).into());
    assert_eq!(found.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn helpers_are_asked_for_the_hosts_that_count_only() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(
        directory.path(),
        r#"{"auths": {"own.example": {"auth": "am86eA=="}, "https://ghcr.io": {}},
            "credHelpers": {"other.example": "absent"}, "credsStore": "fake"}"#,
    );
    let asked = ["docker.io", "ghcr.io", "own.example", "none.example", "broken.example", "other.example"];
    let found = config.resolve(&hosts(&asked)).await;
    let expected = [
        ("docker.io", Credential::IdentityToken { identity_token: Hidden::new("refresh") }),
        ("ghcr.io", password("jo", "from helper")),
        ("own.example", password("jo", "x")),
    ];
    assert_eq!(found.credentials, expected.map(|(host, credential)| (host.to_owned(), credential)).into());
    assert_eq!(
        found.warnings,
        [
            "no credentials for broken.example: docker-credential-fake ended with exit status: 1 and said: keychain is locked",
            "no credentials for other.example: docker's config.json names docker-credential-absent, which is not installed",
        ]
    );
    let asked = std::fs::read_to_string(directory.path().join("asked")).unwrap();
    assert_eq!(
        asked,
        "get broken.example\nget https://index.docker.io/v1/\nget ghcr.io\nget none.example\nget own.example\n"
    );
}

#[tokio::test]
async fn an_auth_that_cannot_be_read_is_a_warning_without_its_text() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), r#"{"auths": {"a.example": {"auth": "canary!"}}}"#);
    let found = config.resolve(&hosts(&["a.example"])).await;
    assert_eq!(
        found.warnings,
        ["no credentials for a.example: its \"auth\" in config.json is not base64 of user:password"]
    );
}

#[test]
fn a_missing_file_is_empty_and_a_broken_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    assert!(ConfigFile::read(&path).unwrap().entry_for("ghcr.io").is_none());
    std::fs::write(&path, "{\"auths\":\n canary").unwrap();
    let error = ConfigFile::read(&path).unwrap_err();
    assert_eq!(error, format!("{} is no docker configuration: line 2, column 2", path.display()));
}
