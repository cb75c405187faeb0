//! What Firecracker takes, after its API document (`src/firecracker/swagger/firecracker.yaml`, 1.17): for each path and method that is
//! used the fields, which of them there must be, and their ranges. It refuses fields that it does not know.

use serde_json::Value;

enum Kind {
    Text,
    /// A file or socket; whether it has to be there.
    Path(bool),
    Flag,
    Number(u64, u64),
    One(&'static [&'static str]),
}

use Kind::{Flag, Number, One, Path, Text};

struct Field(&'static str, Kind, bool);

const MUST: bool = true;
const MAY: bool = false;

/// Whether a request is as the document has it; what is wrong with it otherwise.
pub fn check(method: &str, path: &str, body: &Value) -> Result<(), String> {
    let (fields, id) =
        fields(method, path).ok_or_else(|| format!("Invalid request method and/or path: {method} {path}."))?;
    let body = body.as_object().ok_or("The body is not an object.")?;
    if let Some(unknown) = body.keys().find(|name| !fields.iter().any(|field| field.0 == *name)) {
        return Err(format!("unknown field `{unknown}`"));
    }
    for Field(name, kind, must) in &fields {
        match body.get(*name) {
            None if *must => return Err(format!("missing field `{name}`")),
            Some(value) if !fits(kind, value) => return Err(format!("invalid value of `{name}`: {value}")),
            _ => {}
        }
    }
    match id {
        Some((name, id)) if body[name] != id => Err("The id from the path does not match the id from the body!".into()),
        _ => Ok(()),
    }
}

/// A field that has to be what the path ends with, and what that is.
type Repeated<'a> = (&'static str, &'a str);

/// The fields of a request, and which of them repeats the last part of the path.
fn fields<'a>(method: &str, path: &'a str) -> Option<(Vec<Field>, Option<Repeated<'a>>)> {
    let drive = path.strip_prefix("/drives/").map(|id| ("drive_id", id));
    let card = path.strip_prefix("/network-interfaces/").map(|id| ("iface_id", id));
    let fields = match (method, path) {
        ("PUT", "/machine-config") => vec![
            Field("vcpu_count", Number(1, 32), MUST),
            Field("mem_size_mib", Number(1, u64::MAX), MUST),
            Field("smt", Flag, MAY),
            Field("track_dirty_pages", Flag, MAY),
            Field("huge_pages", One(&["None", "Transparent", "2M"]), MAY),
        ],
        ("PUT", "/boot-source") => vec![
            Field("kernel_image_path", Path(true), MUST),
            Field("initrd_path", Path(true), MAY),
            Field("boot_args", Text, MAY),
        ],
        ("PUT", _) if drive.is_some() => vec![
            Field("drive_id", Text, MUST),
            Field("is_root_device", Flag, MUST),
            Field("is_read_only", Flag, MUST),
            Field("path_on_host", Path(true), MUST),
            Field("cache_type", One(&["Unsafe", "Writeback"]), MAY),
            Field("io_engine", One(&["Sync", "Async"]), MAY),
        ],
        ("PATCH", _) if drive.is_some() => {
            vec![Field("drive_id", Text, MUST), Field("path_on_host", Path(true), MAY)]
        }
        ("PUT", _) if card.is_some() => vec![
            Field("iface_id", Text, MUST),
            Field("host_dev_name", Text, MUST),
            Field("guest_mac", Text, MAY),
            Field("mtu", Number(68, 65_535), MAY),
        ],
        ("PUT", "/vsock") => {
            vec![Field("guest_cid", Number(3, u64::from(u32::MAX)), MUST), Field("uds_path", Path(false), MUST)]
        }
        ("PUT", "/entropy") => vec![],
        ("PUT", "/actions") => {
            vec![Field("action_type", One(&["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]), MUST)]
        }
        ("PATCH", "/vm") => vec![Field("state", One(&["Paused", "Resumed"]), MUST)],
        _ => return None,
    };
    Some((fields, drive.or(card)))
}

fn fits(kind: &Kind, value: &Value) -> bool {
    match kind {
        Text => value.is_string(),
        Path(there) => value.as_str().is_some_and(|path| std::path::Path::new(path).exists() == *there),
        Flag => value.is_boolean(),
        Number(least, most) => value.as_u64().is_some_and(|number| (*least..=*most).contains(&number)),
        One(words) => value.as_str().is_some_and(|word| words.contains(&word)),
    }
}

#[test]
fn what_the_document_does_not_have_is_refused() {
    use serde_json::json;
    let said = |method, path, body| check(method, path, &body).err().unwrap_or_default();
    assert_eq!(said("PUT", "/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 512})), "");
    assert!(said("PUT", "/machine-config", json!({"vcpu_count": 33, "mem_size_mib": 512})).contains("vcpu_count"));
    assert!(said("PUT", "/machine-config", json!({"vcpu_count": 2})).contains("missing field `mem_size_mib`"));
    assert!(said("PATCH", "/vm", json!({"state": "Paused", "now": true})).contains("unknown field `now`"));
    assert!(said("PUT", "/power", json!({})).contains("Invalid request"));
    let card = json!({"iface_id": "eth1", "host_dev_name": "tap"});
    assert!(said("PUT", "/network-interfaces/eth0", card).contains("does not match"));
}
