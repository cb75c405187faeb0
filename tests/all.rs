//! The integration tests, in one binary: one file a subject.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]
#![expect(clippy::disallowed_methods, reason = "the answers are those of the tests' own servers")]

mod cells;
mod cli;
mod conformance;
mod credentials;
mod definitions;
mod dev;
mod failpoints;
mod faults;
mod guests;
mod harness;
mod host;
mod limits;
mod lines;
mod names;
mod placement;
mod projects;
mod recipes;
mod registries;
mod replay;
mod spine;
mod starters;
mod storage;
mod storm;
mod telemetry;
mod terminal;
mod wires;
mod workflows;
