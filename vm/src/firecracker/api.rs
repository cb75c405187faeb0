//! Firecracker's API: one request of HTTP/1.1 a connection, over its unix socket.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
pub use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// It answers at once, but for the start of a guest whose memory has to be set aside in huge pages first.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot connect to Firecracker's API socket {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("Firecracker's API broke during {request}")]
    Broken { request: String, source: Box<dyn Error + Send + Sync> },
    #[error("Firecracker did not answer {request} within {ANSWER:?}")]
    Silent { request: String },
    /// In Firecracker's own words.
    #[error("Firecracker refused {request} ({status}): {why}")]
    Refused { request: String, status: StatusCode, why: String },
    #[error("this is Firecracker {found:?}; {oldest} and later are known to take what is said to them here")]
    Old { found: String, oldest: String },
}

pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What is answered.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// A request that changes something; the answer is empty.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<(), ApiError> {
        self.ask(method, path, body.to_string().into()).await.map(drop)
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, ApiError> {
        let request = format!("{method} {path}");
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ApiError::Connect { socket: self.socket.clone(), source })?;
        let answered = timeout(ANSWER, exchange(stream, method, path, body)).await;
        let (status, answer) = match answered {
            Err(_) => return Err(ApiError::Silent { request }),
            Ok(answer) => answer.map_err(|source| ApiError::Broken { request: request.clone(), source })?,
        };
        if status.is_success() {
            return Ok(serde_json::from_slice(&answer).unwrap_or_default());
        }
        Err(ApiError::Refused { request, status, why: fault(&answer) })
    }
}

/// What is wrong, out of the body of a refusal.
fn fault(answer: &[u8]) -> String {
    let body: Value = serde_json::from_slice(answer).unwrap_or_default();
    let told = body.get("fault_message").and_then(Value::as_str).map(str::to_owned);
    told.unwrap_or_else(|| String::from_utf8_lossy(answer).trim().to_owned())
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    // Older releases know their headers as they are usually written only.
    let mut wire = http1::Builder::new();
    let (mut sender, connection) = wire.title_case_headers(true).handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, and whatever it ends with the request says.
    let connection = tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(path);
    let request = request.header(HOST, "localhost").header(ACCEPT, "application/json");
    let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body))?;
    let answered = async {
        let answer = sender.send_request(request).await?;
        Ok::<_, Box<dyn Error + Send + Sync>>((answer.status(), answer.into_body().collect().await?.to_bytes()))
    };
    let answered = answered.await;
    connection.abort();
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_firecrackers_words() {
        assert_eq!(
            fault(br#"{"fault_message":"The kernel file cannot be opened"}"#),
            "The kernel file cannot be opened"
        );
        assert_eq!(fault(b"not json \n"), "not json");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_named() {
        let error = Api::new("/nowhere/api.sock".into()).get("/version").await.unwrap_err().to_string();
        assert_eq!(error, "cannot connect to Firecracker's API socket /nowhere/api.sock");
    }
}
