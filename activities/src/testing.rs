//! What the tests of several modules share.

#[path = "../tests/support/fault_proxy.rs"]
pub mod fault_proxy;
#[path = "../../tests/harness/pki.rs"]
pub mod pki;
#[path = "../tests/support/s3.rs"]
pub mod s3;

use std::net::SocketAddr;
use std::time::Duration;

use crate::objects::{ObjectSettings, ObjectStore, Patience};

/// Short waits, so that a test which meets them does not take long.
pub fn impatient() -> Patience {
    Patience {
        attempts: 5,
        deadline: Duration::from_secs(20),
        request_timeout: Duration::from_secs(5),
        backoff: Duration::from_millis(5),
    }
}

/// The test bucket, spoken to at `address`: the store itself or a proxy before it.
pub fn objects_at(address: SocketAddr) -> ObjectStore {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ObjectStore::new(ObjectSettings {
        endpoint: format!("http://{address}"),
        region: "auto".into(),
        bucket: s3::BUCKET.into(),
        access_key: s3::ACCESS_KEY.into(),
        secret_key: s3::SECRET_KEY.into(),
        patience: impatient(),
    })
    .unwrap()
}
