//! What reaches the spool while no receiver is there. Shipping itself is tested with the receiver, beside it.

use std::time::Duration;

use super::lines::split_lines;
use super::spool::{self, Batch, Spool};
use super::*;
use workflows::contract::LogRecord;

/// An address nobody listens on: port 1 of this machine.
const NOBODY: &str = "127.0.0.1:1";
const ROOMY: u64 = 1 << 30;

fn attempt(number: u32) -> AttemptId {
    AttemptId {
        workflow_id: "build/hello/1".into(),
        run_id: "run-1".into(),
        platform: "linux/amd64".parse().unwrap(),
        number,
    }
}

fn output(vertex: &str, text: &str) -> LogEvent {
    LogEvent::Output { vertex: vertex.into(), stream: 1, text: text.into() }
}

/// Everything in the spool directory, of one attempt: read as the next start would.
fn spooled(directory: &Path) -> Vec<LogRecord> {
    let mut left = spool::recover(directory).unwrap();
    assert_eq!(left.len(), 1);
    let mut spool = left.remove(0).spool;
    let (mut records, mut from) = (Vec::new(), spool.first());
    while let Some(Batch { first, count, lines }) = spool.read(from).unwrap() {
        assert_eq!(first, from);
        from += count;
        records.extend(lines.split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(parse));
    }
    records
}

fn parse(line: &[u8]) -> LogRecord {
    serde_json::from_slice(line).unwrap()
}

fn numbered_from_one(records: &[LogRecord]) -> bool {
    records.iter().enumerate().all(|(i, record)| record.seq == i as u64 + 1)
}

#[tokio::test]
async fn records_are_numbered_and_end() {
    let directory = tempfile::tempdir().unwrap();
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), ROOMY).unwrap();
    let log = shipper.open(&attempt(1), ROOMY);
    log.append(LogEvent::Note { text: "one".into() });
    log.append(output("a", "two "));
    log.append(output("a", "and more of two"));
    log.append(output("b", "three"));
    log.close();
    log.append(LogEvent::Note { text: "too late".into() });
    assert!(!shipper.drained(Duration::from_millis(1)).await, "nobody acknowledged anything");
    drop(shipper);

    let records = spooled(directory.path());
    assert!(numbered_from_one(&records));
    let events: Vec<_> = records.into_iter().map(|record| record.event).collect();
    assert_eq!(events[0], LogEvent::Note { text: "one".into() });
    assert_eq!(events.last(), Some(&LogEvent::End));
    let text: String = events.iter().filter_map(text_of).collect();
    assert_eq!(text, "two and more of twothree");
}

fn text_of(event: &LogEvent) -> Option<&str> {
    match event {
        LogEvent::Output { text, .. } => Some(text),
        _ => None,
    }
}

fn cuts(records: &[LogRecord]) -> Vec<(u64, u64, String)> {
    let cut = |record: &LogRecord| match &record.event {
        LogEvent::Cut { records, bytes, reason } => Some((*records, *bytes, reason.clone())),
        _ => None,
    };
    records.iter().filter_map(cut).collect()
}

#[tokio::test]
async fn a_log_over_its_cap_says_where_it_cut_and_how_much() {
    let directory = tempfile::tempdir().unwrap();
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), ROOMY).unwrap();
    let log = shipper.open(&attempt(1), 10_000);
    for i in 0..100 {
        log.append(output(&format!("vertex {i}"), &"x".repeat(900)));
    }
    log.append(LogEvent::Note { text: "steps and notes are kept".into() });
    drop(log);
    drop(shipper);

    let records = spooled(directory.path());
    assert!(numbered_from_one(&records));
    let kept = records.iter().filter(|record| matches!(record.event, LogEvent::Output { .. })).count();
    let cuts = cuts(&records);
    assert_eq!(cuts.len(), 2, "one where it cut, one with the sum");
    assert_eq!(
        (cuts[0].0, cuts[0].2.as_str()),
        (0, "the log reached its cap of 10000 bytes; further output is left out")
    );
    assert_eq!(kept as u64 + cuts[1].0, 100, "every record is kept or counted");
    assert!(kept > 0);
    assert!(records.iter().any(|record| matches!(&record.event, LogEvent::Note { text } if text.contains("kept"))));
}

#[tokio::test]
async fn a_full_spool_cuts_and_counts() {
    let directory = tempfile::tempdir().unwrap();
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), 20_000).unwrap();
    let log = shipper.open(&attempt(1), ROOMY);
    for i in 0..100 {
        log.append(output(&format!("vertex {i}"), &"x".repeat(900)));
    }
    drop(log);
    drop(shipper);

    let records = spooled(directory.path());
    assert!(numbered_from_one(&records));
    let kept = records.iter().filter(|record| matches!(record.event, LogEvent::Output { .. })).count() as u64;
    let cuts = cuts(&records);
    assert_eq!(kept + cuts.iter().map(|cut| cut.0).sum::<u64>(), 100, "every record is kept or counted");
    assert!(kept < 25 && cuts[0].2.contains("longer than the spool has room"), "{cuts:?}");
}

