//! The contract's numbers at their extremes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::activities::{Admission, Pulse};

/// Decodes as a type and encodes again, so that a list of samples can hold every type.
type Decode = fn(Value) -> Result<Value, String>;

fn decode<T: DeserializeOwned + Serialize>(payload: Value) -> Result<Value, String> {
    let decoded: T = serde_json::from_value(payload).map_err(|error| error.to_string())?;
    serde_json::to_value(decoded).map_err(|error| error.to_string())
}

fn build_input() -> Value {
    json!({"project": "shop", "snapshot": "0".repeat(64), "tags": ["r.example/shop:1"], "timeout_s": 60, "queue_patience_s": 5})
}

fn clocks() -> Value {
    serde_json::to_value(CellClocks::default()).unwrap()
}

/// A payload of each type that comes from a client, a cell or a host, with all of its numbers.
fn samples() -> Vec<(&'static str, Value, Decode)> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let timings = json!({"queue": 1, "fetch": 1, "solve": 1, "publish": 1, "total": 1});
    let cache = json!({"total_steps": 1, "cached_steps": 1, "fetched_bytes": 1});
    let attempt = json!({"workflow_id": "build/shop/1", "run_id": "r", "platform": "linux/amd64", "number": 1});
    let order = json!({"operation": "o", "cell": "c", "pool": "p", "grace_ms": 1, "clone": "d", "slots": 1});
    let member = json!({"cell": "c", "platform": "linux/amd64", "slots": 1});
    let settings = json!({"homes": 1, "points": 1, "line": 1});
    let hint = json!({"cell": "c", "pool": "p", "platform": "linux/amd64", "state": "ready", "slots": 1, "busy": 1,
        "epoch": 1, "generation": 1, "sequence": 1, "reported_ms": 1});
    let facts = json!({"version": "1", "started_ms": 1, "cache_bytes": 1, "steps": 1, "cached_steps": 1});
    let report =
        json!({"epoch": 1, "slots": 1, "open": true, "ordered_ms": 1, "running": [attempt], "clocks": clocks()});
    let placed = json!({"kind": "placed", "project_id": "0".repeat(16), "platform": "linux/amd64", "cell": "c", "warm": true,
        "free": true, "reason": "r", "input_digest": "d", "lost_after_ms": 1});
    let host_cell = json!({"cell": "c", "running": true, "pid": 1, "started_ms": 1, "generation": 1});
    vec![
        ("BuildInput", build_input(), decode::<BuildInput>),
        (
            "AttemptResult",
            json!({"digest": digest, "media_type": "m", "size": 1, "timings": timings, "cache": cache}),
            decode::<AttemptResult>,
        ),
        ("AttemptId", attempt, decode::<AttemptId>),
        ("CellHint", hint, decode::<CellHint>),
        ("CellFacts", facts, decode::<CellFacts>),
        ("CellClocks", clocks(), decode::<CellClocks>),
        ("CellReport", report, decode::<CellReport>),
        ("CloneOrder", order, decode::<CloneOrder>),
        ("HostClone", json!({"clone": "d", "held_still_ms": 1, "took_ms": 1}), decode::<HostClone>),
        ("HostCell", host_cell, decode::<HostCell>),
        ("PoolView", json!({"pool": "p", "version": 1, "settings": settings, "members": [member]}), decode::<PoolView>),
        ("SetPool", settings, decode::<SetPool>),
        ("LogRecord", json!({"seq": 1, "at_ms": 1, "type": "end"}), decode::<LogRecord>),
        ("Admission", placed, decode::<Admission>),
        ("Pulse", json!({"at_ms": 1}), decode::<Pulse>),
    ]
}

/// The JSON pointers of all numbers.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| numbers(value, &format!("{at}/{name}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| numbers(item, &format!("{at}/{n}"), found))
        }
        _ => {}
    }
}

#[test]
fn no_number_of_any_payload_takes_an_extreme_value() {
    let mut tried = 0;
    for (name, sample, decode) in samples() {
        decode(sample.clone()).unwrap_or_else(|error| panic!("the sample of {name}: {error}"));
        let mut pointers = Vec::new();
        numbers(&sample, "", &mut pointers);
        for pointer in pointers {
            for extreme in [json!(u64::MAX), json!(i64::MIN), json!(-1), json!(1e300), json!(1.5)] {
                let mut payload = sample.clone();
                *payload.pointer_mut(&pointer).unwrap() = extreme.clone();
                assert!(decode(payload).is_err(), "{name}{pointer} takes {extreme}");
                tried += 1;
            }
        }
    }
    assert!(tried > 200, "only {tried} combinations were tried");
}

#[test]
fn a_time_limit_of_zero_or_beyond_a_day_is_refused_with_its_bounds() {
    for field in ["timeout_s", "queue_patience_s"] {
        for seconds in [0, 86_401, u64::MAX] {
            let mut payload = build_input();
            payload[field] = json!(seconds);
            let error = serde_json::from_value::<BuildInput>(payload).unwrap_err().to_string();
            assert!(error.contains("1 to 86400 seconds"), "{field} {seconds}: {error}");
        }
    }
}

#[test]
fn a_build_has_room_for_its_attempts_within_its_execution_timeout() {
    for seconds in [None, Some(1), Some(86_400)] {
        let mut payload = build_input();
        payload["timeout_s"] = json!(seconds);
        let input: BuildInput = serde_json::from_value(payload).unwrap();
        assert!(input.time_limit() >= input.attempt_limit() * MAX_ATTEMPTS);
        assert!(input.execution_timeout() > input.time_limit() + input.attempt_limit());
    }
}

#[test]
fn bounded_seconds_read_and_write_as_plain_numbers() {
    let limit: AttemptTimeout = serde_json::from_str("3600").unwrap();
    assert_eq!((limit.as_secs(), serde_json::to_string(&limit).unwrap()), (3600, "3600".to_owned()));
    assert_eq!("90".parse(), AttemptTimeout::new(90));
    assert!("".parse::<AttemptTimeout>().is_err());
}
