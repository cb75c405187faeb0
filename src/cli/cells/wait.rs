//! Waiting for an order's end, and saying meanwhile who holds the cell.

use std::time::Duration;

use workflows::contract::{CellId, CellState, FailureClass, SignalOutcome, SignalRecord};

use crate::cli::Failure;
use crate::cli::client::{CellOrdered, CellView, Client, ClientError};
use crate::terminal;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);
/// How long the api or the Cell may be away before that is an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// The order's record when it has ended. News go to standard error, each once.
pub async fn until_done(client: &Client, ordered: &CellOrdered) -> Result<SignalRecord, ClientError> {
    let mut said = String::new();
    let mut heard = tokio::time::Instant::now();
    loop {
        match client.cell(&ordered.cell).await {
            Ok(view) => {
                if let Some(record) = ended(&view, &ordered.record) {
                    return Ok(record);
                }
                if view.status.is_some() {
                    heard = tokio::time::Instant::now();
                }
                let news = news(&view);
                if news != said {
                    terminal::note(&news);
                    said = news;
                }
            }
            Err(error) if !error.is_passing() || heard.elapsed() >= PATIENCE => return Err(error),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns when a cell that was just made takes builds. It is not listed until its Cell has said that it is there.
///
/// # Errors
/// When nobody tries any more to start it, or it does not become known.
pub async fn until_ready(client: &Client, cell: &CellId) -> Result<(), Failure> {
    let mut said = String::new();
    let mut heard = tokio::time::Instant::now();
    loop {
        match client.cell(cell).await {
            Ok(view) => {
                heard = tokio::time::Instant::now();
                match view.status.as_ref() {
                    Some(status) if status.state == CellState::Ready => return Ok(()),
                    Some(status) if status.taken_out || status.state == CellState::Deleted => {
                        let why = status.why.as_deref().unwrap_or("it is deleted");
                        return Err(Failure::new(FailureClass::CellFault, format!("{cell} does not come up: {why}")));
                    }
                    _ => {}
                }
                let news = news(&view);
                if news != said {
                    terminal::note(&news);
                    said = news;
                }
            }
            Err(error) if heard.elapsed() >= PATIENCE => return Err(error.into()),
            Err(error) if !error.is_passing() && !error.is_not_found() => return Err(error.into()),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The record once it has ended. One that is not remembered any more has ended long ago: later orders took its place.
fn ended(view: &CellView, asked: &SignalRecord) -> Option<SignalRecord> {
    let status = view.status.as_ref()?;
    let same = |record: &&SignalRecord| record.at_ms == asked.at_ms && record.signal == asked.signal;
    match status.signals.iter().find(same) {
        Some(record) if record.outcome == SignalOutcome::Accepted => None,
        Some(record) => Some(record.clone()),
        None => Some(SignalRecord { outcome: SignalOutcome::Superseded, ..asked.clone() }),
    }
}

fn news(view: &CellView) -> String {
    let (cell, state) =
        (&view.info.hint.cell, view.status.as_ref().map_or(view.info.hint.state, |status| status.state));
    let holders: Vec<&str> = view.builds.iter().map(|build| build.build_id.as_str()).collect();
    match (state, holders.as_slice()) {
        (CellState::Draining, [_, ..]) => format!("{cell}: draining; still there: {}", holders.join(", ")),
        _ => match view.status.as_ref().and_then(|status| status.why.as_deref()) {
            Some(why) => format!("{cell}: {}; {why}", state.as_str()),
            None => format!("{cell}: {}", state.as_str()),
        },
    }
}
