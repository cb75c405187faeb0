//! Everything of Kiln that touches the world: one module per outside system.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "the answers are those of the tests' own servers"))]

pub mod attempts;
pub mod build;
pub mod cache;
pub mod clock;
pub mod control;
pub mod dns;
pub mod durable;
pub mod egress;
pub mod entities;
pub mod failpoint;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod logs;
pub mod objects;
pub mod oci;
pub mod ops;
pub mod pressure;
pub mod sealed;
pub mod search_attributes;
pub mod snapshots;
pub mod store;
pub mod temporal;
pub mod trust;
pub mod vm;
pub mod workers;

mod metrics;
#[cfg(test)]
mod testing;
