//! Principals of requests: the middleware that looks up who makes a request, and the log receiver's hello, which does the same.
//!
//! What a principal may do is decided by the extractors of [`super::access`].

use std::fmt;
use std::sync::Arc;

use activities::store::TokenHash;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
pub use workflows::contract::{Principal, Scope};

use super::error::ApiError;
use super::keyring::Keyring;

/// Who makes a request, and by which token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub principal: Principal,
    /// The token's id; `settings` for the token of `api.token`.
    pub token: String,
    /// Finds the token again: a stream that outlives its request checks that it is still valid.
    pub hash: TokenHash,
}

/// As the audit log names it: the principal and the token's id.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.principal, self.token)
    }
}

/// Puts the [`Caller`] into the request. The same 401 for no token and for one that is malformed, wrong, expired or revoked.
pub async fn identify(
    State(keyring): State<Arc<Keyring>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = bearer(&request).ok_or_else(ApiError::unauthorized)?;
    let caller = keyring.identify(token).await?.ok_or_else(ApiError::unauthorized)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

fn bearer(request: &Request) -> Option<&str> {
    let (scheme, token) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
