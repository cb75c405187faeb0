//! The credentials that requests are signed with: those of the settings, or the ones that AWS's usual chain finds (environment,
//! profile, web identity, container role, instance role, SSO), renewed before they expire and when storage no longer knows them.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};

/// How long before their end credentials are renewed. An instance's new ones are there five minutes before.
const MARGIN: Duration = Duration::from_secs(300);
/// Between two renewals of credentials that are still valid: until the service has new ones it answers with the former.
const PAUSE: Duration = Duration::from_secs(15);
/// For one renewal.
const PATIENCE: Duration = Duration::from_secs(30);

/// A source of credentials that remembers the last ones. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Box<dyn ProvideCredentials>,
    known: RwLock<Option<Known>>,
    renewing: tokio::sync::Mutex<()>,
    /// [`PAUSE`].
    pause: Duration,
}

#[derive(Debug, Clone)]
struct Known {
    credentials: Credentials,
    since: Instant,
}

impl Keys {
    /// Always these.
    pub(super) fn fixed(access_key: &str, secret_key: &str) -> Self {
        Self::of(Credentials::new(access_key, secret_key, None, None, "settings"))
    }

    /// What AWS's chain finds. Nothing is requested yet.
    pub(super) async fn found(config: ProviderConfig) -> Self {
        Self::of(DefaultCredentialsChain::builder().configure(config).build().await)
    }

    fn of(source: impl ProvideCredentials + 'static) -> Self {
        Self::with_pause(source, PAUSE)
    }

    fn with_pause(source: impl ProvideCredentials + 'static, pause: Duration) -> Self {
        let (known, renewing) = (RwLock::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { source: Box::new(source), known, renewing, pause }))
    }

    /// Valid credentials, the newest there are.
    pub(super) async fn current(&self) -> provider::Result {
        match self.0.known() {
            Some(known) if !known.is_due(self.0.pause) => Ok(known.credentials),
            known => self.renew(known).await,
        }
    }

    /// Whether there are others than these, which storage has refused.
    pub(super) async fn replaced(&self, refused: &Credentials) -> bool {
        let known = self.0.known();
        let same = |credentials: &Credentials| {
            credentials.access_key_id() == refused.access_key_id()
                && credentials.secret_access_key() == refused.secret_access_key()
                && credentials.session_token() == refused.session_token()
        };
        match known {
            Some(known) if !same(&known.credentials) => true,
            known => self.renew(known).await.is_ok_and(|credentials| !same(&credentials)),
        }
    }

    /// One renewal at a time; `former` is what the caller has seen. Where it fails, valid credentials go on being used.
    async fn renew(&self, former: Option<Known>) -> provider::Result {
        let _one = self.0.renewing.lock().await;
        let now_known = self.0.known();
        if let Some(known) = &now_known
            && former.is_none_or(|former| former.since != known.since)
        {
            return Ok(known.credentials.clone());
        }
        let provided = tokio::time::timeout(PATIENCE, self.0.source.provide_credentials());
        match provided.await.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(PATIENCE))) {
            Ok(credentials) => {
                self.0.remember(credentials.clone());
                Ok(credentials)
            }
            Err(error) => match now_known.filter(|known| !known.is_expired()) {
                Some(known) => {
                    tracing::warn!(%error, "cannot renew credentials of object storage; the former are still valid");
                    self.0.remember(known.credentials.clone());
                    Ok(known.credentials)
                }
                None => Err(error),
            },
        }
    }
}

impl ProvideCredentials for Keys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

impl Inner {
    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn remember(&self, credentials: Credentials) {
        let known = Some(Known { credentials, since: Instant::now() });
        *self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner) = known;
    }
}

impl Known {
    fn is_due(&self, pause: Duration) -> bool {
        match left(&self.credentials) {
            Some(left) if left.is_zero() => true,
            Some(left) => left < MARGIN && self.since.elapsed() >= pause,
            None => false,
        }
    }

    fn is_expired(&self) -> bool {
        left(&self.credentials).is_some_and(|left| left.is_zero())
    }
}

/// How long credentials are still valid; `None`: without an end.
pub(super) fn left(credentials: &Credentials) -> Option<Duration> {
    let expiry = credentials.expiry()?;
    Some(expiry.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Each time others, valid for this long; none once there are no more.
    #[derive(Debug)]
    struct Source {
        valid: Duration,
        given: Arc<AtomicU32>,
        most: u32,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.given.fetch_add(1, Ordering::SeqCst) + 1;
            let given =
                Credentials::new(format!("key-{number}"), "s", None, Some(SystemTime::now() + self.valid), "test");
            let given = if number > self.most { Err(CredentialsError::not_loaded_no_source()) } else { Ok(given) };
            future::ProvideCredentials::ready(given)
        }
    }

    fn keys(valid: Duration, most: u32, pause: Duration) -> (Keys, Arc<AtomicU32>) {
        let given = Arc::new(AtomicU32::new(0));
        (Keys::with_pause(Source { valid, given: Arc::clone(&given), most }, pause), given)
    }

    async fn key(keys: &Keys) -> String {
        keys.current().await.unwrap().access_key_id().to_owned()
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn credentials_are_renewed_before_their_end_and_not_at_each_use() {
        let (long, given) = keys(HOUR, 9, Duration::ZERO);
        assert_eq!((key(&long).await.as_str(), key(&long).await.as_str()), ("key-1", "key-1"));
        assert_eq!(given.load(Ordering::SeqCst), 1);
        let (near, _) = keys(MINUTE, 9, Duration::ZERO);
        assert_eq!((key(&near).await.as_str(), key(&near).await.as_str()), ("key-1", "key-2"));
        let (paused, _) = keys(MINUTE, 9, HOUR);
        assert_eq!((key(&paused).await.as_str(), key(&paused).await.as_str()), ("key-1", "key-1"));
        let (over, _) = keys(Duration::ZERO, 9, HOUR);
        assert_eq!((key(&over).await.as_str(), key(&over).await.as_str()), ("key-1", "key-2"));
    }

    #[tokio::test]
    async fn valid_credentials_outlive_a_failed_renewal() {
        let (valid, given) = keys(MINUTE, 1, Duration::ZERO);
        assert_eq!((key(&valid).await.as_str(), key(&valid).await.as_str()), ("key-1", "key-1"));
        assert_eq!(given.load(Ordering::SeqCst), 2);
        let (over, _) = keys(Duration::ZERO, 1, Duration::ZERO);
        assert_eq!(key(&over).await, "key-1");
        assert!(over.current().await.is_err());
    }

    #[tokio::test]
    async fn refused_credentials_are_renewed_once_for_all() {
        let (keys, given) = keys(HOUR, 9, Duration::ZERO);
        let first = keys.current().await.unwrap();
        let both = futures::join!(keys.replaced(&first), keys.replaced(&first));
        assert_eq!((both, given.load(Ordering::SeqCst)), ((true, true), 2));
        assert_eq!(key(&keys).await, "key-2");
        let fixed = Keys::fixed("a", "b");
        let only = fixed.current().await.unwrap();
        assert!(!fixed.replaced(&only).await);
    }
}
