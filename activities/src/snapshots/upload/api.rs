//! What the uploader needs of the api, and the api over HTTP.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use url::Url;
use workflows::contract::{ProjectName, SnapshotId};

use crate::objects::retry::{Answer, send};
use crate::objects::{BoxError, Patience, Problem};
use crate::snapshots::manifest::LONGEST_MANIFEST;
use crate::snapshots::service::{Begun, Committed, PackRef};

/// The header that names the snapshot of a manifest.
const SNAPSHOT_HEADER: &str = "kiln-snapshot";

/// What the uploader needs of the api. All calls can be repeated.
pub trait SnapshotApi: Send + Sync + 'static {
    /// The project's newest snapshot: the base against which only what is new travels.
    fn latest(&self) -> impl Future<Output = Result<Option<(SnapshotId, Bytes)>, ApiError>> + Send;
    fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> impl Future<Output = Result<Begun, ApiError>> + Send;
    fn commit(
        &self,
        id: &SnapshotId,
        session: &str,
        manifest: Bytes,
    ) -> impl Future<Output = Result<Committed, ApiError>> + Send;
}

/// Why the api did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the api cannot be reached")]
    Unreachable(#[source] BoxError),
    /// The api's own words.
    #[error("{message}")]
    Answered {
        status: u16,
        /// `refused`, `user_error`, …
        class: String,
        message: String,
    },
    /// The answer is not one of the api's: another server has this address.
    #[error("the api's answer cannot be read: {what}")]
    Unreadable { what: String },
}

/// The api over HTTP.
#[derive(Clone)]
pub struct HttpApi {
    client: Client,
    base: Url,
    token: String,
    project: ProjectName,
    patience: Patience,
}

impl HttpApi {
    /// `base` is the api's URL; `token` the bearer token.
    pub fn new(client: Client, base: Url, token: String, project: ProjectName) -> Self {
        let patience = Patience { request_timeout: Duration::from_secs(120), ..Patience::default() };
        Self { client, base, token, project, patience }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        limit: u64,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, ApiError> {
        let url = format!("{}/v1/projects/{}/snapshots{path}", self.base.as_str().trim_end_matches('/'), self.project);
        let request = || fill(self.client.request(method.clone(), &url).bearer_auth(&self.token));
        send(&self.patience, path, limit, request).await.map_err(|error| match (error.problem, error.source) {
            (Problem::Size { .. }, _) => ApiError::Unreadable { what: "its answer is too long".into() },
            (_, Some(source)) => ApiError::Unreachable(source),
            (_, None) => ApiError::Answered {
                status: 408,
                class: "transient".to_owned(),
                message: format!("the api at {} did not answer in time", self.base),
            },
        })
    }

    /// Turns an answer that is no success into the api's own error.
    fn checked(&self, answer: Answer) -> Result<Answer, ApiError> {
        #[derive(Deserialize)]
        struct Body {
            error: Told,
        }
        #[derive(Deserialize)]
        struct Told {
            class: String,
            message: String,
        }
        if answer.is_success() {
            return Ok(answer);
        }
        let status = answer.status;
        match serde_json::from_slice(&answer.body) {
            Ok(Body { error: Told { class, message } }) => Err(ApiError::Answered { status, class, message }),
            Err(_) if answer.is_transient() || status == 401 => {
                let message = format!("the api at {} answered {status}", self.base);
                Err(ApiError::Answered { status, class: "transient".to_owned(), message })
            }
            Err(_) => Err(ApiError::Unreadable { what: format!("it answered {status}") }),
        }
    }
}

impl SnapshotApi for HttpApi {
    async fn latest(&self) -> Result<Option<(SnapshotId, Bytes)>, ApiError> {
        let answer = self.send(Method::GET, "/latest", LONGEST_MANIFEST, |request| request).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let answer = self.checked(answer)?;
        let id = answer.headers.get(SNAPSHOT_HEADER).and_then(|id| id.to_str().ok()?.parse().ok());
        let id = id.ok_or_else(|| ApiError::Unreadable { what: "it sent no header kiln-snapshot".into() })?;
        Ok(Some((id, answer.body)))
    }

