//! The client against a real daemon and a real registry. Needs root, Linux with overlayfs, Debian's `busybox-static` and
//! `docker-registry`; buildkitd, buildctl and runc are built from source where they are missing.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests and their helpers")]
#![expect(clippy::disallowed_methods, reason = "the answers are those of the tests' own servers")]

mod builds;
mod failures;
mod harness;
mod headers;
mod history;
mod registries;
mod sessions;
