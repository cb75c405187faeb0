//! Times requests to object storage: `objects [ROUNDS]`.
//!
//! Each round writes, looks at and reads one small and one large object, once through Kiln's client (AWS's SDK) and once through
//! presigned requests of rusty-s3 sent by reqwest, which Kiln used before; both against the same S3 server in this process. One JSON
//! object a measurement goes to standard output: medians in microseconds, and their ratio (former by present: below 1 is slower).

use std::time::{Duration, Instant};

use activities::objects::{ObjectSettings, ObjectStore, Patience, http_client};
use bytes::Bytes;
use rusty_s3::{Bucket, Credentials, S3Action as _, UrlStyle};
use serde_json::json;

#[path = "../tests/support/s3.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "made for tests, which use more of it")]
mod s3;

type Failure = Box<dyn std::error::Error>;

const SIZES: [(&str, usize); 2] = [("4 KiB", 4 << 10), ("8 MiB", 8 << 20)];
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// As Kiln spoke to storage before.
struct Former {
    bucket: Bucket,
    credentials: Credentials,
    client: reqwest::Client,
}

impl Former {
    async fn put(&self, key: &str, body: Bytes) -> Result<(), Failure> {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        self.client.put(url).body(body).send().await?.error_for_status()?;
        Ok(())
    }

    async fn head(&self, key: &str) -> Result<(), Failure> {
        let url = self.bucket.head_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        self.client.head(url).send().await?.error_for_status()?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<usize, Failure> {
        let url = self.bucket.get_object(Some(&self.credentials), key).sign(SIGNED_FOR);
        let mut response = self.client.get(url).send().await?.error_for_status()?;
        let mut read = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            read.extend_from_slice(&chunk);
        }
        Ok(read.len())
    }
}

/// Times of one operation in both ways.
#[derive(Default)]
struct Times {
    former: Vec<Duration>,
    present: Vec<Duration>,
}

impl Times {
    fn line(mut self, what: &str, size: &str) {
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let (former, present) = (median(&mut self.former), median(&mut self.present));
        let line =
            json!({ "what": what, "size": size, "rusty_s3_us": former, "sdk_us": present, "ratio": former / present });
        println!("{line}");
    }
}

async fn timed<T>(times: &mut Vec<Duration>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let begun = Instant::now();
    let done = work.await?;
    times.push(begun.elapsed());
    Ok(done)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "no TLS")?;
    let store = s3::TestStore::start().await;
    let endpoint = format!("http://{}", store.address());
    let present = ObjectStore::new(ObjectSettings {
        endpoint: endpoint.clone(),
        region: "auto".into(),
        bucket: s3::BUCKET.into(),
        access_key: s3::ACCESS_KEY.into(),
        secret_key: s3::SECRET_KEY.into(),
        patience: Patience::default(),
    })?;
    let former = Former {
        bucket: Bucket::new(endpoint.parse()?, UrlStyle::Path, s3::BUCKET, "auto")?,
        credentials: Credentials::new(s3::ACCESS_KEY, s3::SECRET_KEY),
        client: http_client()?,
    };
    for (size, length) in SIZES {
        let body = Bytes::from(vec![7; length]);
        let [mut put, mut head, mut get] = [(); 3].map(|()| Times::default());
        // The first round opens the connections.
        for round in 0..=if length > 1 << 20 { rounds / 10 } else { rounds } {
            if round == 1 {
                [put, head, get] = [(); 3].map(|()| Times::default());
            }
            timed(&mut put.former, former.put("former", body.clone())).await?;
            timed(&mut put.present, async { Ok(present.put("present", body.clone()).await?) }).await?;
            timed(&mut head.former, former.head("former")).await?;
            timed(&mut head.present, async { Ok(present.head("present").await?) }).await?;
            timed(&mut get.former, former.get("former")).await?;
            timed(&mut get.present, async { Ok(present.get("present", length as u64).await?) }).await?;
        }
        put.line("put", size);
        head.line("head", size);
        get.line("get", size);
    }
    Ok(())
}
