//! Against a real S3 server (s3s-fs, in this process), directly and through a proxy that spoils what passes.

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::testing::fault_proxy::{Fault, FaultProxy};
use crate::testing::pki::Pki;
use crate::testing::s3::{ACCESS_KEY, BUCKET, SECRET_KEY, TestStore};
use crate::testing::{impatient, objects_at};

struct Setup {
    store: TestStore,
    proxy: FaultProxy,
    direct: ObjectStore,
    /// Through the proxy.
    spoilt: ObjectStore,
}

async fn setup() -> Setup {
    let store = TestStore::start().await;
    let proxy = FaultProxy::start(store.address()).await;
    Setup { direct: objects_at(store.address()), spoilt: objects_at(proxy.address()), store, proxy }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect::<Vec<_>>().into()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

async fn upload(presigned: &PresignedPut, body: Bytes) -> (u16, String) {
    let mut request = http_client().unwrap().put(&presigned.url).body(body);
    for (name, value) in &presigned.headers {
        request = request.header(name, value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Ends TLS in front of a store; its port.
async fn over_tls(store: &TestStore, pki: &Pki) -> u16 {
    use rustls::pki_types::pem::PemObject as _;
    let (cert, key) = pki.issue("storage");
    let chain = rustls::pki_types::CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (acceptor, far) = (TlsAcceptor::from(Arc::new(config)), store.address());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, acceptor) = (listener.accept().await.unwrap().0, acceptor.clone());
            tokio::spawn(async move {
                let Ok(mut near) = acceptor.accept(stream).await else { return };
                let mut far = TcpStream::connect(far).await.unwrap();
                tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn storage_is_spoken_to_over_https() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (store, pki, other) = (TestStore::start().await, Pki::new(), Pki::new());
    let port = over_tls(&store, &pki).await;
    let at = |ca: &Pki| {
        let settings = ObjectSettings {
            endpoint: format!("https://localhost:{port}"),
            region: "auto".into(),
            bucket: BUCKET.into(),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            patience: impatient(),
        };
        ObjectStore::trusting(settings, &Trust::with_file(&ca.ca()).unwrap()).unwrap()
    };
    let trusted = at(&pki);
    trusted.put("p/1/x", Bytes::from_static(b"over TLS")).await.unwrap();
    assert_eq!(trusted.get("p/1/x", 100).await.unwrap().unwrap(), "over TLS");
    let refused = at(&other).get("p/1/x", 100).await.unwrap_err();
    assert!(matches!(refused.problem, Problem::Unreachable { .. }), "{refused}");
}

#[tokio::test]
async fn stores_reads_lists_and_deletes() {
    let setup = setup().await;
    let Setup { direct, .. } = &setup;
    let body = bytes(300_000);
    assert_eq!(direct.put_immutable("p/1/a b%.bin", body.clone()).await.unwrap(), Stored::Created);
    assert_eq!(direct.put_immutable("p/1/a b%.bin", body.clone()).await.unwrap(), Stored::Present);
    assert_eq!(direct.get("p/1/a b%.bin", 1 << 20).await.unwrap().unwrap(), body);
    assert_eq!(direct.get_range("p/1/a b%.bin", 100..70_000).await.unwrap(), body.slice(100..70_000));
    assert_eq!(direct.head("p/1/a b%.bin").await.unwrap(), Some(Head { size: 300_000, sha256: Some(sha256(&body)) }));
    direct.put("p/1/pointer", Bytes::from_static(b"one")).await.unwrap();
    direct.put("p/1/pointer", Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(direct.get("p/1/pointer", 100).await.unwrap().unwrap(), "two");
    let listed = direct.list("p/1/").await.unwrap();
    assert_eq!(listed, [("p/1/a b%.bin".to_owned(), 300_000), ("p/1/pointer".to_owned(), 3)]);
    direct.delete("p/1/pointer").await.unwrap();
    direct.delete("p/1/pointer").await.unwrap();
    assert_eq!(direct.get("p/1/pointer", 100).await.unwrap(), None);
    assert_eq!(direct.head("p/1/pointer").await.unwrap(), None);
}

#[tokio::test]
async fn an_object_is_never_longer_or_shorter_than_asked_for() {
    let setup = setup().await;
    let Setup { direct, .. } = &setup;
    direct.put("o", bytes(5000)).await.unwrap();
    let problem = |error: ObjectError| error.problem;
    assert_eq!(problem(direct.get("o", 4999).await.unwrap_err()), Problem::Size { expected: 4999, actual: 5000 });
    let short = direct.get_range("o", 4000..6000).await.unwrap_err();
    assert_eq!(short.problem, Problem::Size { expected: 2000, actual: 1000 });
    assert_eq!(short.to_string(), "object o: is 1000 bytes long, expected 2000");
    assert!(matches!(
        problem(direct.get_range("o", 9000..9001).await.unwrap_err()),
        Problem::Size { expected: 9001, .. }
    ));
    assert_eq!(problem(direct.get_range("missing", 0..1).await.unwrap_err()), Problem::NotFound);
}

#[tokio::test]
async fn a_presigned_upload_stores_just_the_bytes_it_was_signed_for() {
    let setup = setup().await;
    let Setup { direct, store, .. } = &setup;
    let body = bytes(100_000);
    let presigned = direct.presign_put("p/1/packs/x", 100_000, &sha256(&body), Duration::from_secs(60)).await.unwrap();
    assert!(
        presigned.url.contains("X-Amz-SignedHeaders=content-length%3Bhost%3Bif-none-match%3Bx-amz-checksum-sha256")
    );
    assert_eq!(upload(&presigned, body.clone()).await.0, 200);
    // Again, while it is there: refused by If-None-Match.
    assert_eq!(upload(&presigned, body.clone()).await.0, 412);
    assert_eq!(direct.get("p/1/packs/x", 1 << 20).await.unwrap().unwrap(), body);

    // Another size, another digest, no condition: none of them is what was signed.
    let digest = sha256(&body);
    let other = direct.presign_put("p/1/packs/y", 100_000, &sha256(&body), Duration::from_secs(60)).await.unwrap();
    let mut longer = other.clone();
    longer.headers[0].1 = "100001".to_owned();
    assert_eq!(upload(&longer, bytes(100_001)).await.0, 403);
    let mut altered = other.clone();
    altered.headers[2].1 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sha256(b"other"));
    assert_eq!(upload(&altered, body.clone()).await.0, 403);
    let mut unconditional = other.clone();
    unconditional.headers.remove(1);
    assert_eq!(upload(&unconditional, body.clone()).await.0, 403);
    assert!(!store.path("p/1/packs/y").exists());

    // Bytes that are not those of the signed digest are refused, whatever storage does with them.
    let (status, text) = upload(&other, bytes(100_000).iter().map(|byte| !byte).collect()).await;
    assert_eq!(status, 400);
    assert!(text.contains("BadDigest"), "{text}");
    let verified = |key, size| direct.verify_immutable(key, size, &digest, 1 << 20);
    assert_eq!(verified("p/1/packs/y", 100_000).await.unwrap(), Verified::Absent);
    assert!(!store.path("p/1/packs/y").exists());
    // A wrong idea of an object's size is no reason to delete it.
    assert_eq!(verified("p/1/packs/x", 100_000).await.unwrap(), Verified::Good);
    assert_eq!(verified("p/1/packs/x", 99_999).await.unwrap(), Verified::OtherSize(100_000));
    assert!(store.path("p/1/packs/x").exists());
}

#[tokio::test]
async fn what_is_stored_wrongly_under_an_immutable_name_is_replaced() {
    let setup = setup().await;
    let Setup { direct, store, .. } = &setup;
    let body = bytes(10_000);
    for wrong in [bytes(9_000), body.iter().map(|byte| byte ^ 1).collect()] {
        std::fs::write(store.path("o"), &wrong).unwrap();
        assert_eq!(direct.put_immutable("o", body.clone()).await.unwrap(), Stored::Repaired);
        assert_eq!(direct.get("o", 1 << 20).await.unwrap().unwrap(), body);
    }
}

#[tokio::test]
async fn a_large_object_that_is_there_is_not_mistaken_for_a_broken_connection() {
    let setup = setup().await;
    let Setup { direct, .. } = &setup;
    let body = bytes(8 << 20);
    direct.put_immutable("o", body.clone()).await.unwrap();
    // The server answers before it has read the body.
    for _ in 0..5 {
        assert_eq!(direct.put_immutable("o", body.clone()).await.unwrap(), Stored::Present);
    }
}

#[tokio::test]
async fn an_upload_altered_on_its_way_ends_with_the_right_bytes() {
    let setup = setup().await;
    let Setup { direct, spoilt, proxy, .. } = &setup;
    let body = bytes(200_000);
    proxy.fail(1, "PUT /kiln/o", Fault::CorruptRequest { at: 150_000 });
    let stored = spoilt.put_immutable("o", body.clone()).await.unwrap();
    assert!(matches!(stored, Stored::Created | Stored::Repaired), "{stored:?}");
    assert_eq!(direct.get("o", 1 << 20).await.unwrap().unwrap(), body);
    assert_eq!(proxy.pending(), 0);
}

#[tokio::test]
async fn tries_again_when_storage_is_busy_or_connections_break() {
    let setup = setup().await;
    let Setup { direct, spoilt, proxy, .. } = &setup;
    let body = bytes(100_000);
    proxy.fail(1, "PUT", Fault::Status { code: 503, retry_after: None });
    proxy.fail(1, "PUT", Fault::Status { code: 429, retry_after: None });
    proxy.fail(1, "PUT", Fault::CutRequest { after: 50_000 });
    proxy.fail(1, "PUT", Fault::CutResponse { after: 0 });
    spoilt.put_immutable("o", body.clone()).await.unwrap();
    assert_eq!(direct.get("o", 1 << 20).await.unwrap().unwrap(), body);

    proxy.fail(2, "GET", Fault::CutResponse { after: 70_000 });
    assert_eq!(spoilt.get("o", 1 << 20).await.unwrap().unwrap(), body);
    proxy.fail(1, "GET", Fault::Status { code: 500, retry_after: None });
    assert_eq!(spoilt.get_range("o", 5..10).await.unwrap(), body.slice(5..10));
    assert_eq!(proxy.pending(), 0);
}

#[tokio::test]
async fn waits_as_long_as_storage_asks() {
    let setup = setup().await;
    let Setup { direct, spoilt, proxy, .. } = &setup;
    direct.put("o", bytes(10)).await.unwrap();
    proxy.fail(1, "GET", Fault::Status { code: 503, retry_after: Some(1) });
    let started = std::time::Instant::now();
    spoilt.get("o", 10).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    // Longer than patience lasts: said at once.
    proxy.fail(1, "GET", Fault::Status { code: 503, retry_after: Some(3600) });
    let error = spoilt.get("o", 10).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Busy { status: 503, attempts: 1, .. }), "{error}");
}

#[tokio::test]
async fn gives_up_in_time_and_says_why_without_a_signature() {
    let setup = setup().await;
    let Setup { spoilt, proxy, .. } = &setup;
    proxy.fail(5, "GET", Fault::Status { code: 503, retry_after: None });
    let error = spoilt.get("busy", 10).await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.problem, Problem::Busy { status: 503, code: String::new(), attempts: 5 });

    proxy.fail(1, "HEAD", Fault::Stall);
    let mut patience = impatient();
    patience.deadline = Duration::from_millis(300);
    let settings = ObjectSettings {
        endpoint: format!("http://{}", proxy.address()),
        region: "auto".into(),
        bucket: BUCKET.into(),
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        patience,
    };
    assert!(!format!("{settings:?}").contains(SECRET_KEY));
    let error = ObjectStore::new(settings.clone()).unwrap().head("stalled").await.unwrap_err();
    assert!(matches!(error.problem, Problem::Unreachable { .. }), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("Signature"), "{shown}");

    let wrong = ObjectSettings { secret_key: "wrong".into(), ..settings };
    let error = ObjectStore::new(wrong).unwrap().get("o", 10).await.unwrap_err();
    assert_eq!(error.problem, Problem::Refused { status: 403, code: "SignatureDoesNotMatch".into() });
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_presigned_upload_does_not_show_its_signature() {
    let direct = objects_at(([127, 0, 0, 1], 1).into());
    let presigned = direct.presign_put("k", 1, &[0; 32], Duration::from_secs(1)).await.unwrap();
    assert!(
        presigned.url.contains("X-Amz-Signature") && presigned.url.contains("X-Amz-Expires=1&"),
        "{}",
        presigned.url
    );
    let shown = format!("{presigned:?}");
    assert!(shown.contains("/kiln/k") && !shown.contains("Signature"), "{shown}");
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let settings = |endpoint: &str, access_key: &str, secret_key: &str| ObjectSettings {
        endpoint: endpoint.into(),
        region: String::new(),
        bucket: BUCKET.into(),
        access_key: access_key.into(),
        secret_key: secret_key.into(),
        patience: impatient(),
    };
    for (endpoint, access_key, secret_key) in [("ftp://a", "a", "b"), ("a:1", "a", "b"), ("", "a", ""), ("", "", "b")] {
        let refused = ObjectStore::new(settings(endpoint, access_key, secret_key)).err().map(|error| error.problem);
        assert!(matches!(refused, Some(Problem::Settings(_))), "{endpoint} {access_key} {secret_key}: {refused:?}");
    }
    assert!(ObjectStore::new(settings("", "", "")).is_ok(), "AWS, with the credentials that its chain finds");
}

mod regions;
mod roles;
