//! Credentials of an instance's role, from a stand-in of the instance metadata service (version 2), that rotate.
//!
//! The credential chain reads the environment, so the part that uses it runs in a process of its own.

use std::collections::HashMap;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Mutex;

use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// The part that runs in a process of its own.
const CHILD: &str = "objects::tests::roles::in_a_process_with_a_role";
const STORE: &str = "KILN_TEST_S3";
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// The role's keys: number N is `key-N` with the secret `secret-N`, and only the newest is valid.
#[derive(Clone, Default)]
struct Role(Arc<Mutex<Issued>>);

#[derive(Default)]
struct Issued {
    newest: u32,
    fetched: u32,
}

impl S3Auth for Role {
    fn get_secret_key<'a, 'k, 'f>(
        &'a self,
        access_key: &'k str,
    ) -> Pin<Box<dyn Future<Output = S3Result<SecretKey>> + Send + 'f>>
    where
        'a: 'f,
        'k: 'f,
        Self: 'f,
    {
        let newest = self.0.lock().unwrap().newest;
        let known = access_key == format!("key-{newest}");
        Box::pin(async move {
            if known { Ok(SecretKey::from(format!("secret-{newest}"))) } else { Err(s3_error!(InvalidAccessKeyId)) }
        })
    }
}

impl Role {
    /// Answers as the metadata service; `POST /rotate` replaces the keys, `GET /fetched` counts.
    fn answer(&self, line: &str, head: &str) -> (u16, String) {
        let mut issued = self.0.lock().unwrap();
        let has_token = head.to_ascii_lowercase().contains("x-aws-ec2-metadata-token: session");
        match line {
            _ if line.starts_with("PUT /latest/api/token ") => (200, "session".into()),
            _ if line.starts_with("POST /rotate ") => {
                issued.newest += 1;
                (200, String::new())
            }
            _ if line.starts_with("GET /fetched ") => (200, issued.fetched.to_string()),
            _ if !has_token => (401, String::new()),
            _ if line.starts_with("GET /latest/meta-data/iam/security-credentials/ ") => (200, "builder".into()),
            _ if line.starts_with("GET /latest/meta-data/iam/security-credentials/builder ") => {
                issued.fetched += 1;
                let (number, until) = (issued.newest, jiff::Timestamp::now() + Duration::from_secs(600));
                let keys = serde_json::json!({
                    "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
                    "AccessKeyId": format!("key-{number}"), "SecretAccessKey": format!("secret-{number}"),
                    "Token": format!("session-token-{number}"), "Expiration": until.to_string(),
                });
                (200, keys.to_string())
            }
            _ => (404, String::new()),
        }
    }

    async fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                let head = String::from_utf8_lossy(&request).into_owned();
                let (status, body) = self.answer(head.lines().next().unwrap(), &head);
                let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} X\r\n{ttl}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_found_and_its_keys_may_rotate() {
    let role = Role::default();
    let store = TestStore::start_with(role.clone()).await;
    let metadata = role.serve().await;
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env(METADATA, metadata)
        .env(STORE, format!("http://{}", store.address()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), child).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "run by the test above, with the environment that it needs"]
async fn in_a_process_with_a_role() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let environment: HashMap<_, _> = std::env::vars().collect();
    let metadata = &environment[METADATA];
    let objects = ObjectStore::new(ObjectSettings {
        endpoint: environment[STORE].clone(),
        region: "auto".into(),
        bucket: BUCKET.into(),
        access_key: String::new(),
        secret_key: String::new(),
        patience: Patience { attempts: 1, request_timeout: Duration::from_secs(30), ..impatient() },
    })
    .unwrap();
    let rotate = async || http_client().unwrap().post(format!("{metadata}/rotate")).send().await.unwrap();
    let body = bytes(1000);
    objects.put("o", body.clone()).await.unwrap();

    let presigned = objects.presign_put("p", 1000, &sha256(&body), Duration::from_secs(3600)).await.unwrap();
    assert!(presigned.url.contains("X-Amz-Security-Token=session-token-0"), "{}", presigned.url);
    let expires = presigned.url.split(['?', '&']).find_map(|part| part.strip_prefix("X-Amz-Expires=")).unwrap();
    assert!(expires.parse::<u64>().unwrap() <= 600, "it outlives its credentials: {expires} s");
    assert_eq!(upload(&presigned, body.clone()).await.0, 200);

    // In the middle of a build: what was signed with the former keys is refused from now on, and nobody else notices.
    rotate().await;
    assert_eq!(objects.head("o").await.unwrap().unwrap().size, 1000);
    rotate().await;
    assert_eq!(objects.get("o", 1000).await.unwrap().unwrap(), body);
    rotate().await;
    assert_eq!(objects.put_immutable("p", body).await.unwrap(), Stored::Present);
    let fetched = http_client().unwrap().get(format!("{metadata}/fetched")).send().await.unwrap().text().await.unwrap();
    assert_eq!(fetched, "4", "once at first, and once after each rotation");
}
