//! Follows one run of a build to its result, whatever becomes of the connection.
//!
//! ```text
//!            ┌────────────── wait, longer each time ◄──────────────────────┐
//!            ▼                                                             │
//!  stream of events ── broken ─► how is the build? ── runs, no answer, or ended with its log not read
//!            └─ result ─► done           └─ ended, and its log cannot be read ─► done
//! ```
//!
//! A broken stream is resumed after the last record that came, so that none is shown twice or left out, also when the build ended
//! meanwhile. A build never fails because its progress could not be shown.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use workflows::contract::{BuildResult, FailureClass};

use crate::cli::Failure;
use crate::cli::client::{BuildEvent, Client, ClientError};
use crate::cli::failure::chain;

/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the api may be away.
const PATIENCE: Duration = Duration::from_secs(600);
/// Away for so long is worth a word.
const WORTH_A_WORD: Duration = Duration::from_secs(3);
/// Tries in a row that bring nothing new of a log that has ended.
const TRIES_FOR_THE_REST: u32 = 5;
/// Events on their way to the display.
const BUFFER: usize = 256;

/// What there is to know.
#[derive(Debug)]
pub enum News {
    Event(BuildEvent),
    /// The api does not answer, and why; it is asked again.
    Away(String),
    /// It answers again.
    Back,
    /// The rest of the log cannot be read, and why.
    Cut(String),
    /// The last one: how the run ended.
    Ended(Box<BuildResult>),
    /// The last one: it cannot be told how the run ends.
    Lost(Failure),
}

/// Follows a run from its first record to its result, in a task of its own that ends when the receiver is dropped.
pub fn follow(client: Client, build_id: String, run_id: String) -> mpsc::Receiver<News> {
    start(client, build_id, run_id, true)
}

/// Reads a run's log as far as it goes now, in a task of its own that ends when the receiver is dropped. Nothing follows the last
/// record, unless the log cannot be read to there.
pub fn log_so_far(client: Client, build_id: String, run_id: String) -> mpsc::Receiver<News> {
    start(client, build_id, run_id, false)
}

fn start(client: Client, build_id: String, run_id: String, to_the_end: bool) -> mpsc::Receiver<News> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    let heard = Instant::now();
    let follower = Follower {
        client,
        build_id,
        run_id,
        to_the_end,
        after: 0,
        sender,
        heard,
        told: false,
        broken: "it ended early".into(),
        fruitless: 0,
    };
    tokio::spawn(follower.run());
    receiver
}

struct Follower {
    client: Client,
    build_id: String,
    run_id: String,
    /// Whether the result is waited for.
    to_the_end: bool,
    /// The position of the last record that was passed on.
    after: u64,
    sender: mpsc::Sender<News>,
    /// When the api answered last.
    heard: Instant,
    /// Whether it was said that it is away.
    told: bool,
    /// Why the last stream ended too early.
    broken: String,
    /// How often the api answered after a stream that brought nothing new.
    fruitless: u32,
}

/// The last news was passed on, or the receiver was dropped.
struct Done;

impl Follower {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let seen = self.after;
            let step = match self.stream().await {
                Ok(()) => self.ask(self.after > seen).await,
                Err(done) => Err(done),
            };
            if step.is_err() {
                return;
            }
            pause = if self.after > seen { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Passes on one connection's events; returns when it is broken.
    async fn stream(&mut self) -> Result<(), Done> {
        let mut events = match self.client.events(&self.build_id, &self.run_id, self.after, self.to_the_end).await {
            Ok(events) => events,
            Err(error) => {
                self.broken = chain(&error);
                return Ok(());
            }
        };
        self.answered().await?;
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) if !self.to_the_end => return Err(Done),
                Ok(None) => {
                    self.broken = "it ended early".into();
                    return Ok(());
                }
                Err(broken) => {
                    self.broken = chain(&broken);
                    return Ok(());
                }
            };
            self.heard = Instant::now();
            self.pass_on(event).await?;
        }
    }

    async fn pass_on(&mut self, event: BuildEvent) -> Result<(), Done> {
        match event {
            BuildEvent::Result(_) if !self.to_the_end => Ok(()),
            BuildEvent::Result(result) => self.say(News::Ended(result)).await.and(Err(Done)),
            BuildEvent::Log(Some(position), _) if position <= self.after => Ok(()),
            event => {
                if let BuildEvent::Log(Some(position), _) = &event {
                    self.after = *position;
                }
                self.say(News::Event(event)).await
            }
        }
    }

    /// Asks how the run stands, without the stream. While its log can be read, the log comes first.
    async fn ask(&mut self, progress: bool) -> Result<(), Done> {
        match self.client.build(&self.build_id).await {
            Ok(info) => {
                self.answered().await?;
                self.fruitless = if progress { 0 } else { self.fruitless + 1 };
                let ours = info.summary.run_id == self.run_id;
                let is_over = !self.to_the_end || !ours || info.result.is_some();
                match info.result.filter(|_| ours && self.to_the_end) {
                    _ if !is_over || self.fruitless < TRIES_FOR_THE_REST => Ok(()),
                    Some(result) => {
                        self.say(News::Cut(self.broken.clone())).await?;
                        self.say(News::Ended(Box::new(result))).await.and(Err(Done))
                    }
                    None if ours || !self.to_the_end => self.lose(FailureClass::Transient, &self.broken.clone()).await,
                    None => self.lose(FailureClass::Transient, "it was started again meanwhile").await,
                }
            }
            Err(error) if error.is_passing() => self.away(&error).await,
            Err(error) => self.lose(error.class(), &error.to_string()).await,
        }
    }

    async fn answered(&mut self) -> Result<(), Done> {
        self.heard = Instant::now();
        if std::mem::take(&mut self.told) { self.say(News::Back).await } else { Ok(()) }
    }

    async fn away(&mut self, error: &ClientError) -> Result<(), Done> {
        let silent = self.heard.elapsed();
        if silent >= PATIENCE {
            return self.lose(FailureClass::Transient, &error.to_string()).await;
        }
        if silent >= WORTH_A_WORD && !std::mem::replace(&mut self.told, true) {
            return self.say(News::Away(error.to_string())).await;
        }
        Ok(())
    }

    async fn lose(&mut self, class: FailureClass, why: &str) -> Result<(), Done> {
        let failure = Failure::new(class, format!("build {} can no longer be followed: {why}", self.build_id))
            .hint(format!("it may go on; see `kiln builds show {}`", self.build_id));
        self.say(News::Lost(failure)).await.and(Err(Done))
    }

    async fn say(&self, news: News) -> Result<(), Done> {
        self.sender.send(news).await.map_err(|_| Done)
    }
}
