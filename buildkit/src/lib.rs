//! A BuildKit client that stands on its own: it talks to `buildkitd` directly, without `docker` or `buildctl`.
//!
//! ```no_run
//! # async fn build() -> Result<(), Box<dyn std::error::Error>> {
//! use buildkit::{Client, Directory, Export, Frontend, Image, Solve};
//! use std::sync::Arc;
//!
//! let client = Client::connect_unix("/run/buildkit/buildkitd.sock").await?;
//! let context = Arc::new(Directory::new(".")?);
//! let session = client
//!     .session()
//!     .shared_key("my-project")
//!     .dir("context", context.clone())
//!     .dir("dockerfile", context)
//!     .open()
//!     .await?;
//! let solve = Solve::new("build-1", Frontend::BuiltIn)
//!     .attr("filename", "Dockerfile")
//!     .export(Export::Image(Image::named("registry.example/app:latest").push()));
//! let (updates, mut events) = tokio::sync::mpsc::channel(64);
//! tokio::spawn(async move { while let Some(update) = events.recv().await { println!("{update:?}") } });
//! let cancel = tokio_util::sync::CancellationToken::new();
//! let solved = session.solve(solve, updates, &cancel).await?;
//! println!("{:?}", solved.digest);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`]: the control API: daemon information, workers, disk usage, status of a build, build history.
//! - [`Session`]: what a build may ask of its client while it runs: files of a [`Source`], registry
//!   [`Credentials`], [`Secrets`]. It runs on a thread and a connection of its own, so that the daemon's
//!   health checks are answered whatever the rest of the process does.
//! - [`Solve`] is the request, [`StatusUpdate`] the progress, [`Solved`] the result, [`SolveError`] what went wrong, by class.
//! - [`history`]: how a build ended whose client did not live to see it.
//! - [`patterns`], [`syntax`] and [`dockerfile`]: `.dockerignore` matching, the `# syntax=` line and base images, as BuildKit reads
//!   them.
//!
//! Nothing in here retries: what failed is classified and the caller decides.

mod client;
pub mod dockerfile;
mod error;
mod filesync;
mod headers;
pub mod history;
mod image;
pub mod patterns;
mod pool;
mod progress;
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code, see proto/README.md"
)]
mod proto;
mod session;
mod solve;
mod source;
pub mod syntax;
mod tunnel;

pub use client::{Client, ClientError, DiskUsage, Info, StatusStream, Worker};
pub use error::{FailedVertex, FailureKind, RegistryFailure, RegistryStatus, SolveError, SourceExcerpt};
pub use history::{BuildRecord, Settled};
pub use image::{Descriptor, Export, Image};
pub use progress::{LogChunk, Progress, ProgressGroup, StatusUpdate, Vertex, Warning};
pub use session::{
    Credential, Credentials, NoCredentials, NoSecrets, Secrets, Session, SessionBuilder, TokenAnswer, TokenError,
    TokenRequest, TokenTransport, TransportError, fetch_token,
};
pub use solve::{CacheEntry, Frontend, Solve, Solved};
pub use source::{Directory, Entry, EntryKind, Selection, Source, compare_paths};
