//! Object storage: S3 and what speaks like it (R2, versitygw, s3s).
//!
//! Every request is a presigned one, has a deadline, and is tried again with jittered backoff where that is safe: reads and deletes
//! always, writes because an object is either immutable (`If-None-Match: *`, its content behind its name) or a pointer that only its
//! last writer decides. Nothing asks for a compressed transfer: the body of an object is the object. What is read is bounded by the
//! caller, and no error shows a signature.

mod error;
pub(crate) mod retry;
mod sign;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use rusty_s3::Method;
use sha2::{Digest as _, Sha256};

pub use error::{ObjectError, Problem};
use retry::{Answer, send};
use sign::{Signer, parse_checksum, put_headers};

use crate::trust::Trust;

/// The most bytes read of an answer that is no object: an error, a page of a listing.
const ANSWER_LIMIT: u64 = 4 << 20;

/// Where the objects are, and how patient to be.
#[derive(Clone)]
pub struct ObjectSettings {
    /// For example `https://<account>.r2.cloudflarestorage.com`.
    pub endpoint: String,
    /// `auto` for R2.
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    /// Not shown by `Debug`.
    pub secret_key: String,
    pub patience: Patience,
}

impl fmt::Debug for ObjectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectSettings")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("access_key", &self.access_key)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// How long one operation may take, all its tries together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Tries of one operation, the first one included.
    pub attempts: u32,
    /// For one operation with all its tries and waits.
    pub deadline: Duration,
    /// For one request, from connecting to the last byte.
    pub request_timeout: Duration,
    /// The first wait; doubled each time, up to 5 s, with jitter.
    pub backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            deadline: Duration::from_secs(120),
            request_timeout: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
        }
    }
}

/// A client for object storage and presigned uploads: bounded connecting, and nothing that would undo a `Content-Encoding`.
///
/// # Errors
/// When the TLS backend cannot be set up.
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    http_builder().build()
}

/// What [`http_client`] is made of, for callers that trust further certificate authorities.
pub fn http_builder() -> reqwest::ClientBuilder {
    let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
}

/// One bucket. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore(Arc<Inner>);

struct Inner {
    signer: Signer,
    client: reqwest::Client,
    patience: Patience,
}

/// What became of [`ObjectStore::put_immutable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Created,
    /// The same bytes were there already.
    Present,
    /// Something else was there under this name and has been replaced.
    Repaired,
}

/// What became of [`ObjectStore::verify_immutable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    Good,
    /// It is not there, or no more.
    Absent,
    /// Its bytes are those of the digest, but so many: the size asked for is wrong.
    OtherSize(u64),
}

/// What storage says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub size: u64,
    /// SHA-256 of the bytes, where storage keeps it.
    pub sha256: Option<[u8; 32]>,
}

/// An upload that whoever holds it may make: one key, one size, one SHA-256, only while there is nothing under the key.
#[derive(Clone)]
pub struct PresignedPut {
    /// Carries a signature: not for logs.
    pub url: String,
    /// To be sent as they are; they are part of the signature.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for PresignedPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.url.split('?').next().unwrap_or_default();
        f.debug_struct("PresignedPut").field("url", &shown).field("headers", &self.headers).finish()
    }
}

impl ObjectStore {
    /// # Errors
    /// An endpoint that is no http or https URL.
    pub fn new(settings: ObjectSettings) -> Result<Self, ObjectError> {
        Self::trusting(settings, &Trust::default())
    }

    /// As [`Self::new`], with further certificate authorities.
    ///
    /// # Errors
    /// As there, and when an authority cannot be used.
    pub fn trusting(settings: ObjectSettings, trust: &Trust) -> Result<Self, ObjectError> {
        let signer = Signer::new(&settings)?;
        let client = trust.http(http_builder()).and_then(|client| Ok(client.build()?)).map_err(|error| {
            ObjectError::new(&settings.bucket, Problem::Settings(crate::failure::with_source(&error)))
        })?;
        Ok(Self(Arc::new(Inner { signer, client, patience: settings.patience })))
    }

