//! Object storage: S3 and what speaks like it (R2, versitygw, s3s), through AWS's SDK.
//!
//! Every operation has a deadline, and is tried again with jittered backoff where that is safe: reads and deletes always, writes
//! because an object is either immutable (`If-None-Match: *`, its content behind its name) or a pointer that only its last writer
//! decides. The SDK's own retries and checksums are off, so that these are the ones that count. Nothing asks for a compressed
//! transfer: the body of an object is the object. What is read is bounded by the caller, and no error shows a signature.

mod client;
mod error;
mod keys;
pub(crate) mod retry;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt as _};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use client::{Clients, Signed, failure};
pub use error::{BoxError, ObjectError, Problem};
use retry::{Failure, Undone, persist};

use crate::trust::Trust;

/// How long a presigned upload is valid at least, where its credentials end earlier: the url is refused then, and signed anew.
const SHORTEST: Duration = Duration::from_secs(1);

/// Where the objects are, and how patient to be.
#[derive(Clone)]
pub struct ObjectSettings {
    /// For example `https://<account>.r2.cloudflarestorage.com`; empty: AWS.
    pub endpoint: String,
    /// `auto` for R2. On AWS empty or `auto`: the bucket's own, which S3 is asked for.
    pub region: String,
    pub bucket: String,
    /// Empty, as `secret_key`: what AWS's chain of credentials finds.
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

/// A client for presigned uploads: bounded connecting, and nothing that would undo a `Content-Encoding`.
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
    clients: Clients,
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
    /// An endpoint that is no http or https URL, or a half of a pair of keys.
    pub fn new(settings: ObjectSettings) -> Result<Self, ObjectError> {
        Self::trusting(settings, &Trust::default())
    }

    /// As [`Self::new`], with further certificate authorities.
    ///
    /// # Errors
    /// As there, and when an authority cannot be used.
    pub fn trusting(settings: ObjectSettings, trust: &Trust) -> Result<Self, ObjectError> {
        let tls = trust.aws().map_err(|error| {
            ObjectError::new(&settings.bucket, Problem::Settings(crate::failure::with_source(&error)))
        })?;
        let clients = Clients::new(&settings, tls)?;
        Ok(Self(Arc::new(Inner { clients, patience: settings.patience })))
    }

