//! Bearer tokens: without a valid one, nothing.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::Shared;
use super::error::ApiError;

/// Lets a request pass whose token the store knows. The same answer for none, a malformed and a wrong one.
pub async fn require_token(State(app): State<Shared>, request: Request, next: Next) -> Result<Response, ApiError> {
    let token = bearer(&request).ok_or_else(ApiError::unauthorized)?;
    if !app.store.knows_token(token).await? {
        return Err(ApiError::unauthorized());
    }
    Ok(next.run(request).await)
}

fn bearer(request: &Request) -> Option<&str> {
    let (scheme, token) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
