//! The shipper and the receiver together: what a builder logs is what a reader sees, once and in order, whatever breaks between.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use activities::logs::{AttemptLog, LogShipper};
use activities::store::{BuildRow, NewToken, RunKey, Store};
use activities::trust::Trust;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workflows::contract::{AttemptId, BuildStatus, LogEvent, LogRecord, Principal};

use super::archive::archive_round;
use super::steps::StepOutcome;
use super::{Item, LogHub, LogReader, serve, steps};
use crate::api::keyring::Keyring;
use crate::api::tests::s3::TestStore;
use crate::api::tests::{objects_of, row, sqlite};
use crate::listen::tests::pki::Pki;
use crate::listen::{Identity, Listener};

const ROOMY: u64 = 1 << 30;
/// Far more than anything here takes; a test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver's machine: its disk, store and object storage outlive the receiver.
struct Machine {
    disk: TempDir,
    store: Store,
    s3: TestStore,
    /// That of the cell which the run was placed on.
    token: String,
}

impl Machine {
    async fn new() -> Self {
        let disk = tempfile::tempdir().unwrap();
        let store = sqlite(disk.path()).await;
        store.create_project(&"hello".parse().unwrap()).await.unwrap();
        let placed = BuildRow { cell: Some("c-1".parse().unwrap()), ..row("k/1", "run-1", 1) };
        store.record_build(&placed).await.unwrap();
        let token = token(&store, "cell/c-1").await;
        Self { disk, store, s3: TestStore::start().await, token }
    }

    fn shipper(&self, address: SocketAddr, spool: &Path) -> LogShipper {
        shipper(address, &self.token, spool)
    }

    fn hub(&self) -> Arc<LogHub> {
        let objects = objects_of(&self.s3);
        let keyring = Arc::new(Keyring::new(self.store.clone(), ""));
        Arc::new(LogHub::new(&self.disk.path().join("logs"), self.store.clone(), keyring, objects).unwrap())
    }

    async fn receiver(&self, address: SocketAddr) -> Receiver {
        self.receiver_as(address, None).await
    }

    async fn receiver_as(&self, address: SocketAddr, identity: Option<Identity>) -> Receiver {
        let hub = self.hub();
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(serve(Listener::on(listener, identity, &[], 64), hub.clone(), stop.clone()));
        Receiver { hub, address, stop, task }
    }
}

struct Receiver {
    hub: Arc<LogHub>,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Ends it at whatever it is doing.
    async fn kill(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        // A write that is under way ends before this; a killed process would begin no other.
        self.hub.log(&run()).await.unwrap().freeze();
    }

