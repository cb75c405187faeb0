//! The digest of a build's input: what makes two starts of one key the same build.

use serde_json::Value;
use workflows::contract::BuildInput;

/// BLAKE3 over the input's JSON with sorted keys, 64 hex digits. The sealed credentials' reference is left out (it differs each
/// time); the ids of the secrets are in.
pub fn input_digest(input: &BuildInput) -> String {
    let text = canonical(input).to_string();
    blake3::hash(text.as_bytes()).to_hex().to_string()
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
