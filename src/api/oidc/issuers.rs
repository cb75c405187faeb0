//! The keys of issuers, found by their discovery documents and kept for a while.
//!
//! ```text
//! keys ─► kept and fresh ─► use
//!      └► fetch (one at a time for an issuer) ─► use │ away: kept and not too old ─► use │ away: error
//! unknown key id ─► fetch once more, at most every `renew_every`
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::rules::issuer_url;

/// Bytes of a discovery document and of a key set.
const DOCUMENT_LIMIT: usize = 64 << 10;
const KEYS_LIMIT: usize = 256 << 10;
/// Keys of one issuer, and issuers whose keys are kept.
const KEYS: usize = 100;
const ISSUERS: usize = 256;

/// Reads a document of an issuer, within its own bounds of time and of addresses that may be reached.
pub trait Fetch: Send + Sync + 'static {
    /// The body of a successful answer of at most `limit` bytes.
    ///
    /// # Errors
    /// Why there is none.
    fn fetch(&self, url: Url, limit: usize) -> impl Future<Output = Result<Vec<u8>, Unread>> + Send;
}

/// Why a document was not read.
#[derive(Debug, Clone)]
pub struct Unread {
    pub why: String,
    /// Trying again later may help.
    pub may_pass: bool,
}

impl Unread {
    pub fn for_now(why: impl Into<String>) -> Self {
        Self { why: why.into(), may_pass: true }
    }

    pub fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), may_pass: false }
    }
}

/// How old keys may be, and how often an issuer is asked.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Keys are used without a question for this long,
    pub fresh: Duration,
    /// and for this long while the issuer is away.
    pub stale: Duration,
    /// Between two fetches for keys that are not known.
    pub renew_every: Duration,
    /// After a fetch that failed.
    pub retry_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(3600),
            stale: Duration::from_secs(24 * 3600),
            renew_every: Duration::from_secs(60),
            retry_every: Duration::from_secs(5),
        }
    }
}

/// Why there are no keys.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the keys of {issuer} cannot be read: {why}")]
pub struct IssuerError {
    pub issuer: String,
    pub why: String,
    /// Trying again later may help.
    pub may_pass: bool,
}

/// The issuers whose tokens were exchanged lately.
pub struct Issuers<F> {
    fetch: F,
    pace: Pace,
    known: Mutex<HashMap<String, Arc<Issuer>>>,
}

#[derive(Default)]
struct Issuer {
    /// Held while its keys are fetched, so that one request does it for all that wait.
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<JwkSet>>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
    failed: Option<Unread>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Value>,
}

impl<F: Fetch> Issuers<F> {
    pub fn new(fetch: F, pace: Pace) -> Self {
        Self { fetch, pace, known: Mutex::default() }
    }

    /// The issuer's keys. `renew` asks for newer ones than those that were given before, as a token names a key that is not among
    /// them.
    ///
    /// # Errors
    /// When the issuer is away and there are no keys of it that are young enough.
    pub async fn keys(&self, issuer: &str, renew: bool) -> Result<Arc<JwkSet>, IssuerError> {
        let entry = self.entry(issuer);
        let mut state = entry.state.lock().await;
        let younger = |at: Option<Instant>, age: Duration| at.is_some_and(|at| at.elapsed() < age);
        let wait = if state.failed.is_some() { self.pace.retry_every } else { self.pace.renew_every };
        let due = match (renew, younger(state.fetched, self.pace.fresh)) {
            (false, true) => false,
            (_, _) => !younger(state.tried, wait),
        };
        if due {
            state.tried = Some(Instant::now());
            match self.read(issuer).await {
                Ok(keys) => {
                    *state =
                        State { keys: Some(Arc::new(keys)), fetched: state.tried, tried: state.tried, failed: None };
                }
                Err(unread) => {
                    tracing::warn!(issuer, why = unread.why, "cannot read the keys of an issuer of tokens");
                    state.failed = Some(unread);
                }
            }
        }
        let usable = younger(state.fetched, self.pace.stale);
        state.keys.clone().filter(|_| usable).ok_or_else(|| {
            let failed = state.failed.clone().unwrap_or_else(|| Unread::for_now("they are too old"));
            IssuerError { issuer: issuer.to_owned(), why: failed.why, may_pass: failed.may_pass }
        })
    }

    /// An issuer's place; the map stays small by dropping one that nothing uses.
    fn entry(&self, issuer: &str) -> Arc<Issuer> {
        // Between two statements the map is whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ISSUERS && !known.contains_key(issuer) {
            let unused = known.iter().find(|(_, entry)| Arc::strong_count(entry) == 1).map(|(name, _)| name.clone());
            unused.map(|name| known.remove(&name));
        }
        known.entry(issuer.to_owned()).or_default().clone()
    }

    async fn read(&self, issuer: &str) -> Result<JwkSet, Unread> {
        let base = issuer_url(issuer).ok_or_else(|| Unread::for_good("its URL cannot be used"))?;
        let url = format!("{}/.well-known/openid-configuration", base.as_str().trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| Unread::for_good(error.to_string()))?;
        let document = self.fetch.fetch(url, DOCUMENT_LIMIT).await?;
        let discovery: Discovery = serde_json::from_slice(&document)
            .map_err(|error| Unread::for_now(format!("its discovery document: {error}")))?;
        if discovery.issuer != issuer {
            return Err(Unread::for_now(format!("its discovery document is of {:?}", discovery.issuer)));
        }
        let url = issuer_url(&discovery.jwks_uri)
            .ok_or_else(|| Unread::for_now(format!("jwks_uri {:?} cannot be used", discovery.jwks_uri)))?;
        let keys: Keys = serde_json::from_slice(&self.fetch.fetch(url, KEYS_LIMIT).await?)
            .map_err(|error| Unread::for_now(format!("its key set: {error}")))?;
        // Keys of kinds that this library does not know are for others.
        let known = keys.keys.into_iter().take(KEYS).filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(JwkSet { keys: known.collect() })
    }
}
