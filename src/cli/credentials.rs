//! What a build may need to know and nobody else: collected on this machine, handed to the api, known by a reference from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::Path;

use activities::sealed::{Sealed, SecretBytes};
use workflows::contract::{ProjectName, SecretsRef};

use super::Failure;
use super::client::Client;
use super::docker::DockerConfig;
use super::failure::io_text;
use super::progress::Display;

/// The most a build secret may hold, bytes; BuildKit takes no more.
const SECRET_LIMIT: u64 = 500 * 1024;
/// Hands over docker's credentials for these hosts and the secrets; `None` when there is nothing to hand over.
pub async fn seal(
    client: &Client,
    project: &ProjectName,
    hosts: &BTreeSet<String>,
    secrets: BTreeMap<String, SecretBytes>,
    display: &mut Display,
) -> Result<Option<SecretsRef>, Failure> {
    let registry_auth = match DockerConfig::load() {
        Ok(config) => {
            let found = config.resolve(hosts).await;
            found.warnings.iter().for_each(|warning| display.note(&format!("WARN: {warning}")));
            found.credentials
        }
        Err(why) => {
            display.note(&format!("WARN: no registry credentials: {why}"));
            BTreeMap::new()
        }
    };
    let sealed = Sealed { registry_auth, secrets };
    if sealed.is_empty() {
        return Ok(None);
    }
    Ok(Some(client.seal(project, &sealed).await?))
}

/// `id=ID[,src=FILE|,env=VARIABLE][,type=file|env]`; with an id alone, the variable of that name or else the file.
pub fn secret(spec: &str) -> Result<(String, SecretBytes), Failure> {
    let wrong = |why: &str| Failure::usage(format!("--secret {spec:?}: {why}"));
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in spec.split(',') {
        let (name, value) =
            field.split_once('=').ok_or_else(|| wrong("must be id=ID,src=FILE or id=ID,env=VARIABLE"))?;
        match name.trim().to_ascii_lowercase().as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value, "file" | "env") => kind = Some(value),
            "type" => return Err(wrong("type must be file or env")),
            other => return Err(wrong(&format!("there is no field {other:?}; there are id, src, env and type"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong("it needs an id"))?;
    let value = match (file, variable, kind) {
        (Some(_), Some(_), _) => return Err(wrong("it has both src and env")),
        (Some(name), None, Some("env")) | (None, Some(name), _) => from_variable(name).map_err(|why| wrong(&why))?,
        (Some(path), None, _) => from_file(Path::new(path)).map_err(|why| wrong(&why))?,
        (None, None, Some("file")) => from_file(Path::new(id)).map_err(|why| wrong(&why))?,
        (None, None, _) if env::var_os(id).is_some() => from_variable(id).map_err(|why| wrong(&why))?,
        (None, None, _) => from_file(Path::new(id)).map_err(|why| wrong(&why))?,
    };
    Ok((id.to_owned(), value))
}

fn from_variable(name: &str) -> Result<SecretBytes, String> {
    use std::os::unix::ffi::OsStringExt as _;
    let value = env::var_os(name).ok_or_else(|| format!("the variable {name} is not set"))?;
    Ok(SecretBytes::new(value.into_vec()))
}

fn from_file(path: &Path) -> Result<SecretBytes, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {}", path.display(), io_text(&error));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > SECRET_LIMIT {
        return Err(format!("{} has {size} bytes; a secret may have {SECRET_LIMIT}", path.display()));
    }
    std::fs::read(path).map(SecretBytes::new).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_variables() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("npmrc");
        std::fs::write(&file, b"\xfftoken\n").unwrap();
        let of = |spec: &str| secret(spec).map(|(id, value)| (id, value.reveal().to_vec()));
        assert_eq!(of(&format!("id=npm,src={}", file.display())).unwrap(), ("npm".into(), b"\xfftoken\n".to_vec()));
        assert_eq!(of("id=path,env=PATH").unwrap().1, env::var("PATH").unwrap().into_bytes());
        assert_eq!(of("type=env,id=path,src=PATH").unwrap().1, env::var("PATH").unwrap().into_bytes());
        assert_eq!(of("id=PATH").unwrap().1, env::var("PATH").unwrap().into_bytes());
    }

    #[test]
    fn a_wrong_secret_says_what_is_wrong() {
        let message = |spec: &str| secret(spec).unwrap_err().message;
        assert_eq!(message("npm"), r#"--secret "npm": must be id=ID,src=FILE or id=ID,env=VARIABLE"#);
        assert_eq!(message("src=a"), r#"--secret "src=a": it needs an id"#);
        assert_eq!(message("id=a,src=b,env=C"), r#"--secret "id=a,src=b,env=C": it has both src and env"#);
        assert_eq!(
            message("id=a,env=KILN_TEST_NEVER_SET"),
            r#"--secret "id=a,env=KILN_TEST_NEVER_SET": the variable KILN_TEST_NEVER_SET is not set"#
        );
        assert_eq!(
            message("id=a,src=/nonexistent"),
            r#"--secret "id=a,src=/nonexistent": cannot read /nonexistent: no such file or directory"#
        );
        assert_eq!(
            message("id=a,uid=0"),
            r#"--secret "id=a,uid=0": there is no field "uid"; there are id, src, env and type"#
        );
    }
}
