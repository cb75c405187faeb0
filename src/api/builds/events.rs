//! A build's events as a stream: its log, its status, at the end its result.
//!
//! The result follows the log's end, but does not wait for a builder that has gone away: when the run has ended and its log has
//! not, the stream goes on for as long as records keep coming, a few seconds at most.

use std::sync::Arc;
use std::time::Duration;

use activities::store::{BuildRow, RunKey};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse as _, Response, Sse};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use workflows::contract::BuildStatus;

use crate::api::App;
use crate::api::access::{BuildAccess, Read};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::Parameters;
use crate::api::logs::{Item, LogReader};
use crate::api::principal::Caller;
use crate::api::quotas::OpenStream;
use crate::metrics;

/// After a run has ended: how long the log may be silent, and how long it may go on, before the result is sent.
const SILENCE: Duration = Duration::from_millis(500);
const LATE_LOG: Duration = Duration::from_secs(10);
/// How often a quiet connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a stream checks that its token is still valid.
const CHECK_TOKEN: Duration = Duration::from_secs(1);
/// Events on their way to a slow client.
const BUFFER: usize = 64;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only log events after this position; the header `Last-Event-ID` says the same and goes first.
    pub after: Option<u64>,
    /// Of this run rather than the newest.
    pub run: Option<String>,
    /// Whether to wait for more; `false` ends the stream where the log ends now. True when absent.
    pub follow: Option<bool>,
}

/// The data of a `status` event.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StatusEvent {
    pub run_id: String,
    pub status: BuildStatus,
}

type Sender = mpsc::Sender<Result<Event, Interrupted>>;

/// Cuts the connection, so that the client does not take what it has for the whole log.
#[derive(Debug, thiserror::Error)]
#[error("the stream was interrupted")]
struct Interrupted;

/// Follows a build as server-sent events: `status` (StatusEvent), `attempt` (AttemptId: the records that follow are its), `log`
/// (LogRecord; its id is the position to resume after), last `result` (BuildResult).
#[utoipa::path(get, path = "/v1/builds/{build}/events", tag = "builds",
    params(("build" = String, Path, description = "`<project>/<key>`, percent-encoded"), EventsQuery), responses(
    (status = 200, description = "The stream; it ends after the result", content_type = "text/event-stream", body = String),
    (status = "default", body = ErrorBody)))]