    /// Returns when the run's log has grown to `lines`.
    async fn wait_for_lines(&self, lines: u64) {
        let mut extent = self.hub.log(&run()).await.unwrap().extent();
        let grown = extent.wait_for(|extent| extent.lines >= lines);
        tokio::time::timeout(PATIENCE, grown).await.expect("the log grows").unwrap();
    }
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn run() -> RunKey {
    RunKey { workflow_id: "build/hello/k/1".into(), run_id: "run-1".into() }
}

fn attempt(number: u32) -> AttemptId {
    let RunKey { workflow_id, run_id } = run();
    AttemptId { workflow_id, run_id, platform: "linux/amd64".parse().unwrap(), number }
}

fn shipper(address: SocketAddr, token: &str, spool: &Path) -> LogShipper {
    LogShipper::start(activities::logs::Receiver::plain(&address.to_string()), token, spool, ROOMY).unwrap()
}

async fn token(store: &Store, principal: &str) -> String {
    let principal: Principal = principal.parse().unwrap();
    let new = NewToken { principal, name: "test".into(), issued_by: "test".into(), expires_ms: None };
    store.issue_token(&new).await.unwrap().secret
}

fn print(log: &AttemptLog, vertex: &str, text: String) {
    log.append(LogEvent::Output { vertex: vertex.into(), stream: 1, text });
}

async fn read_from(hub: &Arc<LogHub>, after: u64) -> Vec<Item> {
    let mut reader = LogReader::new(hub.clone(), hub.log(&run()).await.unwrap(), after);
    let mut all = Vec::new();
    loop {
        let items = reader.next().await.unwrap();
        if items.is_empty() {
            return all;
        }
        all.extend(items);
    }
}

/// The records of each attempt, by its number. Checks positions on the way.
fn by_attempt(items: &[Item], mut position: u64) -> BTreeMap<u32, Vec<LogRecord>> {
    let (mut records, mut current) = (BTreeMap::<u32, Vec<LogRecord>>::new(), 0);
    for item in items {
        let at = match item {
            Item::Attempt { position, json } => {
                current = serde_json::from_str::<AttemptId>(json).unwrap().number;
                *position
            }
            Item::Record { position, json } => {
                records.entry(current).or_default().push(serde_json::from_str(json).unwrap());
                Some(*position)
            }
        };
        if let Some(at) = at {
            position += 1;
            assert_eq!(at, position, "positions count on");
        }
    }
    records
}

fn text(records: &[LogRecord]) -> String {
    let output = |record: &LogRecord| match &record.event {
        LogEvent::Output { text, .. } => Some(text.clone()),
        _ => None,
    };
    records.iter().filter_map(output).collect()
}

fn assert_complete(records: &[LogRecord]) {
    let numbers: Vec<u64> = records.iter().map(|record| record.seq).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>(), "each record once, in order");
    assert_eq!(records.last().unwrap().event, LogEvent::End);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_when_the_receiver_is_killed() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let mut receiver = machine.receiver(anywhere()).await;
    let address = receiver.address;
    let shipper = machine.shipper(address, spool.path());
    let logs = [shipper.open(&attempt(1), ROOMY), shipper.open(&attempt(2), ROOMY)];
    let mut expected = [String::new(), String::new()];
    for round in 0..5 {
        for line in 0..2000 {
            for (log, expected) in logs.iter().zip(&mut expected) {
                let text = format!("round {round} line {line} {}\n", "x".repeat(line % 300));
                expected.push_str(&text);
                print(log, &format!("vertex {}", line % 7), text);
            }
        }
        receiver.wait_for_lines(round * 1000 + 1).await;
        receiver.kill().await;
        leave_half_a_line(machine.disk.path());
        receiver = machine.receiver(address).await;
    }
    drop(logs);
    assert!(shipper.drained(PATIENCE).await, "everything is acknowledged");
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0, "the spool is empty");

    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0);
    for (number, expected) in [(1, &expected[0]), (2, &expected[1])] {
        assert_complete(&records[&number]);
        assert!(text(&records[&number]) == *expected, "the text of attempt {number} is whole");
    }
    receiver.kill().await;
}

/// What a killed receiver may leave at its file's end.
fn leave_half_a_line(disk: &Path) {
    use std::io::Write as _;
    let directory = std::fs::read_dir(disk.join("logs")).unwrap().next().unwrap().unwrap().path();
    let file = directory.join("run-1.log");
    std::fs::OpenOptions::new().append(true).open(file).unwrap().write_all(b"{\"seq\":99,\"at").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_builder_ships_what_was_left() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let first = machine.shipper(([127, 0, 0, 1], 1).into(), spool.path());
    let log = first.open(&attempt(1), ROOMY);
    print(&log, "a", "before the restart\n".into());
    drop(first);
    drop(log);

    let receiver = machine.receiver(anywhere()).await;
    let second = machine.shipper(receiver.address, spool.path());
    second.end_former();
    assert!(second.drained(PATIENCE).await);
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0).remove(&1).unwrap();
    assert_complete(&records);
    assert_eq!(text(&records), "before the restart\n");
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_cells_token_gets_anything_in() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let operator = token(&machine.store, "operator").await;
    let project = token(&machine.store, "project/hello:admin").await;
    let first = shipper(receiver.address, "wrong", spool.path());
    drop(first.open(&attempt(1), ROOMY));
    assert!(!first.drained(Duration::from_millis(300)).await);
    drop(first);
    for wrong in [operator, project] {
        let wrong = shipper(receiver.address, &wrong, spool.path());
        assert!(!wrong.drained(Duration::from_millis(300)).await);
    }
    assert_eq!(read_from(&receiver.hub, 0).await, []);
    // The records are still there for a builder with the right token.
    assert!(machine.shipper(receiver.address, spool.path()).drained(PATIENCE).await);
    assert_complete(&by_attempt(&read_from(&receiver.hub, 0).await, 0)[&1]);
    receiver.kill().await;
}

