//! What reads bytes from outside, as functions for the fuzzer in `fuzz/` and for the test that replays its corpus. Only in those builds.
//!
//! A function panics where the code does, and where what was read is not what the code promises.

use std::hint::black_box;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use workflows::contract::{
    AttemptId, BuildInput, CellFacts, CellHint, CloneRequest, DrainRequest, LogEvent, LogRecord, MAX_ATTEMPTS,
    MoveNotice, PoolMember, PoolSettings, PoolView, SetPool, UpdateRequest,
};

use crate::control::{differing_fields, input_digest};
use crate::logs::wire::{self, ToReceiver, ToShipper};
use crate::logs::{bound, lines};
use crate::oci::ImageTag;
use crate::snapshots::{Caps, Manifest};

/// Panics where the bytes are not survived.
pub type Target = fn(&[u8]);

/// Each target by the name of its corpus.
pub const TARGETS: [(&str, Target); 11] = [
    ("build_input", build_input),
    ("challenge", challenge),
    ("dns", dns),
    ("frame", frame),
    ("hint", hint),
    ("ignore", ignore),
    ("log_records", log_records),
    ("log_wire", log_wire),
    ("manifest", manifest),
    ("signals", signals),
    ("syntax", syntax),
];

fn decoded<T: DeserializeOwned>(data: &[u8]) -> Option<T> {
    serde_json::from_slice(data).ok()
}

/// A workflow's input, as far as admission looks at nothing else.
fn build_input(data: &[u8]) {
    let Some(input) = decoded::<BuildInput>(data) else { return };
    assert!(input.attempt_limit().as_secs() >= 1 && input.queue_patience().as_secs() >= 1);
    assert!(input.time_limit() >= input.attempt_limit() * MAX_ATTEMPTS);
    assert!(input.execution_timeout() > input.time_limit());
    assert_eq!(input_digest(&input), input_digest(&input.clone()));
    assert_eq!(differing_fields(&input, &input), Vec::<String>::new());
    for tag in &input.tags {
        black_box(tag.parse::<ImageTag>().is_ok());
    }
    let text = serde_json::to_vec(&input).unwrap_or_default();
    assert_eq!(decoded::<BuildInput>(&text), Some(input), "what is written is read the same");
}

/// A manifest as stored, and one whose body the bytes are. The two ways to read one agree.
fn manifest(data: &[u8]) {
    let caps = Caps::default();
    let body = zstd::bulk::compress(data, 1).unwrap_or_default();
    for stored in [data.to_vec(), [b"kiln-manifest 1\n".as_slice(), &body].concat()] {
        match Manifest::decode(&stored, &caps) {
            Ok((id, manifest)) => {
                assert_eq!(manifest.id(), id, "the id is that of the entries");
                assert_eq!(Manifest::check_as(&id, &stored, &caps).ok().as_ref(), Some(&manifest.layout.packs));
            }
            Err(error) => drop(black_box(error.to_string())),
        }
    }
}

/// A frame of a pack as it comes from storage; the first two bytes say how long it should be.
fn frame(data: &[u8]) {
    let Some((length, frame)) = data.split_first_chunk::<2>() else { return };
    crate::snapshots::exercise_frame(frame, u32::from(u16::from_be_bytes(*length)) * 4);
}

/// A frame of a log connection, in both directions.
fn log_wire(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    if let Ok((header, lines)) = wire::decode::<ToReceiver>(frame.clone()) {
        let written = wire::encode(&header, &lines).unwrap_or_default();
        assert!(wire::decode::<ToReceiver>(written).is_ok_and(|(_, again)| again == lines));
    }
    if let Ok((header, _)) = wire::decode::<ToShipper>(frame) {
        let written = wire::encode(&header, &[]).unwrap_or_default();
        assert!(wire::decode::<ToShipper>(written).is_ok_and(|(again, _)| again == header));
    }
}

/// The lines of a log, and the records that one of them becomes when it is logged again.
fn log_records(data: &[u8]) {
    let whole = lines::whole_length(data);
    assert!(whole <= data.len());
    assert_eq!(lines::split_lines(&data[..whole]).count() as u64, lines::count_lines(&data[..whole]));
    for line in lines::split_lines(&data[..whole]) {
        if let Some(LogRecord { seq, at_ms, event }) = decoded(line) {
            for event in bound::bounded(event) {
                let record = serde_json::to_vec(&LogRecord { seq, at_ms, event }).unwrap_or_default();
                assert!(record.len() <= bound::LONGEST_LINE, "{} bytes", record.len());
            }
        }
    }
    let text = String::from_utf8_lossy(data).into_owned();
    let output = bound::bounded(LogEvent::Output { vertex: String::new(), stream: 1, text: text.clone() });
    let whole: String =
        output.iter().map(|event| if let LogEvent::Output { text, .. } = event { text } else { "" }).collect();
    assert_eq!(whole, text, "nothing of a step's output is lost");
}

/// The first line is a path, the rest an ignore file.
fn ignore(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (path, file) = data.split_at(end);
    let Ok(patterns) = buildkit::patterns::Patterns::new(buildkit::patterns::parse_ignore_file(file)) else { return };
    black_box(patterns.matches(path));
    let mut above = None;
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        above = Some(patterns.matches_below(&path[..at], above.as_ref()).1);
    }
    black_box(patterns.matches_below(path, above.as_ref()).0);
}

fn dns(data: &[u8]) {
    crate::dns::exercise(data);
}

fn syntax(data: &[u8]) {
    if let Some(syntax) = buildkit::syntax::syntax_line(data) {
        assert!(syntax.cmdline.starts_with(&syntax.image) && syntax.line <= data.len() + 1);
    }
}

/// A `WWW-Authenticate` header a line, and a registry's words.
fn challenge(data: &[u8]) {
    crate::oci::exercise(data);
}

/// What a cell reports.
fn hint(data: &[u8]) {
    if let Some(hint) = decoded::<CellHint>(data) {
        assert!(i64::try_from(hint.epoch.max(hint.sequence).max(hint.reported_ms)).is_ok());
        assert!(hint.slots <= 1024 && hint.busy <= 1024);
    }
    black_box(decoded::<CellFacts>(data));
}

/// The payloads of signals, whichever they are.
fn signals(data: &[u8]) {
    black_box(decoded::<DrainRequest>(data));
    black_box(decoded::<CloneRequest>(data));
    black_box(decoded::<UpdateRequest>(data));
    black_box(decoded::<MoveNotice>(data));
    black_box(decoded::<PoolMember>(data));
    black_box(decoded::<AttemptId>(data));
    if let (Some(set), Ok(pool)) = (decoded::<SetPool>(data), "pool".parse()) {
        let view = PoolView { pool, version: 0, settings: PoolSettings::default(), members: Vec::new() };
        let applied = set.apply(&view);
        assert!(applied.is_err() || set.homes.is_none_or(|homes| (1..=8).contains(&homes)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The inputs that the fuzzer keeps, among them one for each fault that it found.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for file in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(file.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{name} has no corpus");
            for data in [&b""[..], b"\0", b"\n", b"{}", &[0xff; 300]] {
                target(data);
            }
        }
    }
}