pub async fn follow(
    access: BuildAccess<Read>,
    Parameters(query): Parameters<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let BuildAccess { app, caller, id, .. } = access;
    let row = match query.run {
        Some(run_id) => {
            let run = RunKey { workflow_id: id.workflow_id(), run_id };
            let missing = || ApiError::not_found(format!("build {id} has no run {}", run.run_id));
            app.store.run(&run).await?.ok_or_else(missing)?
        }
        None => app.newest_run(&id).await?,
    };
    let quotas = app.store.project(&id.project).await?.map(|project| project.settings.quotas).unwrap_or_default();
    let open = app.streams.open(&id.project, &quotas)?;
    let after = last_event(&headers)?.or(query.after).unwrap_or(0);
    let log = app.logs.log(&row.run()).await?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let follower = Follower {
        status: app.watcher.subscribe(&row.run(), row.status),
        reader: LogReader::new(app.logs.clone(), log, after),
        app,
        caller,
        row,
        sender,
        to_the_end: query.follow.unwrap_or(true),
        _open: open,
    };
    tokio::spawn(send_events(follower));
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn last_event(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let position = value.to_str().ok().and_then(|text| text.parse().ok());
    position.map(Some).ok_or_else(|| ApiError::usage("Last-Event-ID must be the id of a log event"))
}

/// One client's stream.
struct Follower {
    app: Arc<App>,
    /// Who follows; the stream ends when the token is revoked or expires.
    caller: Arc<Caller>,
    row: BuildRow,
    reader: LogReader,
    status: watch::Receiver<Option<BuildStatus>>,
    sender: Sender,
    /// Whether the stream goes on until the build has ended.
    to_the_end: bool,
    _open: OpenStream,
}

/// The stream ends before its result: the client has gone, or something failed, which is logged where it did. A client that is
/// still there comes back and resumes.
struct Broken;

impl<E: Into<ApiError>> From<E> for Broken {
    fn from(error: E) -> Self {
        let _: ApiError = error.into();
        Self
    }
}

async fn send_events(mut follower: Follower) {
    metrics::EVENT_STREAMS.inc();
    let stop = follower.app.stop.clone();
    let (app, caller) = (follower.app.clone(), follower.caller.clone());
    let ended = tokio::select! {
        ended = stop.run_until_cancelled(follower.run()) => ended,
        () = until_void(&app, &caller) => None,
    };
    if !matches!(ended, Some(Ok(()))) {
        let _ = follower.sender.send(Err(Interrupted)).await;
    }
    metrics::EVENT_STREAMS.dec();
}

/// Returns when the caller's token is not valid any more.
async fn until_void(app: &App, caller: &Caller) {
    while app.is_still_valid(caller).await {
        tokio::time::sleep(CHECK_TOKEN).await;
    }
}

impl Follower {
    async fn run(&mut self) -> Result<(), Broken> {
        let mut told = self.row.status;
        self.say_status(told).await?;
        while !told.is_final() {
            self.send_log().await?;
            if !self.to_the_end {
                return Ok(());
            }
            tokio::select! {
                () = self.reader.changed() => {}
                changed = self.status.changed() => changed.map_err(|_| Broken)?,
                () = self.sender.closed() => return Err(Broken),
            }
            let now = self.status.borrow_and_update().unwrap_or(told);
            if now != told {
                told = now;
                self.say_status(told).await?;
            }
        }
        self.finish_log().await?;
        self.say_result().await
    }

    /// Sends what there is of the log.
    async fn send_log(&mut self) -> Result<(), Broken> {
        loop {
            let items = self.reader.next().await?;
            if items.is_empty() {
                return Ok(());
            }
            for item in items {
                self.send(event_of(item)).await?;
            }
        }
    }

    /// Sends the log to its end, or until nothing comes any more.
    async fn finish_log(&mut self) -> Result<(), Broken> {
        let latest = Instant::now() + LATE_LOG;
        loop {
            self.send_log().await?;
            if self.reader.extent().open_attempts == 0 {
                return Ok(());
            }
            let until = latest.min(Instant::now() + SILENCE);
            if timeout_at(until, self.reader.changed()).await.is_err() {
                return self.send_log().await;
            }
        }
    }

    async fn say_status(&self, status: BuildStatus) -> Result<(), Broken> {
        let data = StatusEvent { run_id: self.row.run_id.clone(), status };
        self.send(json_event("status", &data)?).await
    }

    async fn say_result(&self) -> Result<(), Broken> {
        let row = self.app.store.run(&self.row.run()).await?;
        match row.and_then(|row| row.result) {
            Some(result) => self.send(json_event("result", &result)?).await,
            None => Ok(()),
        }
    }

    async fn send(&self, event: Event) -> Result<(), Broken> {
        self.sender.send(Ok(event)).await.map_err(|_| Broken)
    }
}

fn event_of(item: Item) -> Event {
    match item {
        Item::Record { position, json } => Event::default().event("log").id(position.to_string()).data(json),
        Item::Attempt { position: Some(position), json } => {
            Event::default().event("attempt").id(position.to_string()).data(json)
        }
        Item::Attempt { position: None, json } => Event::default().event("attempt").data(json),
    }
}

fn json_event(name: &str, data: &impl Serialize) -> Result<Event, Broken> {
    let json =
        serde_json::to_string(data).map_err(|error| ApiError::unavailable("an event cannot be written", &error))?;
    Ok(Event::default().event(name).data(json))
}
