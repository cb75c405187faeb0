//! The digest of a build's input: what makes two starts of one key the same build.

use serde_json::Value;
use workflows::contract::BuildInput;

/// BLAKE3 over the input's JSON with sorted keys, 64 hex digits. The sealed credentials' reference is left out (it differs each
/// time); the ids of the secrets are in.
pub fn input_digest(input: &BuildInput) -> String {
    let text = canonical(input).to_string();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// What tells builds of one snapshot apart in a tag: 8 hex digits over the fields that decide what the image holds. How the build
/// is run (cache, limits, credentials) and where its image goes are left out.
pub fn variant(input: &BuildInput) -> String {
    let tags = Vec::new();
    let input = BuildInput { tags, no_cache: false, pull: false, timeout_s: None, ..input.clone() };
    input_digest(&input)[..8].to_owned()
}

/// The names of the fields in which two inputs differ, sorted.
pub fn differing_fields(one: &BuildInput, other: &BuildInput) -> Vec<String> {
    let (Value::Object(one), Value::Object(other)) = (canonical(one), canonical(other)) else { return Vec::new() };
    let mut names: Vec<String> =
        one.keys().chain(other.keys()).filter(|k| one.get(*k) != other.get(*k)).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// `serde_json` keeps an object's keys sorted.
fn canonical(input: &BuildInput) -> Value {
    let mut input = input.clone();
    input.secrets_ref = None;
    input.secret_ids.sort();
    input.queue_patience_s = None;
    serde_json::to_value(&input).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(more: Value) -> String {
        let mut input = json!({ "project": "web", "snapshot": "0".repeat(64), "tags": [] });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        variant(&serde_json::from_value(input).unwrap())
    }

    #[test]
    fn a_variant_tells_what_is_built_apart_and_not_how() {
        let plain = with(json!({}));
        assert_eq!(plain.len(), 8);
        for other in [
            json!({ "target": "test" }),
            json!({ "args": { "V": "1" } }),
            json!({ "args": { "V": "2" } }),
            json!({ "dockerfile": "ci/Dockerfile" }),
            json!({ "labels": { "a": "b" } }),
            json!({ "provenance": "max" }),
        ] {
            assert_ne!(with(other.clone()), plain, "{other}");
        }
        for same in [
            json!({ "no_cache": true }),
            json!({ "pull": true }),
            json!({ "timeout_s": 60 }),
            json!({ "queue_patience_s": 9 }),
            json!({ "tags": ["r.example/web:v1"] }),
        ] {
            assert_eq!(with(same.clone()), plain, "{same}");
        }
    }
}
