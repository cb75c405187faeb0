//! `kiln cells`: look at cells, drain, restart, update, clone and delete them.

mod show;
mod wait;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use workflows::contract::{CellId, CellImage, CloneRequest, DrainRequest, FailureClass, SignalOutcome, SignalRecord};

use super::client::{CellOrder, CellOrdered, Client};
use super::{ClientArgs, Failure, Output};
use crate::settings::Settings;
use crate::terminal::{self, Writer};

/// Between two looks of `ls --watch`.
const REFRESH: Duration = Duration::from_secs(2);

/// List, show, drain, restart, update, clone and delete cells
///
/// A cell is a build machine: a buildkitd and its builder.
#[derive(Debug, Args)]
#[command(display_order = 4, after_help = EXAMPLES)]
pub struct CellsArgs {
    #[command(subcommand)]
    command: Command,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text", global = true, help_heading = "Output")]
    pub output: Output,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all cells: state, slots, line, image, health, cache
    Ls {
        /// Show it again and again, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Show a cell: how it stands, what became of the last orders, which builds are there
    Show { cell: CellId },
    /// Let a cell take no more builds; running ones finish, or move to other cells at the deadline
    Drain(OrderArgs),
    /// Let a cell take builds again
    Undrain {
        cell: CellId,
        /// Return when it does
        #[arg(long)]
        wait: bool,
    },
    /// Drain a cell, stop and start it through its host, and let it take builds again when it solves
    Restart(OrderArgs),
    /// Restart a cell with another image of its host
    Update {
        #[command(flatten)]
        order: OrderArgs,
        /// The image, as `kiln host images` on its host lists it
        #[arg(long, value_name = "NAME@SHA256:…")]
        image: CellImage,
    },
    /// Make another cell on the same host, whose cache begins as a copy of this one's
    ///
    /// The copy shares its content with the original and is made in milliseconds, while the cell goes on. Only guests (the drivers qemu and
    /// firecracker) are cloned, on a file system with reflinks (XFS, btrfs).
    Clone {
        cell: CellId,
        /// The id of the new cell
        #[arg(long = "as", value_name = "NEW")]
        name: CellId,
        /// Why, for those who look at the cell
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Return when the new cell takes builds
        #[arg(long)]
        wait: bool,
    },
    /// Drain a clone, stop it, and delete it with its disk
    Delete(OrderArgs),
}

#[derive(Debug, Args)]
struct OrderArgs {
    cell: CellId,
    /// Move builds that still run after so long to other cells, for example 30m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<SignedDuration>,
    /// Why, for those who look at the cell
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Return when it is done; until then say who still holds what
    #[arg(long)]
    wait: bool,
    /// Also when it is the last cell of its pool that takes builds
    #[arg(long)]
    force: bool,
}

const EXAMPLES: &str = "\
Examples:
  kiln cells drain c17 --deadline 30m --reason 'disk replacement' --wait
  kiln cells undrain c17
  kiln cells restart c17 --deadline 10m --wait
  kiln cells clone c17 --as c17-b --wait
  kiln cells delete c17-b --deadline 10m --wait
  kiln cells ls --watch";

/// A duration of some time from now, as `30m`.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let duration: SignedDuration = text.parse().map_err(|error| format!("must be a duration such as 30m: {error}"))?;
    match duration.is_positive() {
        true => Ok(duration),
        false => Err("the deadline would be in the past".to_owned()),
    }
}

/// Runs the command.
pub async fn run(args: CellsArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let client = Client::new(settings)?;
    match args.command {
        Command::Ls { watch } => list(&client, watch, args.output).await,
        Command::Show { cell } => {
            let view = client.cell(&cell).await?;
            args.output.print(|| show::details(&view), || json!(view))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Drain(order) => order.give(&client, "drain", None, args.output).await,
        Command::Restart(order) => order.give(&client, "restart", None, args.output).await,
        Command::Update { order, image } => order.give(&client, "update", Some(image.into()), args.output).await,
        Command::Clone { cell, name, reason, wait } => {
            let ordered =
                client.clone_cell(&cell, &CloneRequest { name: name.clone(), reason, by: Some(operator()) }).await?;
            clone_made(&client, ordered, &name, wait, args.output).await
        }
        Command::Delete(order) => order.give(&client, "delete", None, args.output).await,
        Command::Undrain { cell, wait } => {
            let ordered = client.order_cell(&cell, "undrain", &CellOrder::default()).await?;
            finish(&client, ordered, wait, args.output).await
        }
    }
}

async fn list(client: &Client, watch: bool, output: Output) -> Result<ExitCode, Failure> {
    let mut closed = std::pin::pin!(terminal::stdout_closed());
    loop {
        let cells = client.cells().await?;
        match output {
            Output::Text if watch && std::io::stdout().is_terminal() => Writer::stdout().screen(&show::list(&cells))?,
            _ => output.print(|| show::list(&cells), || json!({"cells": cells}))?,
        }
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = &mut closed => return Ok(ExitCode::SUCCESS),
        }
    }
}

