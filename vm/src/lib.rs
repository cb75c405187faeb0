//! Guests on their own feet: the image and disks of a microVM cell, the channel to its PID 1, and QEMU or Firecracker to run it.
//!
//! ```text
//! Image (verified) ─┐
//! GuestConfig ──────┼─► Guest ── control channel ──► kiln-init        hello, stop, freeze, thaw, time, resize, stats
//! cache disk ───────┘     └───── QMP or API ──► the machine itself    pause, resume, grow a disk, power cut
//! ```
//!
//! Every wait has a deadline. A guest is known by its process id and that process's start time, so that whoever comes after a restart can
//! take it over ([`Guest::adopt`]) and never takes another process for it. Nothing in here knows builds or Temporal, or decides
//! when a cell is to run.

mod config;
pub mod control;
mod digests;
pub mod disk;
pub mod firecracker;
mod guest;
mod image;
mod logs;
mod machine;
mod process;
pub mod qemu;

pub use config::{BuilderConfig, BuildkitdConfig, GuestConfig, GuestNetwork, Slices, StepLimits};
pub use control::{Control, ControlError, Fault, Hello, Phase};
pub use digests::{FileDigests, sha256_hex};
pub use guest::{End, Guest, Patience, VmError};
pub use image::{Image, ImageError, Images};
pub use machine::{Accel, Files, HostNetwork, Machine, Supervisor, Vmm, VmmKind};
pub use process::Process;
