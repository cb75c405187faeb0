//! An S3 store of a test's own: s3s-fs in this process, on a temporary directory. Included by path where it is needed.

use std::net::SocketAddr;
use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::{S3Auth, SimpleAuth};
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

pub const BUCKET: &str = "kiln";
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";

/// Ends with its value.
pub struct TestStore {
    directory: tempfile::TempDir,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl TestStore {
    pub async fn start() -> Self {
        Self::start_with(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY)).await
    }

    /// A store that asks `auth` for secret keys.
    pub async fn start_with(auth: impl S3Auth) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        builder.set_auth(auth);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, builder.build()));
        Self { directory, address, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where an object's bytes are, to alter them behind the store's back.
    pub fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}
