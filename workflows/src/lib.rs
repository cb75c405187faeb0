//! Workflows, pure policies and the JSON contract of Kiln.
//!
//! This room is deterministic: no clock, no randomness, no I/O, no iteration over a `HashMap`. Activities are declared here by
//! name and signature only ([`activities`]); what touches the world is in the `activities` crate, which this one never links.

pub mod activities;
mod build;
mod cell;
pub mod contract;
pub mod patches;
pub mod policy;
mod pool;

pub use build::Build;
pub use cell::{Cell, CellSeed};
pub use pool::{Pool, PoolSeed};
