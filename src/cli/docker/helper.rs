//! Credential helpers: `docker-credential-<name> get`, the server's name on standard input, JSON on standard output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use activities::sealed::{Credential, Hidden};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A helper may ask a keychain that asks its user.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// How helpers say that they have nothing for a server, on either stream.
const NOTHING: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Hidden,
}

/// Asks a helper; `None` when it has nothing for the server.
///
/// # Errors
/// A sentence that names the program and what it said.
pub async fn get(name: &str, server: &str, search: Option<&Path>) -> Result<Option<Credential>, String> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let path = search.map_or_else(|| PathBuf::from(&program), |directory| directory.join(&program));
    let output = match tokio::time::timeout(PATIENCE, ask(&path, server)).await {
        Err(_) => return Err(format!("{program} did not answer in {} s", PATIENCE.as_secs())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("docker's config.json names {program}, which is not installed"));
        }
        Ok(Err(error)) => return Err(format!("{program} cannot be run: {error}")),
        Ok(Ok(output)) => output,
    };
    credential(&program, &output)
}

async fn ask(program: &Path, server: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input has still an answer.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    child.wait_with_output().await
}

fn credential(program: &str, output: &Output) -> Result<Option<Credential>, String> {
    if !output.status.success() {
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).trim().to_owned());
        if said.iter().any(|said| said.contains(NOTHING)) {
            return Ok(None);
        }
        let said = said.iter().find(|said| !said.is_empty()).and_then(|said| said.lines().next()).unwrap_or("nothing");
        return Err(format!("{program} ended with {} and said: {said}", output.status));
    }
    // The parser's error would quote the answer.
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{program} did not answer as a credential helper"))?;
    Ok(match answer {
        Answer { secret, .. } if secret.reveal().is_empty() => None,
        Answer { username, secret } if username == TOKEN_USER => {
            Some(Credential::IdentityToken { identity_token: secret })
        }
        Answer { username, secret } => Some(Credential::Password { username, password: secret }),
    })
}
