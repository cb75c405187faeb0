//! A build's log as progress, drawn as BuildKit's own tools draw it.
//!
//! ```text
//! records ─► Steps (what is known) ─► Plain: lines, appended      (pipes, CI)
//!                                  └► Tty: a picture, redrawn     (terminals)
//! ```
//!
//! The state and both drawings are pure: records and the time go in, text comes out. [`Display`] alone writes. Time is the
//! builders' clock, as the records carry it.

mod display;
mod frame;
mod plain;
mod steps;
#[cfg(test)]
mod tests;
mod units;

use clap::ValueEnum;

pub use display::Display;
pub use units::{bytes, duration};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// tty on a terminal, else plain
    Auto,
    /// Lines, as they come
    Plain,
    /// A picture that is redrawn
    Tty,
    /// Nothing
    Quiet,
}
