//! Sends one directory as a build context and builds `FROM scratch` + `COPY . /` from it, without exporting anything: what
//! the context's transfer costs, as a process that a benchmark can time.
//!
//! ```text
//! context SOCKET DIRECTORY [DOCKERFILE-DIRECTORY] [NAME=VALUE frontend options …]
//! ```
//!
//! `RUST_LOG=debug` traces. Prints the build's progress to standard error with `--progress`, and one line of JSON to standard output.

use buildkit::{Client, Directory, Frontend, Solve};
use std::{error::Error, sync::Arc, time::Instant};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let (flags, rest): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let (options, paths): (Vec<_>, Vec<_>) = rest.into_iter().partition(|argument| argument.contains('='));
    let [socket, context, ..] = paths.as_slice() else {
        return Err("usage: context SOCKET DIRECTORY [DOCKERFILE-DIRECTORY] [NAME=VALUE ...] [--progress]".into());
    };
    let dockerfile = Directory::new(paths.get(2).unwrap_or(context))?;
    let context = Directory::new(context)?;
    let client = Client::connect_unix(socket).await?;
    let session = client
        .session()
        .shared_key(context.root().to_string_lossy())
        .dir("context", Arc::new(context))
        .dir("dockerfile", Arc::new(dockerfile))
        .open()
        .await?;
    let reference = format!("context-{}", uuid::Uuid::new_v4().simple());
    let solve = options
        .iter()
        .filter_map(|option| option.split_once('='))
        .fold(Solve::new(reference, Frontend::BuiltIn), |solve, (name, value)| solve.attr(name, value));
    let (updates, mut events) = tokio::sync::mpsc::channel(64);
    let verbose = flags.iter().any(|flag| flag == "--progress");
    tokio::spawn(async move {
        while let Some(update) = events.recv().await {
            if verbose {
                eprintln!("{update:?}");
            }
        }
    });
    let solved = session.solve(solve, updates, &CancellationToken::new()).await?;
    println!("{{\"wall_ms\":{},\"digest\":{:?}}}", started.elapsed().as_millis(), solved.digest.unwrap_or_default());
    Ok(())
}
