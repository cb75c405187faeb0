//! Workflows, pure policies and the JSON contract of Kiln.
//!
//! This room is deterministic: no clock, no randomness, no I/O. Activities are declared here by name and signature only; what
//! touches the world is in the `activities` crate.

pub mod contract;