    /// Stores bytes under a name that stands for them. Where something is there already, its size and SHA-256 are compared with these
    /// bytes, and it is replaced when they differ: storage can keep what arrived altered.
    pub async fn put_immutable(&self, key: &str, body: Bytes) -> Result<Stored, ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        match self.send_put(key, &body, &sha256, true).await {
            Ok(()) => Ok(Stored::Created),
            Err(undone) if undone.status() == Some(412) => {
                if self.holds(key, body.len() as u64, &sha256).await? {
                    return Ok(Stored::Present);
                }
                tracing::warn!(key, "object storage held other bytes under an immutable name; replacing them");
                let put = self.send_put(key, &body, &sha256, false).await;
                put.map(|()| Stored::Repaired).map_err(|undone| undone.into_error(key))
            }
            Err(undone) => Err(undone.into_error(key)),
        }
    }

    /// Stores bytes unless there is something already; whether it did. Its own first try, when only the answer was lost, counts as there.
    pub async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool, ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        match self.send_put(key, &body, &sha256, true).await {
            Ok(()) => Ok(true),
            Err(undone) if undone.status() == Some(412) => Ok(false),
            Err(undone) => Err(undone.into_error(key)),
        }
    }

    /// Stores bytes, replacing what is there.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        self.send_put(key, &body, &sha256, false).await.map_err(|undone| undone.into_error(key))
    }

    /// The body itself is not signed: its SHA-256 is, as a header that storage compares.
    async fn send_put(&self, key: &str, body: &Bytes, sha256: &[u8; 32], if_absent: bool) -> Result<(), Undone> {
        let put = |signed: Signed| {
            let put = signed.client.put_object().bucket(self.0.clients.bucket()).key(key);
            let put = put.content_length(signed_length(body.len() as u64)).checksum_sha256(STANDARD.encode(sha256));
            let put = put.set_if_none_match(if_absent.then(|| "*".to_owned())).body(ByteStream::from(body.clone()));
            async move { put.customize().disable_payload_signing().send().await.map(drop).map_err(failure) }.boxed()
        };
        self.tried(key, put).await
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
        match self.read(key, None, limit).await {
            Ok(body) => Ok(Some(body)),
            Err(undone) if undone.status() == Some(404) => Ok(None),
            Err(undone) => Err(undone.into_error(key)),
        }
    }

    /// These bytes of an object, exactly as many as asked for.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let expected = range.end.saturating_sub(range.start);
        if expected == 0 {
            return Ok(Bytes::new());
        }
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        match self.read(key, Some(header), expected).await {
            Ok(body) if body.len() as u64 == expected => Ok(body),
            Ok(body) => Err(ObjectError::new(key, Problem::Size { expected, actual: body.len() as u64 })),
            Err(Undone::Answered(answer)) if answer.status == 404 => Err(ObjectError::new(key, Problem::NotFound)),
            // The object ends before the range begins.
            Err(Undone::Answered(answer)) if answer.status == 416 => {
                let actual = object_size(&answer.headers);
                Err(ObjectError::new(key, Problem::Size { expected: range.end, actual }))
            }
            Err(undone) => Err(undone.into_error(key)),
        }
    }

    async fn read(&self, key: &str, range: Option<String>, limit: u64) -> Result<Bytes, Undone> {
        let get = |signed: Signed| {
            let get = signed.client.get_object().bucket(self.0.clients.bucket()).key(key).set_range(range.clone());
            async move {
                let found = get.send().await.map_err(failure)?;
                let length = found.content_length().and_then(|length| u64::try_from(length).ok());
                collect(found.body, length, key, limit).await
            }
            .boxed()
        };
        self.tried(key, get).await
    }

    /// What storage says of an object, or `None` when there is none.
    pub async fn head(&self, key: &str) -> Result<Option<Head>, ObjectError> {
        let head = |signed: Signed| {
            let head = signed.client.head_object().bucket(self.0.clients.bucket()).key(key);
            let head = head.checksum_mode(ChecksumMode::Enabled);
            async move { head.send().await.map_err(failure) }.boxed()
        };
        match self.tried(key, head).await {
            Ok(found) => {
                let size = found.content_length().and_then(|length| u64::try_from(length).ok());
                let unknown =
                    || ObjectError::new(key, Problem::Refused { status: 200, code: "NoContentLength".to_owned() });
                let sha256 = found.checksum_sha256().and_then(parse_checksum);
                Ok(Some(Head { size: size.ok_or_else(unknown)?, sha256 }))
            }
            Err(undone) if undone.status() == Some(404) => Ok(None),
            Err(undone) => Err(undone.into_error(key)),
        }
    }

    /// Deletes an object; one that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let delete = |signed: Signed| {
            let delete = signed.client.delete_object().bucket(self.0.clients.bucket()).key(key);
            async move { delete.send().await.map(drop).map_err(failure) }.boxed()
        };
        match self.tried(key, delete).await {
            Err(undone) if undone.status() != Some(404) => Err(undone.into_error(key)),
            _ => Ok(()),
        }
    }

    /// All keys that start with `prefix`, with their sizes, in order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let list = |signed: Signed| {
                let list = signed.client.list_objects_v2().bucket(self.0.clients.bucket()).prefix(prefix);
                let list = list.set_continuation_token(token.clone());
                async move { list.send().await.map_err(failure) }.boxed()
            };
            let page = self.tried(prefix, list).await.map_err(|undone| undone.into_error(prefix))?;
            token = page.next_continuation_token;
            let size = |size: Option<i64>| size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            let objects = page.contents.unwrap_or_default().into_iter();
            found.extend(objects.filter_map(|object| Some((object.key?, size(object.size)))));
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// An upload for someone without credentials. The signature covers size, SHA-256 and `If-None-Match: *`; it can be used again
    /// until it expires, which is no later than the credentials it is made with.
    pub async fn presign_put(
        &self,
        key: &str,
        size: u64,
        sha256: &[u8; 32],
        expires: Duration,
    ) -> Result<PresignedPut, ObjectError> {
        let sign = |signed: Signed| {
            let put = signed.client.put_object().bucket(self.0.clients.bucket()).key(key);
            let put =
                put.content_length(signed_length(size)).checksum_sha256(STANDARD.encode(sha256)).if_none_match("*");
            let left = keys::left(&signed.credentials).unwrap_or(Duration::MAX);
            async move {
                let unusable = |why: String| Failure::Final(ObjectError::new(key, Problem::Settings(why)));
                let config = PresigningConfig::expires_in(expires.min(left).max(SHORTEST));
                put.presigned(config.map_err(|error| unusable(error.to_string()))?).await.map_err(failure)
            }
            .boxed()
        };
        let presigned = self.tried(key, sign).await.map_err(|undone| undone.into_error(key))?;
        let headers = presigned.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut headers: Vec<_> = headers.collect();
        headers.sort();
        Ok(PresignedPut { url: presigned.uri().to_owned(), headers })
    }

    /// Tries an operation with patience; one that was refused for its region or its credentials once more at once, if there are others.
    ///
    /// Boxed, because the SDK's futures are deep: without it the type of whatever waits for them is too large for the compiler.
    async fn tried<'a, T>(
        &self,
        key: &str,
        operation: impl Fn(Signed) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Undone> {
        let (clients, operation) = (&self.0.clients, &operation);
        persist(&self.0.patience, key, || async move {
            let signed = clients.signed().await?;
            match operation(signed.clone()).await {
                Err(Failure::Answered(answer)) if clients.replaced(&answer, &signed).await => {
                    operation(clients.signed().await?).await
                }
                ended => ended,
            }
        })
        .await
    }
}

/// The whole body, or an error as soon as it is longer than `limit`.
async fn collect(mut body: ByteStream, length: Option<u64>, key: &str, limit: u64) -> Result<Bytes, Failure> {
    let too_long = |actual| Failure::Final(ObjectError::new(key, Problem::Size { expected: limit, actual }));
    if let Some(length) = length.filter(|length| *length > limit) {
        return Err(too_long(length));
    }
    let mut read = BytesMut::with_capacity(length.unwrap_or(0).min(16 << 20) as usize);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Failure::Broken(Some(error.into())))?;
        if (read.len() + chunk.len()) as u64 > limit {
            return Err(too_long((read.len() + chunk.len()) as u64));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

/// As the SDK takes it; no object is as long as the largest.
fn signed_length(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The SHA-256 of a header `x-amz-checksum-sha256`. `None` for a composite one (`…-3`), which is no digest of the bytes.
fn parse_checksum(header: &str) -> Option<[u8; 32]> {
    STANDARD.decode(header).ok()?.try_into().ok()
}

/// The object's size in a `Content-Range: bytes */123`; 0 where it is not said.
fn object_size(headers: &HeaderMap) -> u64 {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
    range.rsplit_once('/').and_then(|(_, size)| size.parse().ok()).unwrap_or(0)
}
