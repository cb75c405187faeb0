//! One binary for all targets, since each would link the whole tree: `KILN_FUZZ_TARGET` names the one to run.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../init/src/control/request.rs"]
#[allow(dead_code, reason = "the guest's init is a binary, whose parser is taken in as a file")]
mod request;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("KILN_FUZZ_TARGET").unwrap_or_default();
    let own: [(&str, fn(&[u8])); 1] = [("guest_control", guest_control)];
    let known = activities::fuzzing::TARGETS.into_iter().chain(own);
    match known.clone().find(|(known, _)| *known == name) {
        Some((_, target)) => target,
        None => {
            let names: Vec<_> = known.map(|(name, _)| name).collect();
            eprintln!("KILN_FUZZ_TARGET is {name:?}; it must be one of {}", names.join(", "));
            std::process::exit(2);
        }
    }
});

fuzz_target!(|data: &[u8]| TARGET(data));

/// A line from the host to a guest's init.
fn guest_control(data: &[u8]) {
    if let Some(request) = request::Request::parse(&String::from_utf8_lossy(data)) {
        assert!(!request.id.is_empty());
        if let request::Command::Freeze(span) = request.command {
            assert!((1..=60).contains(&span.as_secs()));
        }
    }
}
