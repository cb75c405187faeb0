//! Metadata of session calls: what is not printable ASCII is query-escaped and marked by a second, `-encoded` header.

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

/// Says on the `Session` call who the session is and what it offers.
pub(crate) fn announce(metadata: &mut MetadataMap, id: &str, shared_key: &str, methods: &[&'static str]) {
    if let Ok(id) = id.parse() {
        metadata.insert("x-docker-expose-session-uuid", id);
    }
    let plain = shared_key.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    let key = if plain { shared_key.to_owned() } else { escape(shared_key.as_bytes()) };
    if let Ok(key) = AsciiMetadataValue::try_from(key) {
        metadata.insert("x-docker-expose-session-sharedkey", key);
    }
    if !plain {
        metadata.insert("x-docker-expose-session-sharedkey-encoded", AsciiMetadataValue::from_static("1"));
    }
    for method in methods {
        metadata.append("x-docker-expose-session-grpc-method", AsciiMetadataValue::from_static(method));
    }
}

/// All values of a header, decoded.
pub(crate) fn values(metadata: &MetadataMap, name: &'static str) -> Vec<Vec<u8>> {
    let marker = AsciiMetadataKey::from_bytes(format!("{name}-encoded").as_bytes());
    let encoded = marker.is_ok_and(|marker| metadata.get(marker).is_some_and(|value| is_true(value.as_bytes())));
    let decode =
        |value: &AsciiMetadataValue| if encoded { unescape(value.as_bytes()) } else { value.as_bytes().to_vec() };
    metadata.get_all(name).iter().map(decode).collect()
}

/// Go's `strconv.ParseBool`.
fn is_true(value: &[u8]) -> bool {
    matches!(value, b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True")
}

/// Go's `url.QueryEscape`.
fn escape(value: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(value.len() * 3);
    for byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(*byte)),
            b' ' => out.push('+'),
            // Writing to a string cannot fail.
            other => drop(write!(out, "%{other:02X}")),
        }
    }
    out
}

/// Go's `url.QueryUnescape`; empty where that fails, which is what the receiving end of BuildKit makes of it.
fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(*digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return Vec::new() };
                out.push((high * 16 + low) as u8);
            }
            other => out.push(*other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_decoded_only_when_marked() {
        let mut metadata = MetadataMap::new();
        metadata.append("followpaths", "a%20b+c".parse().unwrap());
        metadata.append("followpaths", "d".parse().unwrap());
        assert_eq!(values(&metadata, "followpaths"), [b"a%20b+c".to_vec(), b"d".to_vec()]);
        metadata.insert("followpaths-encoded", "1".parse().unwrap());
        assert_eq!(values(&metadata, "followpaths"), [b"a b c".to_vec(), b"d".to_vec()]);
    }

    #[test]
    fn a_shared_key_that_is_not_ascii_is_escaped_and_marked() {
        let mut metadata = MetadataMap::new();
        announce(&mut metadata, "id", "prüf", &[]);
        assert_eq!(metadata.get("x-docker-expose-session-sharedkey").unwrap(), "pr%C3%BCf");
        assert_eq!(metadata.get("x-docker-expose-session-sharedkey-encoded").unwrap(), "1");
    }

    proptest! {
        #[test]
        fn escaping_is_undone(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unescape(escape(&value).as_bytes()), value);
        }
    }
}