/// What a builder leaves that is killed while it writes the third record.
fn leave_two_records(directory: &Path) {
    let mut killed = Spool::new(directory, &attempt(1));
    let line = |seq| {
        let record = LogRecord { seq, at_ms: 1, event: output("a", &format!("line {seq}")) };
        serde_json::to_string(&record).unwrap() + "\n"
    };
    killed.append((line(1) + &line(2)).as_bytes(), 2).unwrap();
    let segment = directory.join(attempt(1).buildkit_ref()).join(format!("{:020}", 1));
    let mut text = std::fs::read(&segment).unwrap();
    text.extend_from_slice(b"{\"seq\":3,\"at_ms\":1,\"ty");
    std::fs::write(&segment, text).unwrap();
    std::fs::write(directory.join("stray"), "not a spool").unwrap();
}

#[tokio::test]
async fn a_log_is_on_the_disk_when_it_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), ROOMY).unwrap();
    let log = shipper.open(&attempt(1), ROOMY);
    log.append(output("a", "last words"));
    log.end(Duration::from_secs(10)).await;
    let events: Vec<_> = spooled(directory.path()).into_iter().map(|record| record.event).collect();
    assert_eq!(events, [output("a", "last words"), LogEvent::End]);
}

#[tokio::test]
async fn what_a_killed_builder_left_can_be_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    leave_two_records(directory.path());
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), ROOMY).unwrap();
    assert!(shipper.former(&attempt(2), ROOMY).is_none(), "there is none of it");
    let log = shipper.former(&attempt(1), ROOMY).unwrap();
    assert!(shipper.former(&attempt(1), ROOMY).is_none(), "it is taken");
    log.append(output("a", "line 3"));
    shipper.end_former();
    log.end(Duration::from_secs(10)).await;
    let records = spooled(directory.path());
    assert!(numbered_from_one(&records));
    assert_eq!(
        records[2..].iter().map(|record| &record.event).collect::<Vec<_>>(),
        [&output("a", "line 3"), &LogEvent::End]
    );
}

#[tokio::test]
async fn what_a_killed_builder_left_is_closed_with_a_note() {
    let directory = tempfile::tempdir().unwrap();
    leave_two_records(directory.path());
    let shipper = LogShipper::start(Receiver::plain(NOBODY), "token", directory.path(), ROOMY).unwrap();
    shipper.end_former();
    drop(shipper);
    let records = spooled(directory.path());
    assert!(numbered_from_one(&records));
    assert_eq!(records.len(), 4);
    assert!(matches!(&records[2].event, LogEvent::Note { text } if text.contains("restarted")));
    assert_eq!(records[3].event, LogEvent::End);
}

/// Left by a version of the builder that did not bound its records: no connection would take it.
#[test]
fn a_record_that_fits_no_frame_is_marked_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(directory.path(), &attempt(1));
    let texts = [(1, "short".to_owned()), (2, "\"".repeat(3 << 20)), (3, "short again".to_owned())];
    for (seq, text) in &texts {
        let record = LogRecord { seq: *seq, at_ms: 1, event: output("a", text) };
        spool.append((serde_json::to_string(&record).unwrap() + "\n").as_bytes(), 1).unwrap();
    }
    let mut records = Vec::new();
    while let Some(batch) = spool.read(records.len() as u64 + 1).unwrap() {
        assert!(batch.lines.len() < wire::MAX_FRAME / 2);
        records.extend(split_lines(&batch.lines).map(parse));
    }
    assert!(numbered_from_one(&records) && records.len() == 3);
    assert_eq!([text_of(&records[0].event), text_of(&records[2].event)], [Some("short"), Some("short again")]);
    assert_eq!(cuts(&records)[0].0, 1);
}

#[test]
fn a_spool_reads_back_from_anywhere_and_frees_what_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(directory.path(), &attempt(1));
    let line = |seq: u64| format!("{{\"seq\":{seq},\"text\":\"{}\"}}\n", "x".repeat(300_000));
    for seq in 1..=40 {
        spool.append(line(seq).as_bytes(), 1).unwrap();
    }
    for from in [1, 17, 18, 40, 2] {
        let batch = spool.read(from).unwrap().unwrap();
        assert_eq!((batch.first, batch.lines), (from, line(from).into_bytes()));
    }
    assert_eq!(spool.read(41).unwrap(), None);
    let before = spool.bytes();
    let freed = spool.acknowledged(30);
    assert!(freed > 0 && spool.bytes() == before - freed && spool.first() <= 31);
    let first = spool.first();
    assert_eq!(spool.read(1).unwrap().unwrap().first, first, "what is gone is skipped");
    spool.delete();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
