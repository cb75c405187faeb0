//! The SDK's client of one bucket, and what makes another one of it: a region that storage names, credentials that were replaced.
//!
//! The SDK signs, resolves endpoints and speaks the protocol. Retries, deadlines and checks of what was transferred are this crate's:
//! the SDK's are off. Buckets of a custom endpoint are addressed by path, those of AWS as the SDK does it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::SdkError;
use aws_smithy_http_client::tls::{self, TlsContext};
use aws_smithy_http_client::{Builder, Connector, proxy::ProxyConfig};
use bytes::Bytes;
use futures::FutureExt as _;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::OnceCell;

use super::keys::Keys;
use super::retry::{Answer, Failure};
use super::{ObjectError, ObjectSettings, Problem};

/// How long establishing a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Where AWS is asked in which region a bucket is, and the name of the region that S3-compatible storage takes as its own.
const FIRST_REGION: &str = "us-east-1";
/// The header that names a bucket's region.
const BUCKET_REGION: &str = "x-amz-bucket-region";
/// What storage says of credentials that were valid once.
const STALE: [&str; 6] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
];

/// Clients of one bucket.
pub(super) struct Clients {
    endpoint: Option<String>,
    bucket: String,
    fixed: Option<Keys>,
    http: SharedHttpClient,
    /// The credentials: those of the settings, or the chain's, which is set up when it is first needed.
    keys: OnceCell<Keys>,
    regional: RwLock<Arc<str>>,
    client: RwLock<Option<(Arc<str>, Client)>>,
    /// Set when AWS was asked for the bucket's region, or needs not be.
    region_known: OnceCell<()>,
}

/// One client with the credentials it signs with at the moment.
#[derive(Clone)]
pub(super) struct Signed {
    pub client: Client,
    pub credentials: Credentials,
    region: Arc<str>,
}

impl Clients {
    pub(super) fn new(settings: &ObjectSettings, tls: TlsContext) -> Result<Self, ObjectError> {
        let unusable = |why: &str| ObjectError::new(&settings.bucket, Problem::Settings(why.to_owned()));
        let endpoint = Some(settings.endpoint.trim_end_matches('/').to_owned()).filter(|text| !text.is_empty());
        if let Some(endpoint) = &endpoint {
            let url: url::Url = endpoint.parse().map_err(|error| unusable(&format!("endpoint: {error}")))?;
            if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
                return Err(unusable("endpoint: it must be an http or https URL"));
            }
        }
        let fixed = match (settings.access_key.as_str(), settings.secret_key.as_str()) {
            ("", "") => None,
            ("", _) | (_, "") => return Err(unusable("one of access_key and secret_key is set without the other")),
            (access, secret) => Some(Keys::fixed(access, secret)),
        };
        let is_named = !matches!(settings.region.as_str(), "" | "auto");
        let region = match (is_named, &endpoint) {
            (true, _) => settings.region.as_str(),
            (false, Some(_)) if settings.region == "auto" => "auto",
            _ => FIRST_REGION,
        };
        Ok(Self {
            region_known: if is_named || endpoint.is_some() { OnceCell::new_with(Some(())) } else { OnceCell::new() },
            endpoint,
            bucket: settings.bucket.clone(),
            fixed,
            http: http(tls),
            keys: OnceCell::new(),
            regional: RwLock::new(region.into()),
            client: RwLock::default(),
        })
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// A client that can sign now.
    pub(super) async fn signed(&self) -> Result<Signed, Failure> {
        let keys = self.keys.get_or_init(|| self.find_keys().boxed()).await;
        let credentials = keys.current().await.map_err(|error| Failure::NoCredentials(error.into()))?;
        self.region_known.get_or_init(|| self.discover(keys).boxed()).await;
        let region = self.region();
        Ok(Signed { client: self.client(keys, &region), credentials, region })
    }

    /// Whether an answer came of a wrong region or of credentials that are no longer valid, and there is another client now.
    pub(super) async fn replaced(&self, refused: &Answer, by: &Signed) -> bool {
        let redirected = matches!(refused.status, 301 | 307 | 400 | 403);
        let named = refused.headers.get(BUCKET_REGION).and_then(|region| region.to_str().ok()).filter(|_| redirected);
        if let Some(region) = named.filter(|region| *region != &*by.region) {
            self.adopt(region);
            return true;
        }
        // An answer to HEAD has no body to say why.
        let code = refused.code();
        let is_stale = STALE.contains(&code.as_str()) || (refused.status == 403 && code.is_empty());
        match self.keys.get() {
            Some(keys) if is_stale => keys.replaced(&by.credentials).await,
            _ => false,
        }
    }

    async fn find_keys(&self) -> Keys {
        match &self.fixed {
            Some(keys) => keys.clone(),
            None => Keys::found(ProviderConfig::without_region().with_http_client(self.http.clone())).await,
        }
    }

    /// Asks AWS for the bucket's region; whatever it answers, a header names it. Without one, storage's next answer will.
    async fn discover(&self, keys: &Keys) {
        let asked = self.client(keys, FIRST_REGION).head_bucket().bucket(&self.bucket).send().await;
        let region = match &asked {
            Ok(found) => found.bucket_region(),
            Err(error) => error.raw_response().and_then(|raw| raw.headers().get(BUCKET_REGION)),
        };
        if let Some(region) = region {
            self.adopt(region);
        }
    }

    fn region(&self) -> Arc<str> {
        self.regional.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn adopt(&self, region: &str) {
        let fits = region.len() <= 64 && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if fits && !region.is_empty() {
            tracing::info!(bucket = self.bucket, region, "the bucket is in this region");
            *self.regional.write().unwrap_or_else(PoisonError::into_inner) = region.into();
        }
    }

    fn client(&self, keys: &Keys, region: &str) -> Client {
        let known = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, client)) = known.filter(|(of, _)| &**of == region) {
            return client;
        }
        let client = Client::from_conf(self.config(keys, region));
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = Some((region.into(), client.clone()));
        client
    }

    fn config(&self, keys: &Keys, region: &str) -> aws_sdk_s3::Config {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .region(Region::new(region.to_owned()))
            .credentials_provider(keys.clone())
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        match &self.endpoint {
            Some(endpoint) => config.endpoint_url(endpoint).force_path_style(true).build(),
            None => config.build(),
        }
    }
}

/// Connections for storage and for the services that give out credentials; proxies as the environment names them.
fn http(context: TlsContext) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let tls = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let connector = Connector::builder().tls_provider(tls).tls_context(context.clone());
        let mut connector = connector.proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.build()
    })
}

/// What an error of the SDK means: storage's answer, or none.
pub(super) fn failure<E: std::error::Error + Send + Sync + 'static>(error: SdkError<E, HttpResponse>) -> Failure {
    match error.raw_response() {
        Some(raw) if !raw.status().is_success() => Failure::Answered(answer(raw)),
        _ => Failure::Broken(error.into_source().ok()),
    }
}

fn answer(raw: &HttpResponse) -> Answer {
    let parsed =
        |(name, value): (&str, &str)| Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?));
    let headers: HeaderMap = raw.headers().iter().filter_map(parsed).collect();
    let body = raw.body().bytes().map(Bytes::copy_from_slice).unwrap_or_default();
    Answer { status: raw.status().as_u16(), headers, body, attempts: 1 }
}