    async fn begin(
        &self,
        id: Option<&SnapshotId>,
        session: Option<&str>,
        packs: &[PackRef],
    ) -> Result<Begun, ApiError> {
        let body = json!({ "id": id, "session": session, "packs": packs });
        let answer = self.send(Method::POST, "", ANSWER_LIMIT, |request| request.json(&body)).await?;
        let answer = self.checked(answer)?;
        let unreadable = |_| ApiError::Unreadable { what: "it sent no snapshot session".into() };
        serde_json::from_slice(&answer.body).map_err(unreadable)
    }

    async fn commit(&self, id: &SnapshotId, session: &str, manifest: Bytes) -> Result<Committed, ApiError> {
        let path = format!("/{id}");
        let fill = |request: RequestBuilder| request.query(&[("session", session)]).body(manifest.clone());
        let answer = self.checked(self.send(Method::PUT, &path, ANSWER_LIMIT, fill).await?)?;
        Ok(Committed { existed: answer.status == 200 })
    }
}

/// Bytes of an answer that is no manifest.
const ANSWER_LIMIT: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::impatient;

    /// Answers each request with the next of these; keeps the requests' heads.
    async fn serve(answers: Vec<String>) -> (HttpApi, Arc<Mutex<Vec<String>>>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let api = HttpApi::new(Client::new(), base, "token".into(), "shop".parse().unwrap());
        (HttpApi { patience: impatient(), ..api }, heads)
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn asks_for_the_newest_snapshot_with_its_token() {
        let id = "ab".repeat(32);
        let found = answer("200 OK", &format!("kiln-snapshot: {id}\r\n"), "manifest");
        let (api, heads) = serve(vec![found, answer("404 Not Found", "", "{}"), answer("200 OK", "", "m")]).await;
        let (named, manifest) = api.latest().await.unwrap().unwrap();
        assert_eq!((named.as_str(), manifest.as_ref()), (id.as_str(), b"manifest".as_slice()));
        assert!(api.latest().await.unwrap().is_none());
        assert!(matches!(api.latest().await, Err(ApiError::Unreadable { .. })));
        let head = heads.lock().unwrap()[0].to_ascii_lowercase();
        assert!(head.starts_with("get /v1/projects/shop/snapshots/latest http/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: bearer token\r\n"), "{head}");
    }

    #[tokio::test]
    async fn begins_and_commits() {
        let id: SnapshotId = "cd".repeat(32).parse().unwrap();
        let begun = r#"{"exists":false,"session":"s 1","uploads":[{"sha256":"x","url":"u","headers":{"a":"b"}}]}"#;
        let answers = [answer("200 OK", "", begun), answer("201 Created", "", ""), answer("200 OK", "", "")];
        let (api, heads) = serve(answers.into()).await;
        let begun = api.begin(Some(&id), None, &[PackRef { sha256: "x".into(), size: 7 }]).await.unwrap();
        assert_eq!((begun.session.as_str(), begun.uploads[0].headers["a"].as_str()), ("s 1", "b"));
        assert!(!api.commit(&id, &begun.session, Bytes::from_static(b"m")).await.unwrap().existed);
        assert!(api.commit(&id, &begun.session, Bytes::from_static(b"m")).await.unwrap().existed);
        let heads = heads.lock().unwrap();
        assert!(
            heads[1].starts_with(&format!("PUT /v1/projects/shop/snapshots/{id}?session=s+1 HTTP/1.1")),
            "{}",
            heads[1]
        );
    }

    #[tokio::test]
    async fn says_what_the_api_says_and_tries_again_only_what_may_pass() {
        let refused = r#"{"error":{"class":"refused","message":"snapshot refused: a: the path is absolute"}}"#;
        let busy = answer("503 Busy", "", "");
        let other = answer("404 Not Found", "", "<html>");
        let answers = [answer("400 Bad", "", refused), busy.clone(), busy, answer("404 Not Found", "", ""), other];
        let (api, heads) = serve(answers.into()).await;
        let id: SnapshotId = "cd".repeat(32).parse().unwrap();
        let error = api.commit(&id, "s", Bytes::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "snapshot refused: a: the path is absolute");
        assert!(api.latest().await.unwrap().is_none());
        assert!(matches!(api.begin(None, None, &[]).await, Err(ApiError::Unreadable { .. })));
        assert_eq!(heads.lock().unwrap().len(), 5);
        // Nobody listens any more.
        assert!(matches!(api.latest().await, Err(ApiError::Unreachable(_))));
    }
}
