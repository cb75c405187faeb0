//! The S3 store of a development installation: s3s over a directory, in this process.

use std::net::Ipv4Addr;

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::parts::Installation;

/// Serves the installation's bucket until the task is aborted. Objects lie as files below `<data>/s3/<bucket>`.
///
/// # Errors
/// When the directory or the port cannot be had.
pub async fn serve(installation: &Installation) -> anyhow::Result<JoinHandle<()>> {
    let s3 = &installation.settings.s3;
    let root = installation.data.join("s3");
    std::fs::create_dir_all(root.join(&s3.bucket))?;
    let files =
        s3s_fs::FileSystem::new(&root).map_err(|error| anyhow::anyhow!("cannot use {}: {error:?}", root.display()))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(s3.access_key.clone(), s3.secret_key.reveal()));
    let service = service.build();
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, installation.ports.s3)).await.context("the S3 store cannot listen")?;
    Ok(tokio::spawn(async move {
        loop {
            // A failed accept is the peer's, or a lack of descriptors that passes.
            let Ok((socket, _)) = listener.accept().await else { continue };
            let service = service.clone();
            tokio::spawn(async move {
                // The client sees what goes wrong on its connection; nobody else would do anything about it.
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
        }
    }))
}
