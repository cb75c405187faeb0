//! Follows one run of a build to its result, whatever becomes of the connection.
//!
//! ```text
//!            ┌────────────── wait, longer each time ◄─────────────┐
//!            ▼                                                    │
//!  stream of events ── broken ─► ask how the build stands ── still runs, or no answer
//!            └─ result ─► done           └─ ended ─► done
//! ```
//!
//! A broken stream is resumed after the last record that came, so that none is shown twice or left out. A build never fails because
//! its progress could not be shown.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use workflows::contract::{BuildResult, FailureClass};

use crate::cli::Failure;
use crate::cli::client::{BuildEvent, Client, ClientError};

/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the api may be away.
const PATIENCE: Duration = Duration::from_secs(600);
/// Away for so long is worth a word.
const WORTH_A_WORD: Duration = Duration::from_secs(3);
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
    /// The last one: how the run ended.
    Ended(Box<BuildResult>),
    /// The last one: it cannot be told how the run ends.
    Lost(Failure),
}

/// Follows a run from its first record on, in a task of its own that ends when nobody listens.
pub fn follow(client: Client, build_id: String, run_id: String) -> mpsc::Receiver<News> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    let follower = Follower { client, build_id, run_id, after: 0, sender, heard: Instant::now(), told: false };
    tokio::spawn(follower.run());
    receiver
}

struct Follower {
    client: Client,
    build_id: String,
    run_id: String,
    /// The position of the last record that was passed on.
    after: u64,
    sender: mpsc::Sender<News>,
    /// When the api answered last.
    heard: Instant,
    /// Whether it was said that it is away.
    told: bool,
}

/// The run's last news was passed on, or nobody wants it.
struct Done;

impl Follower {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let seen = self.after;
            let step = match self.stream().await {
                Ok(()) => self.ask().await,
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
        let Ok(mut events) = self.client.events(&self.build_id, Some(&self.run_id), self.after).await else {
            return Ok(());
        };
        self.answered().await?;
        while let Some(event) = events.next().await {
            self.heard = Instant::now();
            match event {
                BuildEvent::Result(result) => return self.say(News::Ended(result)).await.and(Err(Done)),
                BuildEvent::Log(Some(position), _) if position <= self.after => {}
                event => {
                    if let BuildEvent::Log(Some(position), _) = &event {
                        self.after = *position;
                    }
                    self.say(News::Event(event)).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks how the run stands, without the stream.
    async fn ask(&mut self) -> Result<(), Done> {
        match self.client.build(&self.build_id).await {
            Ok(info) => {
                self.answered().await?;
                let ours = info.summary.run_id == self.run_id;
                match info.result.filter(|_| ours) {
                    Some(result) => self.say(News::Ended(Box::new(result))).await.and(Err(Done)),
                    None if ours => Ok(()),
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
