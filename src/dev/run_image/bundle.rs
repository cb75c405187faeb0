//! A runc bundle's `config.json` out of an image's configuration.

use anyhow::Context;
use serde_json::{Value, json};

/// What a plain service needs: root in namespaces of its own, few capabilities, the host's network.
const CAPABILITIES: [&str; 5] = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"];

/// <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md>
///
/// # Errors
/// When the image says nothing to run.
pub fn spec(image: &Value, env: &[String]) -> anyhow::Result<Value> {
    let config = &image["config"];
    let words = |key: &str| config[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let args: Vec<_> = words("Entrypoint").chain(words("Cmd")).collect();
    anyhow::ensure!(!args.is_empty(), "the image has neither ENTRYPOINT nor CMD");
    let env: Vec<_> = words("Env").chain(env.iter().cloned()).collect();
    let cwd = config["WorkingDir"].as_str().filter(|dir| !dir.is_empty()).unwrap_or("/");
    let (uid, gid) = user(config["User"].as_str().unwrap_or_default())?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": uid, "gid": gid },
            "args": args,
            "env": env,
            "cwd": cwd,
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] },
    }))
}

/// `uid[:gid]`; names would need the image's own passwd file.
fn user(text: &str) -> anyhow::Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| if text.is_empty() { Ok(0) } else { text.parse() };
    Ok((
        number(uid).context("the image's USER is not a number")?,
        number(gid).context("the image's group is not a number")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_configuration_is_what_runs() {
        let image = json!({"config": {"Entrypoint": ["/hello"], "Cmd": ["-v"], "Env": ["A=1"], "User": "65534"}});
        let spec = spec(&image, &["PORT=1".into()]).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/hello", "-v"]));
        assert_eq!(spec["process"]["env"], json!(["A=1", "PORT=1"]));
        assert_eq!(spec["process"]["user"], json!({"uid": 65534, "gid": 0}));
        assert_eq!(spec["process"]["cwd"], "/");
    }

    #[test]
    fn an_image_without_a_command_is_refused() {
        assert!(spec(&json!({"config": {}}), &[]).is_err());
        assert!(spec(&json!({"config": {"Cmd": ["x"], "User": "web"}}), &[]).is_err());
    }
}
