//! A build on the screen, from its start to its result: used by every command that waits for one.

mod follow;
mod interrupt;
mod report;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use workflows::contract::{BuildError, BuildResult, BuildStatus, FailureClass};

pub use follow::{News, follow, log_so_far};
pub use interrupt::Interrupts;
use interrupt::{QUESTION, Wish};
use report::OwnTimings;
pub use report::exit_code;

use super::client::{BuildEvent, BuildStarted, Client};
use super::progress::{Display, Progress};
use super::{Failure, Output};
use crate::terminal::{self, OutputError};

/// How often the picture is redrawn.
const FRAME: Duration = Duration::from_millis(100);

/// How watching ends.
#[derive(Debug)]
pub enum Ending {
    Result(Box<BuildResult>),
    /// The build goes on without us.
    Detached,
}

/// Shows a build until it ends or the user lets go of it.
pub async fn watch(
    client: &Client,
    started: &BuildStarted,
    interrupts: &mut Interrupts,
    display: &mut Display,
) -> Result<Ending, Failure> {
    let mut news = follow(client.clone(), started.build_id.clone(), started.run_id.clone());
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asking = false;
    loop {
        tokio::select! {
            some = news.recv() => match some {
                Some(News::Ended(result)) => return Ok(Ending::Result(result)),
                Some(News::Lost(failure)) => return Err(failure),
                Some(other) => show(other, display),
                None => return Err(Failure::usage("the build is no longer followed")),
            },
            _ = frames.tick(), if !asking => display.tick(),
            wish = interrupts.next() => {
                asking = wish == Wish::Ask;
                match wish {
                    Wish::Ask => display.ask(QUESTION),
                    Wish::GoOn => {}
                    Wish::Detach => return Ok(Ending::Detached),
                    Wish::Cancel => cancel(client, started, display).await,
                    Wish::Leave => return Err(left(started)),
                }
            }
        }
    }
}

/// Draws one piece of news.
pub fn show(news: News, display: &mut Display) {
    match news {
        News::Event(BuildEvent::Log(_, record)) => display.record(record),
        News::Event(BuildEvent::Attempt(attempt)) => display.attempt(attempt),
        News::Away(why) => display.note(&format!("WARN: {why}; the build goes on, trying again")),
        News::Back => display.note("the api answers again"),
        News::Cut(why) => display.note(&format!("WARN: the rest of the log could not be read: {why}")),
        News::Event(BuildEvent::Status(_) | BuildEvent::Result(_)) | News::Ended(_) | News::Lost(_) => {}
    }
}

/// Asks for the build's end; its result still comes the usual way.
async fn cancel(client: &Client, started: &BuildStarted, display: &mut Display) {
    display.note("cancelling; Ctrl-C again leaves at once");
    if let Err(error) = client.cancel(&started.build_id).await {
        display.note(&format!("WARN: the build could not be cancelled: {error}"));
    }
}

fn left(started: &BuildStarted) -> Failure {
    Failure::new(FailureClass::Cancelled, "left before the build had ended")
        .hint(format!("see `kiln builds show {}`", started.build_id))
}

/// What a command knows of its build when it ends, and how it is printed.
pub struct Watched {
    output: Output,
    progress: Progress,
    begun: Instant,
    started: Option<BuildStarted>,
    own: OwnTimings,
}

impl Watched {
    pub fn new(output: Output, progress: Progress) -> Self {
        Self { output, progress, begun: Instant::now(), started: None, own: OwnTimings::default() }
    }

    /// Notes how long the snapshot took.
    pub fn uploaded(&mut self, took: Duration) {
        self.own.upload = millis(took);
    }

    pub fn started(&mut self, started: &BuildStarted) {
        self.started = Some(started.clone());
    }

    /// Prints how it ended. In JSON there is always an object.
    ///
    /// # Errors
    /// The command's own failure, as it came; that standard output cannot be written.
    pub fn report(mut self, ended: Result<Ending, Failure>) -> Result<ExitCode, Failure> {
        self.own.total = millis(self.begun.elapsed());
        match ended {
            Ok(Ending::Result(result)) => {
                self.report_result(&result)?;
                Ok(ExitCode::from(exit_code(&result)))
            }
            Ok(Ending::Detached) => {
                self.report_detached()?;
                Ok(ExitCode::SUCCESS)
            }
            Err(failure) => {
                let error = BuildError::new(failure.class, failure.message.clone());
                let object = report::json(self.started.as_ref(), &failed(error), self.own);
                Err(failure.object(object))
            }
        }
    }

    fn report_result(&self, result: &BuildResult) -> Result<(), OutputError> {
        let build_id = self.started.as_ref().map_or("", |started| &started.build_id);
        match &result.error {
            Some(error) => terminal::note(report::failure(error, build_id).trim_end()),
            None if result.status != BuildStatus::Succeeded => {
                terminal::note(format_args!("kiln: the build was {}", result.status.as_str()));
            }
            None => {}
        }
        match (self.output, self.progress) {
            (Output::Json, _) => self.print_json(result),
            (Output::Text, Progress::Quiet) if result.error.is_none() => {
                terminal::print_line(result.image.as_deref().unwrap_or_default())
            }
            (Output::Text, _) if result.status == BuildStatus::Succeeded => {
                terminal::print(report::success(result, self.own))
            }
            _ => Ok(()),
        }
    }

    fn report_detached(&self) -> Result<(), OutputError> {
        let Some(started) = &self.started else { return Ok(()) };
        if self.progress != Progress::Quiet {
            let follow = format_args!("kiln builds logs -f {}", started.build_id);
            terminal::note(format_args!("kiln: the build goes on; follow it with `{follow}`"));
        }
        match self.output {
            Output::Json => self.print_json(&BuildResult::blank(BuildStatus::Running)),
            Output::Text => terminal::print_line(&started.build_id),
        }
    }

    fn print_json(&self, result: &BuildResult) -> Result<(), OutputError> {
        terminal::print_json(&report::json(self.started.as_ref(), result, self.own))
    }
}

/// The object of a build that was not started.
pub fn never_started(error: BuildError) -> Value {
    report::json(None, &failed(error), OwnTimings::default())
}

/// A result for a build without one.
fn failed(error: BuildError) -> BuildResult {
    BuildResult { error: Some(error), ..BuildResult::blank(BuildStatus::Failed) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
