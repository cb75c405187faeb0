//! Exchanges tokens of other issuers, which CI systems give to their jobs, for short-lived ones of a project.
//!
//! ```text
//! a job's token ─► issuer named by a trust rule of the project? ─► its keys ─► signature, time, audience ─► claims of a rule
//! ```
//!
//! Nothing is fetched for an issuer that no rule of the project names. What a rule allows is decided by the project's
//! admins; that a rule names somebody at all is checked when it is added ([`TrustRule::check`]).

mod issuers;
pub mod routes;
mod rules;
#[cfg(test)]
mod tests;
mod verify;

use serde_json::{Map, Value};

pub use issuers::{Fetch, IssuerError, Issuers, Pace, Unread};
pub use routes::{Exchange, ExchangeRequest, Exchanged, TrustInfo};
pub use rules::{ClaimRule, LONGEST_S, SHORTEST_S, TrustRule};
pub use verify::TokenError;

/// Why a token is not exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The same for a project without rules and for none: a stranger learns of neither.
    #[error("no trust rule of the project is for tokens of {0:?}")]
    NotTrusted(String),
    #[error("the token cannot be used: {0}")]
    Token(#[from] TokenError),
    #[error("the token is genuine, but no trust rule of the project fits its claims")]
    NoRule,
    #[error(transparent)]
    Away(#[from] IssuerError),
}

/// A token that fits a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    pub rule: TrustRule,
    /// Whom the issuer says it is for (`sub`), shortened.
    pub subject: String,
}

/// The first of a project's rules that a token fits.
///
/// # Errors
/// When no rule is for the token's issuer, the token is not genuine or not valid now, no rule fits its claims, or the
/// issuer's keys cannot be read.
pub async fn check<F: Fetch>(issuers: &Issuers<F>, rules: &[TrustRule], token: &str) -> Result<Trusted, ExchangeError> {
    let issuer = verify::named_issuer(token)?;
    let of_issuer: Vec<_> = rules.iter().filter(|rule| rule.issuer == issuer).collect();
    if of_issuer.is_empty() {
        return Err(ExchangeError::NotTrusted(shortened(&issuer)));
    }
    let audiences: Vec<_> = of_issuer.iter().map(|rule| rule.audience.as_str()).collect();
    let keys = issuers.keys(&issuer, false).await?;
    let claims = match verify::verify(token, &keys, &issuer, &audiences) {
        // The issuer may have a new key by now.
        Err(TokenError::UnknownKey) => {
            let keys = issuers.keys(&issuer, true).await?;
            verify::verify(token, &keys, &issuer, &audiences)?
        }
        verified => verified?,
    };
    let rule = of_issuer.into_iter().find(|rule| rule.fits(&claims)).ok_or(ExchangeError::NoRule)?;
    Ok(Trusted { rule: rule.clone(), subject: subject(&claims) })
}

fn subject(claims: &Map<String, Value>) -> String {
    shortened(claims.get("sub").and_then(Value::as_str).unwrap_or("?"))
}

/// A text from outside, for lists and logs.
fn shortened(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(120).collect()
}
