//! Real guests under QEMU: what `make test-vm` runs. A binary of its own, since each boot takes seconds and both processors of a small
//! machine; run it with one test thread.
//!
//! Needs `deploy/setup guest` and the pinned tools; the guest image is built from this checkout. Works without KVM.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod clones;
mod disks;
mod harness;
mod image;
mod life;
mod limits;
mod networks;
