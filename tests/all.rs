//! The integration tests, in one binary: one file a subject.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod cli;
mod dev;
mod faults;
mod harness;
mod replay;
mod spine;
mod workflows;
