//! Tokens: for each its principal, name, expiry, last use and revocation.
//!
//! The secret is kept as SHA-256 only. It is 256 random bits, so that a plain hash is enough: there is nothing to guess.

use std::fmt;

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use workflows::contract::{Principal, ProjectName};

use super::{Store, StoreError, failed_to, id, now_ms, number, optional_number, text};

/// What a token's secret starts with, so that scanners find one that was committed.
const PREFIX: &str = "kiln_";
/// How many tokens a list shows at most.
const LIST_MOST: i64 = 10_000;

/// A token as it is kept; its secret is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Names the token in lists and in the audit log: `t-` and 16 hex digits.
    pub id: String,
    pub principal: Principal,
    /// What its owner calls it.
    pub name: String,
    /// The principal that issued it, with its token's id.
    pub issued_by: String,
    /// Milliseconds since 1970, as the others.
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
    /// Its last use, up to half a minute late.
    pub used_ms: Option<i64>,
    pub revoked_ms: Option<i64>,
}

impl TokenRow {
    /// Whether it opens anything at `now_ms`.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|expires| now_ms < expires)
    }
}

/// A token to issue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    pub principal: Principal,
    pub name: String,
    pub issued_by: String,
    /// Milliseconds since 1970; it does not expire when absent.
    pub expires_ms: Option<i64>,
}

/// A token that was issued just now: the only moment at which its secret is known.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    pub row: TokenRow,
    pub secret: String,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("row", &self.row).finish_non_exhaustive()
    }
}

/// The SHA-256 of a token's secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

const COLUMNS: &str = "id, principal, name, issued_by, created_ms, expires_ms, used_ms, revoked_ms";

impl Store {
    /// Issues a token.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn issue_token(&self, new: &NewToken) -> Result<IssuedToken, StoreError> {
        let issued = issued(new);
        self.insert_token(&issued, "").await?;
        Ok(issued)
    }

    /// Issues a token in place of those that `new.issued_by` issued for the same principal: they are revoked. `None` when another
    /// issuer's token for this principal is valid; then nothing changes.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn replace_token(&self, new: &NewToken) -> Result<Option<IssuedToken>, StoreError> {
        let issued = issued(new);
        let unless =
            "WHERE NOT EXISTS (SELECT 1 FROM access_tokens other WHERE other.principal = $3 AND other.issued_by <> $6
                      AND other.revoked_ms IS NULL AND (other.expires_ms IS NULL OR other.expires_ms > $7))";
        if !self.insert_token(&issued, unless).await? {
            return Ok(None);
        }
        sqlx::query(
            "UPDATE access_tokens SET revoked_ms = $1
             WHERE principal = $2 AND issued_by = $3 AND id <> $4 AND revoked_ms IS NULL",
        )
        .bind(now_ms())
        .bind(new.principal.to_string())
        .bind(&new.issued_by)
        .bind(&issued.row.id)
        .execute(&self.pool)
        .await
        .map_err(failed_to("revoke the tokens that a new one replaces"))?;
        Ok(Some(issued))
    }

    /// Whether the row was inserted.
    async fn insert_token(&self, issued: &IssuedToken, unless: &str) -> Result<bool, StoreError> {
        let row = &issued.row;
        let sql = format!(
            "INSERT INTO access_tokens (id, hash, principal, project, name, issued_by, created_ms, expires_ms)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8 {unless}"
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(&row.id)
            .bind(TokenHash::of(&issued.secret).to_string())
            .bind(row.principal.to_string())
            .bind(row.principal.project().map(ProjectName::as_str))
            .bind(&row.name)
            .bind(&row.issued_by)
            .bind(row.created_ms)
            .bind(row.expires_ms)
            .execute(&self.pool)
            .await
            .map_err(failed_to("keep a new token"))?;
        Ok(done.rows_affected() > 0)
    }

    /// The token with this secret, valid or not.
    pub async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM access_tokens WHERE hash = $1");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(hash.to_string()).fetch_optional(&self.pool).await;
        row.map_err(failed_to("look a token up"))?.as_ref().map(token_of).transpose()
    }

    /// Tokens that are not revoked and not expired, of a project or all, the newest first.
    pub async fn tokens(&self, project: Option<&ProjectName>) -> Result<Vec<TokenRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM access_tokens WHERE ($1 = '' OR project = $1) AND revoked_ms IS NULL
             AND (expires_ms IS NULL OR expires_ms > $2) ORDER BY created_ms DESC, id LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(project.map_or("", ProjectName::as_str))
            .bind(now_ms())
            .bind(LIST_MOST)
            .fetch_all(&self.pool)
            .await;
        rows.map_err(failed_to("list tokens"))?.iter().map(token_of).collect()
    }

    /// The token of this id, valid or not.
    pub async fn token_of_id(&self, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM access_tokens WHERE id = $1");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_optional(&self.pool).await;
        row.map_err(failed_to("read a token"))?.as_ref().map(token_of).transpose()
    }

    /// Revokes a token; one that is revoked stays so since when it was.
    pub async fn revoke_token(&self, id: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE access_tokens SET revoked_ms = COALESCE(revoked_ms, $2) WHERE id = $1")
            .bind(id)
            .bind(now_ms())
            .execute(&self.pool)
            .await
            .map_err(failed_to("revoke a token"))?;
        Ok(())
    }

    /// Notes when tokens were used last, by id.
    pub async fn note_token_use(&self, uses: &[(String, i64)]) -> Result<(), StoreError> {
        for (id, used_ms) in uses {
            sqlx::query("UPDATE access_tokens SET used_ms = $2 WHERE id = $1 AND (used_ms IS NULL OR used_ms < $2)")
                .bind(id)
                .bind(used_ms)
                .execute(&self.pool)
                .await
                .map_err(failed_to("note when a token was used"))?;
        }
        Ok(())
    }

    /// Forgets tokens that expired or were revoked before `before_ms`; the audit log still names them.
    pub async fn forget_tokens(&self, before_ms: i64) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM access_tokens WHERE revoked_ms < $1 OR expires_ms < $1")
            .bind(before_ms)
            .execute(&self.pool)
            .await
            .map_err(failed_to("forget old tokens"))?;
        Ok(())
    }
}

fn issued(new: &NewToken) -> IssuedToken {
    let NewToken { principal, name, issued_by, expires_ms } = new.clone();
    let (id, created_ms) = (format!("t-{}", random_hex::<8>()), now_ms());
    let row = TokenRow { id, principal, name, issued_by, created_ms, expires_ms, used_ms: None, revoked_ms: None };
    IssuedToken { row, secret: format!("{PREFIX}{}", random_hex::<32>()) }
}

/// `N` random bytes of the thread's generator, which is a cryptographic one.
fn random_hex<const N: usize>() -> String {
    let bytes: [u8; N] = rand::rng().random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn token_of(row: &AnyRow) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        id: text(row, "id")?,
        principal: id(row, "principal")?,
        name: text(row, "name")?,
        issued_by: text(row, "issued_by")?,
        created_ms: number(row, "created_ms")?,
        expires_ms: optional_number(row, "expires_ms")?,
        used_ms: optional_number(row, "used_ms")?,
        revoked_ms: optional_number(row, "revoked_ms")?,
    })
}
