//! Presigning of requests (AWS Signature Version 4). Everything Kiln sends to object storage is signed here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, Map, Method, S3Action as _, UrlStyle};
use url::Url;

use super::{ObjectError, ObjectSettings, Problem};

/// Signs for one bucket. Buckets are addressed by path: every S3 speaks that.
pub(super) struct Signer {
    bucket: Bucket,
    credentials: Credentials,
}

impl Signer {
    pub(super) fn new(settings: &ObjectSettings) -> Result<Self, ObjectError> {
        let unusable = |why: String| ObjectError::new(&settings.bucket, Problem::Settings(why));
        let endpoint: Url = settings.endpoint.parse().map_err(|error| unusable(format!("endpoint: {error}")))?;
        let bucket = Bucket::new(endpoint, UrlStyle::Path, settings.bucket.clone(), settings.region.clone())
            .map_err(|error| unusable(format!("endpoint: {error}")))?;
        Ok(Self { bucket, credentials: Credentials::new(settings.access_key.clone(), settings.secret_key.clone()) })
    }

    /// A URL for one request on one object. `headers` (lower-case names) become part of the signature.
    pub(super) fn object(&self, method: Method, key: &str, headers: &[(&str, String)], expires: Duration) -> Url {
        let mut signed = Map::new();
        for (name, value) in headers {
            signed.insert(*name, value.as_str());
        }
        rusty_s3::signing::sign(
            &jiff::Timestamp::now(),
            method,
            self.bucket.object_url(key),
            self.credentials.key(),
            self.credentials.secret(),
            self.credentials.token(),
            self.bucket.region(),
            expires.as_secs(),
            std::iter::empty(),
            signed.iter(),
        )
    }

    /// A URL for one page of a listing.
    pub(super) fn list(&self, prefix: &str, continuation: Option<&str>, expires: Duration) -> Url {
        let mut action = ListObjectsV2::new(&self.bucket, Some(&self.credentials));
        action.with_prefix(prefix);
        if let Some(token) = continuation {
            action.with_continuation_token(token);
        }
        action.sign(expires)
    }
}

/// The headers that make a PUT store just these bytes, in signing order: their number, their SHA-256 and, for an immutable object,
/// that there is nothing under the key yet.
pub(super) fn put_headers(size: u64, sha256: &[u8; 32], if_absent: bool) -> Vec<(&'static str, String)> {
    let mut headers = vec![("content-length", size.to_string())];
    if if_absent {
        headers.push(("if-none-match", "*".to_owned()));
    }
    headers.push(("x-amz-checksum-sha256", STANDARD.encode(sha256)));
    headers
}

/// The SHA-256 of a header `x-amz-checksum-sha256`. `None` for a composite one (`…-3`), which is no digest of the bytes.
pub(super) fn parse_checksum(header: &str) -> Option<[u8; 32]> {
    STANDARD.decode(header).ok()?.try_into().ok()
}
