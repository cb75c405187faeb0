//! Object storage: S3 and what speaks like it (R2, versitygw, s3s).
//!
//! Every request is a presigned one, has a deadline, and is tried again with jittered backoff where that is safe: reads and deletes
//! always, writes because an object is either immutable (`If-None-Match: *`, its content behind its name) or a pointer that only its
//! last writer decides. Nothing asks for a compressed transfer: the body of an object is the object. What is read is bounded by the
//! caller, and no error shows a signature.

mod error;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use error::{ObjectError, Problem};

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

/// One bucket. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    settings: Arc<ObjectSettings>,
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

impl ObjectStore {
    /// # Errors
    /// An endpoint that is no http or https URL.
    pub fn new(settings: ObjectSettings) -> Result<Self, ObjectError> {
        Ok(Self { settings: Arc::new(settings) })
    }

    /// Stores bytes under a name that stands for them. See [`Stored`].
    pub async fn put_immutable(&self, key: &str, body: Bytes) -> Result<Stored, ObjectError> {
        let _ = (key, body, &self.settings);
        todo!()
    }

    /// Stores bytes, replacing what is there.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        let _ = (key, body);
        todo!()
    }

    /// The whole object, or `None` when there is none. More than `limit` bytes is an error.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Option<Bytes>, ObjectError> {
        let _ = (key, limit);
        todo!()
    }

    /// These bytes of an object, exactly as many as asked for.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let _ = (key, range);
        todo!()
    }

    pub async fn head(&self, key: &str) -> Result<Option<Head>, ObjectError> {
        let _ = key;
        todo!()
    }

    /// Deletes an object; one that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let _ = key;
        todo!()
    }

    /// All keys that start with `prefix`, with their sizes, in order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectError> {
        let _ = prefix;
        todo!()
    }

    /// An upload for someone without credentials. The signature covers size, SHA-256 and `If-None-Match: *`; it can be used again
    /// until it expires.
    pub fn presign_put(&self, key: &str, size: u64, sha256: &[u8; 32], expires: Duration) -> PresignedPut {
        let _ = (key, size, sha256, expires);
        todo!()
    }
}
