//! A registry as the tests need it: it keeps manifests and tags, and fails on demand. Whole paths run on the real one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::Digest as _;

#[derive(Default)]
struct Content {
    /// By `repository@digest`.
    manifests: BTreeMap<String, Bytes>,
    /// By `repository:tag`.
    tags: BTreeMap<String, String>,
    /// Answers to the next requests, before anything else.
    failures: VecDeque<StatusCode>,
    writes: usize,
}

/// A registry on a loopback port, as long as its runtime lives.
#[derive(Clone)]
pub struct FakeRegistry {
    pub host: String,
    content: Arc<Mutex<Content>>,
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content: Arc<Mutex<Content>> = Arc::default();
        let app = Router::new()
            .route("/v2/", get(|| async { StatusCode::OK }))
            .route("/v2/{repository}/manifests/{reference}", get(read).head(read).put(write))
            .with_state(content.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { host, content }
    }

    /// Puts an image there, as buildkitd would by digest, and returns its digest.
    pub fn push_by_digest(&self, repository: &str, text: &str) -> String {
        let manifest = Bytes::from(
            serde_json::json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
                "layers": [],
                "annotations": {"text": text},
            })
            .to_string(),
        );
        let digest = digest_of(&manifest);
        self.content.lock().unwrap().manifests.insert(format!("{repository}@{digest}"), manifest);
        digest
    }

    pub fn collect_garbage(&self) {
        self.content.lock().unwrap().manifests.clear();
    }

    pub fn fail_next(&self, answers: &[StatusCode]) {
        self.content.lock().unwrap().failures.extend(answers);
    }

    /// The digest that `repository:tag` points at.
    pub fn tag(&self, name: &str) -> Option<String> {
        self.content.lock().unwrap().tags.get(name).cloned()
    }

    /// How many tags were written, by whatever digest.
    pub fn writes(&self) -> usize {
        self.content.lock().unwrap().writes
    }
}

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

async fn read(
    State(content): State<Arc<Mutex<Content>>>,
    Path((repository, reference)): Path<(String, String)>,
) -> Response {
    let mut content = content.lock().unwrap();
    if let Some(status) = content.failures.pop_front() {
        return status.into_response();
    }
    let digest = match reference.starts_with("sha256:") {
        true => Some(reference),
        false => content.tags.get(&format!("{repository}:{reference}")).cloned(),
    };
    let manifest = digest.and_then(|digest| Some((content.manifests.get(&format!("{repository}@{digest}"))?, digest)));
    match manifest {
        None => (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#).into_response(),
        Some((bytes, digest)) => {
            let headers = [
                ("docker-content-digest", digest),
                ("content-type", "application/vnd.oci.image.manifest.v1+json".into()),
            ];
            (headers, bytes.clone()).into_response()
        }
    }
}

async fn write(
    State(content): State<Arc<Mutex<Content>>>,
    Path((repository, reference)): Path<(String, String)>,
    _headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut content = content.lock().unwrap();
    if let Some(status) = content.failures.pop_front() {
        return status.into_response();
    }
    let digest = digest_of(&body);
    content.manifests.insert(format!("{repository}@{digest}"), body);
    content.tags.insert(format!("{repository}:{reference}"), digest.clone());
    content.writes += 1;
    let location = format!("/v2/{repository}/manifests/{digest}");
    (StatusCode::CREATED, [("location", location), ("docker-content-digest", digest)]).into_response()
}
