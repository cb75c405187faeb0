//! What holds of builds after any fault, once they have ended: each was published once or not at all, its log is whole, and nothing of
//! it is left on the cells.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use buildkit::{Client, Settled};
use serde_json::Value;

use super::dev::{Dev, eventually};
use super::running::{LINES, PROJECT, Running, outcomes, run};

/// What a log says before it tells an attempt again.
const AGAIN: &str = "its output again, from the beginning\n";
/// Ends and logs may still be on their way, and cells on theirs back.
const PATIENCE: Duration = Duration::from_secs(90);

/// Checks them all.
pub fn hold<'b, 'dev: 'b>(dev: &'dev Dev, builds: impl IntoIterator<Item = &'b Running<'dev>>) {
    for build in builds {
        let shown = build.show();
        match shown["status"].as_str().unwrap() {
            "succeeded" => is_published_once(build, &shown["result"]),
            "cancelled" | "failed" => assert_eq!(tagged(build), BTreeSet::new(), "{}: {shown}", build.id),
            other => panic!("{} has not ended: {other}", build.id),
        }
        eventually("no step of it runs", PATIENCE, || build.steps().is_empty().then_some(()));
        no_daemon_solves(dev, &shown["result"]);
    }
    slots_are_free(dev);
}

/// The digest that was told, and no other, was ever written under the tag; it is that of the one attempt that built. The same key
/// builds nothing more.
fn is_published_once(build: &Running<'_>, result: &Value) {
    let (last, former) = outcomes(result).split_last().map(|(last, former)| (*last, former.to_vec())).unwrap();
    assert!(last == "built" && !former.contains(&"built"), "{}: {result}", build.id);
    let tags: Vec<&Value> = result["tags"].as_array().unwrap().iter().map(|tag| &tag["outcome"]).collect();
    // Who is killed between writing a tag and saying so finds it there.
    assert!(tags == ["written"] || tags == ["unchanged"], "{}: {result}", build.id);
    let digest = result["digest"].as_str().unwrap();
    let only = BTreeSet::from([digest.to_owned()]);
    assert_eq!(tagged(build), only, "{}: {result}", build.id);
    log_is_whole(build);
    let attempts = build.log().matches(&build.line(0)).count();
    let again = build.up(&[]).ok().json();
    assert_eq!(again["digest"], *digest, "{}: {again}", build.id);
    assert_eq!(build.log().matches(&build.line(0)).count(), attempts, "{}: its key was built again", build.id);
    assert_eq!(tagged(build), only, "{}", build.id);
}

/// The winning attempt's lines, each once and in order, or its word that the step came from the cache, and then none of them.
fn log_is_whole(build: &Running<'_>) {
    let mut log = String::new();
    let begun = Instant::now();
    while !is_whole(&log, |n| build.line(n)) {
        assert!(begun.elapsed() < PATIENCE, "the log of {} is not whole: {}\n{log}", build.id, build.show());
        std::thread::sleep(Duration::from_millis(100));
        log = build.log();
    }
}

/// Former attempts may have left some lines, wherever they were cut off. One whose step had ended by then leaves it in its cell's cache:
/// an attempt of a former run, or one before the last, on whose cell the last one was again. Of an attempt that outlived its builder all
/// is told again.
fn is_whole(log: &str, line: impl Fn(u32) -> String) -> bool {
    let (_, winner) = log.rsplit_once("kiln: attempt ").unwrap_or_default();
    let winner = winner.rsplit_once(AGAIN).map_or(winner, |(_, again)| again);
    let found = |n| winner.match_indices(&format!("{}\n", line(n))).map(|(at, _)| at).collect::<Vec<_>>();
    let lines: Vec<Vec<usize>> = (0..=LINES).map(found).collect();
    if lines.iter().all(Vec::is_empty) {
        return is_from_cache(winner);
    }
    lines.iter().all(|at| at.len() == 1) && lines.is_sorted()
}

/// Whether an attempt has found its step in the cache, and has gone on to its end.
fn is_from_cache(attempt: &str) -> bool {
    let step = attempt.lines().find(|line| line.contains(" RUN ")).and_then(|line| line.split(' ').next());
    let cached = step.is_some_and(|step| attempt.lines().any(|line| line == format!("{step} CACHED")));
    cached && attempt.contains("pushing manifest for ")
}