/// A step of 36 joined lines of 60,000 quotes: JSON doubles it beyond a frame.
#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_longer_than_a_frame_costs_no_attempt_its_log() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let shipper = machine.shipper(receiver.address, spool.path());
    let log = shipper.open(&attempt(1), ROOMY);
    let joined = format!("RUN true{}", format!(" \\\n && echo {}", "\"".repeat(60_000)).repeat(36));
    let (started_ms, completed_ms) = (Some(1), Some(2));
    log.append(LogEvent::Vertex {
        vertex: "a".into(),
        name: joined,
        started_ms,
        completed_ms,
        cached: false,
        error: None,
    });
    print(&log, "a", "printed after it".into());
    drop(log);
    ship(&shipper, 2, 3).await;
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0);
    assert_eq!(
        (text(&records[&1]).as_str(), text(&records[&2]).as_str()),
        ("printed after it", "line 0\nline 1\nline 2\n")
    );
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_refused_leaves_the_others_their_logs() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let shipper = machine.shipper(receiver.address, spool.path());
    let bad = shipper.open(&AttemptId { run_id: "../../elsewhere".into(), ..attempt(1) }, ROOMY);
    let good = shipper.open(&attempt(1), ROOMY);
    print(&good, "a", "before, ".into());
    print(&bad, "a", "never kept".into());
    receiver.wait_for_lines(2).await;
    print(&good, "a", "after".into());
    drop((bad, good));
    assert!(shipper.drained(PATIENCE).await, "the refused log is dropped");
    assert_eq!(text(&by_attempt(&read_from(&receiver.hub, 0).await, 0)[&1]), "before, after");
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_no_record_has_are_refused() {
    let machine = Machine::new().await;
    let log = machine.hub().log(&run()).await.unwrap();
    for first in [0, u64::MAX, (1 << 32) + 1] {
        assert!(log.open_attempt(&attempt(1), first).is_err(), "{first}");
        assert!(log.receive(&attempt(1), first, &"\n".into()).is_err(), "{first}");
    }
    log.open_attempt(&attempt(1), 1).unwrap();
    let many = bytes::Bytes::from(vec![b'\n'; 1 << 17]);
    assert!(log.receive(&attempt(1), 1, &many).is_err(), "a frame of empty records");
    assert_eq!(log.open_attempt(&attempt(1), 1).unwrap(), 0, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_writes_only_logs_of_attempts_that_were_placed_on_it() {
    let machine = Machine::new().await;
    let receiver = machine.receiver(anywhere()).await;
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let foreign = shipper(receiver.address, &token(&machine.store, "cell/c-2").await, other.path());
    let log = foreign.open(&attempt(1), ROOMY);
    print(&log, "a", "forged\n".into());
    drop(log);
    let absent = AttemptId { run_id: "run-2".into(), ..attempt(1) };
    drop(foreign.open(&absent, ROOMY));
    assert!(foreign.drained(PATIENCE).await, "a rejected log is dropped");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0, "and leaves nothing in the spool");
    assert_eq!(read_from(&receiver.hub, 0).await, []);

    // The connection is as good as before for an attempt that moved to the cell, and the first cell may still send its own.
    let moved = BuildRow { cell: Some("c-2".parse().unwrap()), ..row("k/1", "run-1", 1) };
    machine.store.record_build(&moved).await.unwrap();
    ship(&foreign, 2, 3).await;
    ship(&machine.shipper(receiver.address, own.path()), 1, 4).await;
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0);
    (1..=2).for_each(|number| assert_complete(&records[&number]));
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_first_frame_is_refused_before_it_has_arrived() {
    let machine = Machine::new().await;
    let receiver = machine.receiver(anywhere()).await;
    let mut stranger = tokio::net::TcpStream::connect(receiver.address).await.unwrap();
    // The length alone, and nothing of the frame.
    stranger.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), stranger.read(&mut [0])).await;
    assert_eq!(closed.expect("closed long before the time for a token is over").unwrap_or(0), 0);
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_token() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let shipper = machine.shipper(receiver.address, spool.path());
    ship(&shipper, 1, 3).await;
    let cell = machine.store.tokens(None).await.unwrap().remove(0);
    machine.store.revoke_token(&cell.id).await.unwrap();
    let void = async {
        while receiver.hub.keyring.identify(&machine.token).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), void).await.expect("it is void within two seconds");
    drop(shipper.open(&attempt(2), ROOMY));
    assert!(!shipper.drained(Duration::from_millis(300)).await);
    assert_eq!(by_attempt(&read_from(&receiver.hub, 0).await, 0).len(), 1, "nothing of the second attempt");
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_travel_over_tls_to_a_receiver_that_the_builder_trusts() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let (pki, other) = (Pki::new(), Pki::new());
    let (cert, key) = pki.issue("logs");
    let receiver = machine.receiver_as(anywhere(), Identity::of(&cert, &key).unwrap()).await;
    let address = format!("localhost:{}", receiver.address.port());
    let trusting = |ca: &Path, spool: &Path| {
        let config = Trust::with_file(ca).unwrap().client().unwrap();
        LogShipper::start(activities::logs::Receiver::tls(&address, config), &machine.token, spool, ROOMY).unwrap()
    };
    let spools = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plain = machine.shipper(receiver.address, spools[1].path());
    for deaf in [trusting(&other.ca(), spools[0].path()), plain] {
        drop(deaf.open(&attempt(1), ROOMY));
        assert!(!deaf.drained(Duration::from_millis(300)).await);
    }
    assert_eq!(read_from(&receiver.hub, 0).await, []);
    let trusting = trusting(&pki.ca(), spool.path());
    print(&trusting.open(&attempt(2), ROOMY), "v", "over TLS\n".into());
    assert!(trusting.drained(PATIENCE).await);
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0);
    assert_eq!(text(&records[&2]), "over TLS\n");
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_only_a_lost_receiver_had_are_counted() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let address = receiver.address;
    let shipper = machine.shipper(address, spool.path());
    let log = shipper.open(&attempt(1), ROOMY);
    // More than a segment, so that acknowledged records leave the spool.
    for i in 0..200 {
        print(&log, &format!("vertex {i}"), "x".repeat(60_000));
        // Not faster than the disk, so that nothing is cut.
        receiver.wait_for_lines(i / 50 * 50).await;
    }
    receiver.wait_for_lines(201).await;
    receiver.kill().await;
    std::fs::remove_dir_all(machine.disk.path().join("logs")).unwrap();

    let receiver = machine.receiver(address).await;
    print(&log, "last", "after the loss".into());
    drop(log);
    assert!(shipper.drained(PATIENCE).await);
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0).remove(&1).unwrap();
    let LogRecord { seq, event: LogEvent::Cut { records: cut, .. }, .. } = &records[0] else {
        panic!("{:?}", records[0])
    };
    assert!(*cut > 0 && seq == cut, "the first record says how many are missing");
    assert_eq!(records.last().unwrap().seq, 202);
    assert!(text(&records).ends_with("after the loss"));
    receiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_log_moves_to_object_storage_and_reads_the_same() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let hub = receiver.hub.clone();
    let shipper = machine.shipper(receiver.address, spool.path());
    ship(&shipper, 1, 500).await;
    let before = read_from(&hub, 0).await;
    archive_round(&hub).await.unwrap();
    assert_eq!(hub.on_disk().unwrap(), [run()], "an open run's log stays on disk");

    let mut reader = LogReader::new(hub.clone(), hub.log(&run()).await.unwrap(), 0);
    let some = reader.next().await.unwrap();
    end_run(&machine.store).await;
    archive_round(&hub).await.unwrap();
    assert_eq!(hub.on_disk().unwrap(), []);
    assert_eq!(read_from(&hub, 0).await, before);
    assert!(!some.is_empty() && before.starts_with(&some));
    assert_eq!(reader.next().await.unwrap(), before[some.len()..], "a reader in between goes on where it was");

    // An attempt nobody expected any more, then the api starts anew.
    ship(&shipper, 2, 10).await;
    archive_round(&hub).await.unwrap();
    ship(&shipper, 3, 10).await;
    let again = machine.hub();
    let all = read_from(&again, 0).await;
    assert!(all.starts_with(&before));
    let records = by_attempt(&all, 0);
    (1..=3).for_each(|number| assert_complete(&records[&number]));
    let after = before.len() as u64 - 2;
    let rest = read_from(&again, after).await;
    assert!(matches!(&rest[0], Item::Attempt { position: None, .. }), "whose records follow is told first");
    assert_eq!(rest[1..], all[before.len() - 2..]);
    receiver.kill().await;
}

