//! The connection to Temporal, the same way in every role.

use std::time::Duration;

use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, GrpcCompression};

/// Why there is no connection to Temporal.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address:?} is no host:port of a Temporal frontend")]
    Address { address: String, source: url::ParseError },
    #[error("Temporal at {address} does not answer")]
    Connect { address: String, source: temporalio_client::errors::ClientConnectError },
    #[error("Temporal's client cannot be made")]
    Client(#[source] temporalio_client::errors::ClientNewError),
}

/// How long a role waits for Temporal when both start at the same time.
pub const START_PATIENCE: Duration = Duration::from_secs(60);

/// Connects to the frontend at `address` (`host:port`). `identity` is shown in histories: the role, and for a builder its cell.
///
/// Compression is off: the SDK's default gzip costs more than it saves within a data centre.
pub async fn connect(address: &str, namespace: &str, identity: &str) -> Result<Client, ConnectError> {
    let url = url::Url::parse(&format!("http://{address}"))
        .map_err(|source| ConnectError::Address { address: address.to_owned(), source })?;
    let options = ConnectionOptions::new(url).identity(identity).grpc_compression(GrpcCompression::None).build();
    let connection = Connection::connect(options)
        .await
        .map_err(|source| ConnectError::Connect { address: address.to_owned(), source })?;
    Client::new(connection, ClientOptions::new(namespace).build()).map_err(ConnectError::Client)
}

/// As [`connect`], trying again while Temporal does not answer, for [`START_PATIENCE`].
pub async fn connect_patiently(address: &str, namespace: &str, identity: &str) -> Result<Client, ConnectError> {
    let deadline = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        match connect(address, namespace, identity).await {
            Err(error @ ConnectError::Connect { .. }) if tokio::time::Instant::now() < deadline => {
                tracing::info!(error = &error as &dyn std::error::Error, "waiting for Temporal");
            }
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
