//! Guests "under Firecracker", where Firecracker is a stand-in: a process of this test binary that takes the program's arguments, checks
//! each request against Firecracker's API document, and answers for the guest on the vsock socket. No Firecracker is packaged for
//! Debian 12; nothing here shows that a real one boots the image.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod life;
mod schema;
mod stand_in;