    /// What requests go through, for others to use as well: a client of their own would read all the machine's certificates again.
    pub fn http(&self) -> reqwest::Client {
        self.0.client.clone()
    }

    /// Stores bytes under a name that stands for them. Where something is there already, its size and SHA-256 are compared with these
    /// bytes, and it is replaced when they differ: storage can keep what arrived altered.
    pub async fn put_immutable(&self, key: &str, body: Bytes) -> Result<Stored, ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        let answer = self.send_put(key, &body, &sha256, true).await?;
        match answer.status {
            200..300 => Ok(Stored::Created),
            412 if self.holds(key, body.len() as u64, &sha256).await? => Ok(Stored::Present),
            412 => {
                tracing::warn!(key, "object storage held other bytes under an immutable name; replacing them");
                let answer = self.send_put(key, &body, &sha256, false).await?;
                if answer.is_success() { Ok(Stored::Repaired) } else { Err(answer.refused(key)) }
            }
            _ => Err(answer.refused(key)),
        }
    }

    /// Stores bytes unless there is something already; whether it did. Its own first try, when only the answer was lost, counts as there.
    pub async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool, ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        let answer = self.send_put(key, &body, &sha256, true).await?;
        match answer.status {
            200..300 => Ok(true),
            412 => Ok(false),
            _ => Err(answer.refused(key)),
        }
    }

    /// Stores bytes, replacing what is there.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        let answer = self.send_put(key, &body, &sha256, false).await?;
        if answer.is_success() { Ok(()) } else { Err(answer.refused(key)) }
    }

    async fn send_put(
        &self,
        key: &str,
        body: &Bytes,
        sha256: &[u8; 32],
        if_absent: bool,
    ) -> Result<Answer, ObjectError> {
        let headers = put_headers(body.len() as u64, sha256, if_absent);
        self.send(Method::Put, key, &headers, Some(body), ANSWER_LIMIT).await
    }

    /// Whether the stored object has this size and SHA-256. Read in full: storage may keep the digest that it was told.
    async fn holds(&self, key: &str, size: u64, sha256: &[u8; 32]) -> Result<bool, ObjectError> {
        match self.head(key).await? {
            Some(head) if head.size == size => {
                let body = self.get(key, size).await?;
                Ok(body.is_some_and(|body| body.len() as u64 == size && Sha256::digest(&body)[..] == sha256[..]))
            }
            _ => Ok(false),
        }
    }

    /// Whether an immutable object is stored with this size and SHA-256. Where storage does not confirm both, the object is read, up to
    /// `limit` bytes; one whose bytes are not those of the digest is deleted, so that it can be uploaded again.
    pub async fn verify_immutable(
        &self,
        key: &str,
        size: u64,
        sha256: &[u8; 32],
        limit: u64,
    ) -> Result<Verified, ObjectError> {
        match self.head(key).await? {
            None => return Ok(Verified::Absent),
            Some(head) if head.size == size && head.sha256.as_ref() == Some(sha256) => return Ok(Verified::Good),
            Some(_) => {}
        }
        match self.get(key, limit).await {
            Ok(Some(body)) if Sha256::digest(&body)[..] == sha256[..] => {
                let actual = body.len() as u64;
                return Ok(if actual == size { Verified::Good } else { Verified::OtherSize(actual) });
            }
            Ok(_) | Err(ObjectError { problem: Problem::Size { .. }, .. }) => {}
            Err(error) => return Err(error),
        }
        tracing::warn!(key, "object storage held other bytes under an immutable name; deleting them");
        self.delete(key).await?;
        Ok(Verified::Absent)
    }

    /// The whole object, or `None` when there is none. More than `limit` bytes is an error.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Option<Bytes>, ObjectError> {
        let answer = self.send(Method::Get, key, &[], None, limit.max(ANSWER_LIMIT)).await?;
        match answer.status {
            200 if answer.body.len() as u64 > limit => {
                Err(ObjectError::new(key, Problem::Size { expected: limit, actual: answer.body.len() as u64 }))
            }
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            _ => Err(answer.refused(key)),
        }
    }

    /// These bytes of an object, exactly as many as asked for.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let expected = range.end.saturating_sub(range.start);
        if expected == 0 {
            return Ok(Bytes::new());
        }
        let header = [("range", format!("bytes={}-{}", range.start, range.end - 1))];
        let answer = self.send(Method::Get, key, &header, None, expected.max(ANSWER_LIMIT)).await?;
        let actual = answer.body.len() as u64;
        match answer.status {
            206 if actual == expected => Ok(answer.body),
            206 => Err(ObjectError::new(key, Problem::Size { expected, actual })),
            404 => Err(ObjectError::new(key, Problem::NotFound)),
            // The object ends before the range begins.
            416 => {
                Err(ObjectError::new(key, Problem::Size { expected: range.end, actual: object_size(&answer.headers) }))
            }
            _ => Err(answer.refused(key)),
        }
    }

    /// What storage says of an object, or `None` when there is none.
    pub async fn head(&self, key: &str) -> Result<Option<Head>, ObjectError> {
        let header = [("x-amz-checksum-mode", "ENABLED".to_owned())];
        let answer = self.send(Method::Head, key, &header, None, ANSWER_LIMIT).await?;
        let text = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        match answer.status {
            200 => {
                let size = text("content-length").and_then(|size| size.parse().ok());
                let size = size.ok_or_else(|| answer.refused(key))?;
                Ok(Some(Head { size, sha256: text("x-amz-checksum-sha256").and_then(parse_checksum) }))
            }
            404 => Ok(None),
            _ => Err(answer.refused(key)),
        }
    }

    /// Deletes an object; one that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let answer = self.send(Method::Delete, key, &[], None, ANSWER_LIMIT).await?;
        if answer.is_success() || answer.status == 404 { Ok(()) } else { Err(answer.refused(key)) }
    }

    /// All keys that start with `prefix`, with their sizes, in order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectError> {
        let unreadable = || ObjectError::new(prefix, Problem::Listing);
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let expires = self.signature_expiry();
            let request = || self.0.client.get(self.0.signer.list(prefix, token.as_deref(), expires));
            let answer = send(&self.0.patience, prefix, ANSWER_LIMIT, request).await?;
            if !answer.is_success() {
                return Err(answer.refused(prefix));
            }
            let text = std::str::from_utf8(&answer.body).map_err(|_| unreadable())?;
            let page = rusty_s3::actions::ListObjectsV2::parse_response(text).map_err(|_| unreadable())?;
            found.extend(page.contents.into_iter().map(|object| (object.key, object.size.unwrap_or(0))));
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// An upload for someone without credentials. The signature covers size, SHA-256 and `If-None-Match: *`; it can be used again
    /// until it expires.
    pub fn presign_put(&self, key: &str, size: u64, sha256: &[u8; 32], expires: Duration) -> PresignedPut {
        let headers = put_headers(size, sha256, true);
        let url = self.0.signer.object(Method::Put, key, &headers, expires).into();
        PresignedPut { url, headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
    }

    /// Long enough for every try of one operation.
    fn signature_expiry(&self) -> Duration {
        self.0.patience.deadline + Duration::from_secs(60)
    }

    async fn send(
        &self,
        method: Method,
        key: &str,
        headers: &[(&'static str, String)],
        body: Option<&Bytes>,
        limit: u64,
    ) -> Result<Answer, ObjectError> {
        let request = || {
            let url = self.0.signer.object(method, key, headers, self.signature_expiry());
            let mut request = self.0.client.request(http_method(method), url);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            match body {
                Some(body) => request.body(body.clone()),
                None => request,
            }
        };
        send(&self.0.patience, key, limit, request).await
    }
}

fn http_method(method: Method) -> reqwest::Method {
    match method {
        Method::Head => reqwest::Method::HEAD,
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Delete => reqwest::Method::DELETE,
    }
}

/// The object's size in a `Content-Range: bytes */123`; 0 where it is not said.
fn object_size(headers: &HeaderMap) -> u64 {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
    range.rsplit_once('/').and_then(|(_, size)| size.parse().ok()).unwrap_or(0)
}
