//! A bucket that is in another region than the settings say.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Answers only requests that are signed for `eu-central-1`; counts all.
async fn serve(status: &'static str) -> (ObjectStore, Arc<Mutex<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            *count.lock().unwrap() += 1;
            let is_right = String::from_utf8_lossy(&request).contains("/eu-central-1/s3/");
            let head = if is_right { "200 OK\r\n" } else { status };
            let head = format!("HTTP/1.1 {head}content-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    });
    let settings = ObjectSettings {
        endpoint,
        region: "us-east-1".into(),
        bucket: BUCKET.into(),
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        patience: Patience { attempts: 1, ..impatient() },
    };
    (ObjectStore::new(settings).unwrap(), seen)
}

#[tokio::test]
async fn the_region_that_storage_names_is_used_from_then_on() {
    for status in [
        "301 Moved Permanently\r\nx-amz-bucket-region: eu-central-1\r\n",
        "400 Bad Request\r\nx-amz-bucket-region: eu-central-1\r\n",
    ] {
        let (objects, seen) = serve(status).await;
        assert_eq!(objects.head("o").await.unwrap(), Some(Head { size: 0, sha256: None }));
        objects.put("o", Bytes::new()).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), 3, "the second operation begins in the right region");
        let presigned = objects.presign_put("o", 1, &[0; 32], Duration::from_secs(9)).await.unwrap();
        assert!(presigned.url.contains("eu-central-1"), "{}", presigned.url);
    }
}

#[tokio::test]
async fn an_answer_that_names_no_other_region_stands() {
    for status in [
        "301 Moved Permanently\r\n",
        "301 Moved Permanently\r\nx-amz-bucket-region: us-east-1\r\n",
        "301 Moved Permanently\r\nx-amz-bucket-region: evil.example/\r\n",
    ] {
        let (objects, seen) = serve(status).await;
        let error = objects.head("o").await.unwrap_err();
        assert!(matches!(error.problem, Problem::Refused { status: 301, .. }), "{error}");
        assert!(*seen.lock().unwrap() <= 2);
    }
}
