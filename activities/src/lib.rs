//! Everything of Kiln that touches the world, one module per outside system.

pub mod store;
pub mod temporal;
