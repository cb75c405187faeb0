//! Event streams: live, resumed, to the result.

use std::time::Duration;

use activities::logs::{LogShipper, Receiver};
use activities::store::RunKey;
use futures::StreamExt as _;
use workflows::contract::{AttemptId, LogEvent};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    id: Option<u64>,
    data: Value,
}

struct Stream {
    bytes: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
    /// Whether the connection broke where the stream ended.
    is_cut: bool,
}

impl Stream {
    async fn open(api: &Api, query: &str, last_event: Option<u64>) -> Self {
        Self::open_as(api, TOKEN, query, last_event).await
    }

    async fn open_as(api: &Api, token: &str, query: &str, last_event: Option<u64>) -> Self {
        let mut request = api.request_as(token, Method::GET, &format!("/v1/builds/hello%2Fa/events{query}"));
        if let Some(id) = last_event {
            request = request.header("last-event-id", id.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { bytes: response.bytes_stream().boxed(), text: String::new(), is_cut: false }
    }

    /// The next event; `None` at the stream's end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if !event.starts_with(':') {
                    return Some(parse(&event));
                }
                continue;
            }
            let more = tokio::time::timeout(PATIENCE, self.bytes.next()).await.expect("the stream goes on")?;
            let Ok(more) = more else {
                self.is_cut = true;
                return None;
            };
            self.text.push_str(std::str::from_utf8(&more).unwrap());
        }
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// Reads on to the first event of this name.
    async fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.name == name {
                return event;
            }
        }
    }
}

fn parse(text: &str) -> Event {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Event {
        name: field("event").unwrap().to_owned(),
        id: field("id").map(|id| id.parse().unwrap()),
        data: serde_json::from_str(field("data").unwrap()).unwrap(),
    }
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

/// Writes a log as a builder does, straight into the receiver's files.
async fn write(api: &Api, first: u64, events: &[LogEvent]) {
    let run = RunKey { workflow_id: "build/hello/a".into(), run_id: "run-1".into() };
    let log = api.app.logs.log(&run).await.unwrap();
    let attempt = AttemptId {
        workflow_id: run.workflow_id,
        run_id: run.run_id,
        platform: "linux/amd64".parse().unwrap(),
        number: 1,
    };
    log.open_attempt(&attempt, 1).unwrap();
    let lines: String = events
        .iter()
        .zip(first..)
        .map(|(event, seq)| {
            let record = workflows::contract::LogRecord { seq, at_ms: 1, event: event.clone() };
            serde_json::to_string(&record).unwrap() + "\n"
        })
        .collect();
    log.receive(&attempt, first, &lines.into()).unwrap();
}

fn note(text: &str) -> LogEvent {
    LogEvent::Note { text: text.into() }
}

fn ended(status: BuildStatus) -> BuildRow {
    let result = serde_json::from_value(json!({ "status": status.as_str(), "image": "r/hello@sha256:1" })).unwrap();
    BuildRow { status, result: Some(result), ..row("a", "run-1", 1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_follows_the_log_to_the_result() {
    let api = Api::start(false).await;
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    let mut stream = Stream::open(&api, "", None).await;
    assert_eq!(stream.next().await.unwrap().data, json!({ "run_id": "run-1", "status": "running" }));
    write(&api, 1, &[note("one")]).await;
    assert_eq!(stream.next().await.unwrap().name, "attempt");
    let one = stream.next().await.unwrap();
    assert_eq!((one.name.as_str(), one.id, &one.data["text"]), ("log", Some(2), &json!("one")));

    write(&api, 2, &[note("two"), LogEvent::End]).await;
    api.app.store.record_build(&ended(BuildStatus::Succeeded)).await.unwrap();
    let rest = stream.rest().await;
    assert_eq!(names(&rest), ["log", "log", "status", "result"]);
    assert_eq!(rest[3].data["image"], "r/hello@sha256:1");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_resumes_where_it_was() {
    let api = Api::start(false).await;
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    write(&api, 1, &[note("one"), note("two"), note("three")]).await;
    let mut first = Stream::open(&api, "", None).await;
    let seen = first.until("log").await;
    drop(first);

    write(&api, 4, &[note("four"), LogEvent::End]).await;
    api.app.store.record_build(&ended(BuildStatus::Failed)).await.unwrap();
    for (query, header) in [
        (String::new(), seen.id),
        (format!("?after={}", seen.id.unwrap()), None),
        ("?after=999&run=run-1".into(), seen.id),
    ] {
        let rest = Stream::open(&api, &query, header).await.rest().await;
        assert_eq!(names(&rest), ["status", "attempt", "log", "log", "log", "log", "result"], "{query}");
        assert_eq!(rest[1].id, None, "repeated, not counted");
        let ids: Vec<_> = rest.iter().filter_map(|event| event.id).collect();
        assert_eq!(ids, [3, 4, 5, 6]);
        assert_eq!(rest[2].data["text"], "two");
    }
    let missing = api.get("/v1/builds/hello%2Fa/events?run=absent").await;
    assert_eq!(missing.0, StatusCode::NOT_FOUND);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_does_not_wait_for_a_builder_that_is_gone() {
    let api = Api::start(false).await;
    api.app.store.record_build(&ended(BuildStatus::Failed)).await.unwrap();
    write(&api, 1, &[note("and then silence")]).await;
    let rest = Stream::open(&api, "", None).await.rest().await;
    assert_eq!(names(&rest), ["status", "attempt", "log", "result"]);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_the_api_stops() {
    let api = Api::start(false).await;
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    let mut stream = Stream::open(&api, "", None).await;
    assert_eq!(stream.next().await.unwrap().name, "status");
    api.stop().await;
    assert_eq!((stream.next().await, stream.is_cut), (None, true), "it does not look complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token() {
    let api = Api::start(false).await;
    api.app.store.record_start(&row("a", "run-1", 1)).await.unwrap();
    let token = api.token("project/hello:read").await;
    let mut stream = Stream::open_as(&api, &token, "", None).await;
    assert_eq!(stream.next().await.unwrap().name, "status");
    let id = api.app.store.tokens(None).await.unwrap().remove(0).id;
    assert_eq!(answer(api.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await.0, StatusCode::OK);
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("it ends"), None);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_listens_beside_the_api() {
    let spool = tempfile::tempdir().unwrap();
    let api = Api::start(false).await;
    let placed = BuildRow { cell: Some("c-1".parse().unwrap()), ..row("a", "run-1", 1) };
    api.app.store.record_build(&placed).await.unwrap();
    let shipper = LogShipper::start(
        Receiver::plain(&api.receiver.to_string()),
        &api.token("cell/c-1").await,
        spool.path(),
        1 << 20,
    )
    .unwrap();
    let log = shipper.open(
        &AttemptId {
            workflow_id: "build/hello/a".into(),
            run_id: "run-1".into(),
            platform: "linux/amd64".parse().unwrap(),
            number: 1,
        },
        1 << 20,
    );
    let mut stream = Stream::open(&api, "", None).await;
    log.append(note("from a builder"));
    assert_eq!(stream.until("log").await.data["text"], "from a builder");
    drop(log);
    assert!(shipper.drained(PATIENCE).await);
    api.stop().await;
}