#[test]
fn a_log_is_whole_by_its_last_attempt() {
    let line = |n: u32| format!("line {n} in mark");
    let lines = |of: std::ops::RangeInclusive<u32>| of.map(|n| format!("#5 0.1 {}\n", line(n))).collect::<String>();
    let attempt = |n: u32, said: &str| format!("kiln: attempt {n} on cell dev-1\n#5 [2/2] RUN for i\n{said}");
    let (whole, cut) = (lines(0..=LINES), lines(0..=LINES - 1));
    let cached = "#5 CACHED\n#6 pushing manifest for localhost/faults:k 0.0s done\n";
    let is_whole = |said: &[&str]| {
        let attempts = said.iter().zip(1..).map(|(said, n)| attempt(n, said));
        is_whole(&attempts.collect::<String>(), line)
    };
    assert!(is_whole(&[&whole]));
    assert!(is_whole(&[&cut, &whole]));
    assert!(is_whole(&[cached]), "its step ended in a former run");
    // Its step had ended before the first attempt was cancelled while it was pushed; the second, elsewhere, was cut off.
    assert!(is_whole(&[&whole, &cut, cached]));
    assert!(is_whole(&[&(cut.clone() + AGAIN + &whole)]), "told again, when its builder was back");
    assert!(is_whole(&[&whole, &(String::from(AGAIN) + "#5 [2/2] RUN for i\n" + cached)]));
    assert!(!is_whole(&[]), "no attempt");
    assert!(!is_whole(&[&(whole.clone() + AGAIN + &cut)]), "not told again to its end");
    assert!(!is_whole(&[&whole, ""]), "nothing is there of the last attempt's step");
    assert!(!is_whole(&[&whole, &cut]), "its end is missing");
    assert!(!is_whole(&[&lines(1..=LINES)]), "its beginning is missing");
    assert!(!is_whole(&[&(whole.clone() + &whole)]), "told twice");
    assert!(!is_whole(&[&(lines(1..=LINES) + &lines(0..=0))]), "out of order");
    assert!(!is_whole(&[&whole, &(cut.clone() + cached)]), "cached, and yet it ran");
    assert!(!is_whole(&[&whole, "#5 CACHED\n"]), "cached, and not pushed yet");
}

/// Every digest that was ever written under the build's tag, from the registry's own records.
fn tagged(build: &Running<'_>) -> BTreeSet<String> {
    let tags = format!("registry/docker/registry/v2/repositories/{PROJECT}/_manifests/tags");
    let digests = build.dev.data.join(tags).join(&build.key).join("index/sha256");
    let entries = std::fs::read_dir(digests).into_iter().flatten().flatten();
    entries.map(|entry| format!("sha256:{}", entry.file_name().to_str().unwrap())).collect()
}

/// What a cell's daemon knows of its attempts has ended.
fn no_daemon_solves(dev: &Dev, result: &Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for attempt in result["attempts"].as_array().unwrap() {
        let reference = attempt["buildkit_ref"].as_str().unwrap();
        // Of a cell on a host of the test's own the processes were looked at.
        let Some(cell) = dev.ready.cells.iter().find(|cell| attempt["cell"] == *cell.id) else { continue };
        eventually("its daemon solves it no more", PATIENCE, || {
            let settled = runtime.block_on(settle(&cell.buildkit_socket, reference))?;
            (!matches!(settled, Settled::Running)).then_some(())
        });
    }
}

/// `None` while the daemon is away.
async fn settle(socket: &Path, reference: &str) -> Option<Settled> {
    Client::connect_unix(socket).await.ok()?.settle(reference).await.ok()
}

/// No cell says that anything runs or waits there.
pub fn slots_are_free(dev: &Dev) {
    let mut said = String::new();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "not all slots are free: {said}");
        let listed = run(dev, &["cells", "ls", "--output", "json"]);
        let free = |cell: &Value| cell["busy"] == 0 && cell["line"] == 0;
        if listed.code == 0 && listed.json()["cells"].as_array().unwrap().iter().all(free) {
            return;
        }
        said = listed.all();
        std::thread::sleep(Duration::from_millis(100));
    }
}