impl OrderArgs {
    async fn give(
        self,
        client: &Client,
        signal: &str,
        image: Option<String>,
        output: Output,
    ) -> Result<ExitCode, Failure> {
        let deadline = self.deadline.map(|after| Timestamp::now().checked_add(after)).transpose();
        let deadline = deadline.map_err(|error| Failure::usage(format!("--deadline: {error}")))?;
        let order = CellOrder {
            drain: DrainRequest { reason: self.reason, by: Some(operator()), deadline },
            image,
            force: self.force,
        };
        let ordered = client.order_cell(&self.cell, signal, &order).await?;
        finish(client, ordered, self.wait, output).await
    }
}

/// Who gives the order: the user's name on this machine.
fn operator() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "kiln".to_owned())
}

async fn finish(client: &Client, mut ordered: CellOrdered, wait: bool, output: Output) -> Result<ExitCode, Failure> {
    if wait && ordered.record.outcome == SignalOutcome::Accepted {
        ordered.record = wait::until_done(client, &ordered).await?;
    }
    output.print(|| line(&ordered) + "\n", || json!(ordered))?;
    match class(&ordered.record) {
        None => Ok(ExitCode::SUCCESS),
        Some(class) => Ok(ExitCode::from(class.exit_code())),
    }
}

/// The clone is of use when it takes builds, which is no longer the business of the cell that was cloned.
async fn clone_made(
    client: &Client,
    mut ordered: CellOrdered,
    clone: &CellId,
    wait: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    if wait && ordered.record.outcome == SignalOutcome::Accepted {
        ordered.record = wait::until_done(client, &ordered).await?;
    }
    if wait && ordered.record.outcome == SignalOutcome::Done {
        wait::until_ready(client, clone).await?;
    }
    finish(client, ordered, false, output).await
}

/// One line about an order.
fn line(CellOrdered { cell, record }: &CellOrdered) -> String {
    let outcome = match record.outcome {
        SignalOutcome::Accepted => "accepted",
        SignalOutcome::Done => "done",
        SignalOutcome::Refused => "refused",
        SignalOutcome::Nothing => "nothing to do",
        SignalOutcome::Superseded => "superseded by a later order",
        SignalOutcome::Failed => "failed",
    };
    let note = if record.note.is_empty() { String::new() } else { format!(": {}", record.note) };
    format!("{cell}: {} {outcome}{note}", record.signal)
}

fn class(record: &SignalRecord) -> Option<FailureClass> {
    match record.outcome {
        SignalOutcome::Accepted | SignalOutcome::Done | SignalOutcome::Nothing => None,
        SignalOutcome::Refused | SignalOutcome::Superseded => Some(FailureClass::Refused),
        SignalOutcome::Failed => Some(FailureClass::CellFault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_durations_that_lie_ahead() {
        assert_eq!(duration("1h30m").unwrap(), SignedDuration::from_mins(90));
        assert_eq!(duration("45s").unwrap(), SignedDuration::from_secs(45));
        for wrong in ["", "soon", "-5m", "0s", "2020-01-01T00:00:00Z"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_order_is_told_in_one_line() {
        let record = SignalRecord {
            at_ms: 0,
            signal: "restart".into(),
            by: None,
            outcome: SignalOutcome::Refused,
            note: "no host".into(),
        };
        let ordered = CellOrdered { cell: "c1".parse().unwrap(), record };
        assert_eq!(line(&ordered), "c1: restart refused: no host");
        assert_eq!(class(&ordered.record), Some(FailureClass::Refused));
    }
}
