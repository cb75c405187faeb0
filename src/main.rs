//! `kiln`: durable container builds. One binary; its roles are subcommands.

mod settings;

fn main() {}
