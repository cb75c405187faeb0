//! Bearer tokens, kept as SHA-256. A token is 128 random bits or more, so a plain hash is enough: there is nothing to guess.

use sha2::{Digest as _, Sha256};

use super::{Store, StoreError, failed_to, now_ms};

impl Store {
    /// Lets a token in from now on; a token that is already let in keeps its label.
    pub async fn add_token(&self, token: &str, label: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO tokens (hash, label, created_ms) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING")
            .bind(hash(token))
            .bind(label)
            .bind(now_ms())
            .execute(&self.pool)
            .await
            .map_err(failed_to("add a token"))?;
        Ok(())
    }

    /// Whether this token is let in.
    pub async fn knows_token(&self, token: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT label FROM tokens WHERE hash = $1")
            .bind(hash(token))
            .fetch_optional(&self.pool)
            .await
            .map_err(failed_to("look a token up"))?;
        Ok(row.is_some())
    }
}

fn hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