async fn ship(shipper: &LogShipper, number: u32, lines: usize) {
    let log = shipper.open(&attempt(number), ROOMY);
    for line in 0..lines {
        print(&log, &format!("vertex {}", line % 2), format!("line {line}\n"));
    }
    drop(log);
    assert!(shipper.drained(PATIENCE).await);
}

async fn end_run(store: &Store) {
    let ended = BuildRow { status: BuildStatus::Succeeded, ..row("k/1", "run-1", 1) };
    store.record_build(&ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_cut_short_by_a_crash_is_not_read_twice() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let hub = receiver.hub.clone();
    ship(&machine.shipper(receiver.address, spool.path()), 1, 50).await;
    let before = read_from(&hub, 0).await;
    let log = hub.log(&run()).await.unwrap();
    let kept = std::fs::read(log.path()).unwrap();
    end_run(&machine.store).await;
    archive_round(&hub).await.unwrap();
    // The crash: everything is written, the file is not deleted.
    std::fs::write(log.path(), kept).unwrap();
    receiver.kill().await;
    assert_eq!(read_from(&machine.hub(), 0).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_told_from_the_log() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let shipper = machine.shipper(receiver.address, spool.path());
    let log = shipper.open(&attempt(1), ROOMY);
    let vertex = |vertex: &str, started_ms, completed_ms, cached, error: Option<&str>| LogEvent::Vertex {
        vertex: vertex.into(),
        name: format!("[{vertex}] RUN"),
        started_ms,
        completed_ms,
        cached,
        error: error.map(str::to_owned),
    };
    log.append(vertex("a", None, None, false, None));
    log.append(vertex("b", Some(10), Some(10), true, None));
    log.append(vertex("a", Some(10), None, false, None));
    print(&log, "a", "\"type\":\"vertex\" is only output here".into());
    log.append(vertex("a", Some(10), Some(1510), false, None));
    log.append(vertex("c", Some(20), Some(30), false, Some("exit code: 1")));
    log.append(vertex("d", None, None, false, None));
    drop(log);
    assert!(shipper.drained(PATIENCE).await);
    let found = steps(&receiver.hub, receiver.hub.log(&run()).await.unwrap()).await.unwrap();
    let found: Vec<_> = found.iter().map(|step| (step.name.as_str(), step.outcome, step.duration_ms)).collect();
    let expected = [
        ("[a] RUN", StepOutcome::Ran, Some(1500)),
        ("[b] RUN", StepOutcome::Cached, Some(0)),
        ("[c] RUN", StepOutcome::Failed, Some(10)),
        ("[d] RUN", StepOutcome::Waiting, None),
    ];
    assert_eq!(found, expected);
    receiver.kill().await;
}

/// What a step that prints ten million lines sends, in a tenth of its size.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_lines_pass() {
    let (machine, spool) = (Machine::new().await, tempfile::tempdir().unwrap());
    let receiver = machine.receiver(anywhere()).await;
    let shipper = machine.shipper(receiver.address, spool.path());
    let log = shipper.open(&attempt(1), ROOMY);
    let mut total = 0;
    for chunk in 0..1000 {
        let lines: String = (0..1000).map(|line| format!("line {}\n", chunk * 1000 + line)).collect();
        total += lines.len();
        print(&log, "a", lines);
        // A build prints no faster than this machine can follow; then nothing is cut.
        receiver.wait_for_lines(chunk / 10).await;
    }
    drop(log);
    assert!(shipper.drained(PATIENCE).await);
    let records = by_attempt(&read_from(&receiver.hub, 0).await, 0).remove(&1).unwrap();
    assert_complete(&records);
    let text = text(&records);
    assert_eq!((text.len(), text.lines().count()), (total, 1_000_000));
    assert!(text.ends_with("line 999999\n"));
    receiver.kill().await;
}

#[tokio::test]
async fn a_run_id_that_is_a_path_is_refused() {
    let machine = Machine::new().await;
    for run_id in ["../../etc/passwd", "", "a/b"] {
        let run = RunKey { run_id: run_id.into(), ..run() };
        assert!(machine.hub().log(&run).await.is_err(), "{run_id:?} was taken");
    }
}
