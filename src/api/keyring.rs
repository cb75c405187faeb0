//! Checks tokens: the operator's token of the settings, which is compared and kept nowhere, and those of the store.
//!
//! What the store answered is remembered for [`REMEMBERED`], so that a token that is revoked through one api is void on all of them
//! soon after. The last use of a token is noted here and written by [`run`] from time to time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use activities::store::{Store, StoreError, TokenHash};
use lru::LruCache;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::principal::{Caller, Principal};

/// How long a token is valid after another api has revoked it.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many tokens are remembered; beyond it, those used longest ago are looked up again.
const REMEMBER_MOST: usize = 16 << 10;
/// How often last uses are written.
const WRITE_USES: Duration = Duration::from_secs(30);
/// How often old rows are deleted, and how long a token is kept for an operator's questions after it is void.
const FORGET: Duration = Duration::from_secs(3600);
const KEEP_MS: i64 = 90 * 24 * 3600 * 1000;
/// The longest token that is looked at, bytes.
const TOKEN_MOST: usize = 512;
/// What stands for the id of the settings' token.
pub const SETTINGS: &str = "settings";

pub struct Keyring {
    store: Store,
    /// The settings' token; `None` when there is none.
    operator: Option<Arc<Caller>>,
    remembered: Mutex<LruCache<TokenHash, Remembered>>,
    /// When tokens were used last, by id, milliseconds since 1970; what is not written yet.
    uses: Mutex<HashMap<String, i64>>,
}

struct Remembered {
    caller: Arc<Caller>,
    expires_ms: Option<i64>,
    until: Instant,
}

impl Keyring {
    /// `operator` is the settings' token; there is none when it is empty.
    pub fn new(store: Store, operator: &str) -> Self {
        let caller = |hash| Caller { principal: Principal::Operator, token: SETTINGS.into(), hash };
        Self {
            store,
            operator: (!operator.is_empty()).then(|| Arc::new(caller(TokenHash::of(operator)))),
            remembered: Mutex::new(LruCache::new(NonZeroUsize::new(REMEMBER_MOST).unwrap_or(NonZeroUsize::MIN))),
            uses: Mutex::default(),
        }
    }

    /// Whom a token stands for; `None` when it is not valid.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn identify(&self, token: &str) -> Result<Option<Arc<Caller>>, StoreError> {
        if token.is_empty() || token.len() > TOKEN_MOST {
            return Ok(None);
        }
        self.recall(&TokenHash::of(token)).await
    }

    /// As [`Self::identify`], for a token that was seen before.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn recall(&self, hash: &TokenHash) -> Result<Option<Arc<Caller>>, StoreError> {
        if let Some(operator) = &self.operator
            && bool::from(operator.hash.as_bytes().ct_eq(hash.as_bytes()))
        {
            return Ok(Some(operator.clone()));
        }
        let asked = Instant::now();
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let caller = match self.remembered(hash, now_ms) {
            Some(caller) => Some(caller),
            None => self.look_up(hash, asked, now_ms).await?,
        };
        if let Some(caller) = &caller {
            self.note_use(&caller.token, now_ms);
        }
        Ok(caller)
    }

    /// Drops what is remembered of a token that was revoked here, so that it is void at once.
    pub fn forget(&self, token_id: &str) {
        let mut remembered = lock(&self.remembered);
        let of_token = remembered.iter().find(|(_, known)| known.caller.token == token_id).map(|(hash, _)| *hash);
        if let Some(hash) = of_token {
            remembered.pop(&hash);
        }
    }

    fn remembered(&self, hash: &TokenHash, now_ms: i64) -> Option<Arc<Caller>> {
        let mut remembered = lock(&self.remembered);
        let known = remembered.get(hash)?;
        let valid = Instant::now() < known.until && known.expires_ms.is_none_or(|expires| now_ms < expires);
        valid.then(|| known.caller.clone())
    }

    async fn look_up(&self, hash: &TokenHash, asked: Instant, now_ms: i64) -> Result<Option<Arc<Caller>>, StoreError> {
        let row = self.store.token(hash).await?.filter(|row| row.is_valid(now_ms));
        let Some(row) = row else {
            lock(&self.remembered).pop(hash);
            return Ok(None);
        };
        let caller = Arc::new(Caller { principal: row.principal, token: row.id, hash: *hash });
        let known = Remembered { caller: caller.clone(), expires_ms: row.expires_ms, until: asked + REMEMBERED };
        lock(&self.remembered).put(*hash, known);
        Ok(Some(caller))
    }

    fn note_use(&self, token_id: &str, now_ms: i64) {
        let mut uses = lock(&self.uses);
        match uses.get_mut(token_id) {
            Some(used_ms) => *used_ms = now_ms,
            None => drop(uses.insert(token_id.to_owned(), now_ms)),
        }
    }

    /// Writes the uses that were noted since the last time; those that cannot be written are lost.
    pub async fn write_uses(&self) {
        let uses: Vec<_> = std::mem::take(&mut *lock(&self.uses)).into_iter().collect();
        if let Err(error) = self.store.note_token_use(&uses).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note when tokens were used");
        }
    }
}

/// Writes last uses and deletes old rows until `stop`.
pub async fn run(keyring: Arc<Keyring>, stop: CancellationToken) {
    let mut forgot: Option<Instant> = None;
    while stop.run_until_cancelled(tokio::time::sleep(WRITE_USES)).await.is_some() {
        keyring.write_uses().await;
        if forgot.is_none_or(|at| at.elapsed() >= FORGET) {
            forgot = Some(Instant::now());
            let before_ms = jiff::Timestamp::now().as_millisecond() - KEEP_MS;
            if let Err(error) = keyring.store.forget_tokens(before_ms).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot delete old tokens; will retry");
            }
        }
    }
    keyring.write_uses().await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
