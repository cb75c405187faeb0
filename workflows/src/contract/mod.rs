//! The contract: payloads of workflows, signals and queries, as plain JSON with stable field names.
//!
//! Any Temporal SDK, `temporal` or `tctl` can start, signal and read them. Unknown fields are ignored, missing optional ones
//! have defaults. Payloads hold references, never secrets. Documented field by field in `docs/contract.md`.

pub(crate) mod bounds;
mod build;
mod cell;
mod failure;
mod host;
mod ids;
mod log;
mod pool;
mod principal;
mod quotas;
#[cfg(test)]
mod tests;

pub use bounds::*;
pub use build::*;
pub use cell::*;
pub use failure::*;
pub use host::*;
pub use ids::*;
pub use log::*;
pub use pool::*;
pub use principal::*;
pub use quotas::*;
