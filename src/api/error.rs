//! What a client reads when something did not work: a status, a class that the command line knows, one sentence.
//!
//! `{"error":{"class":"refused","message":"…"}}`. What an operator needs beyond that is logged here, once, with all its causes.

use activities::objects::ObjectError;
use activities::snapshots::SnapshotError;
use activities::store::StoreError;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use workflows::contract::FailureClass;

use super::engine::EngineError;
use super::logs::LogError;

/// When a request that found the api busy is worth another try, seconds.
const BUSY_RETRY_S: u64 = 5;

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    class: FailureClass,
    message: String,
    /// When it is worth another try, seconds.
    retry_after_s: Option<u64>,
}

/// The error in a response's extensions, for the audit log.
#[derive(Debug, Clone)]
pub struct Failed {
    pub class: FailureClass,
    pub message: String,
}

/// An error as JSON.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorDetail {
    pub class: FailureClass,
    /// What failed, on what, why, what to do next.
    pub message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, class: FailureClass, message: impl Into<String>) -> Self {
        Self { status, class, message: message.into(), retry_after_s: None }
    }

    /// 400: the request itself is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, FailureClass::Usage, message)
    }

    /// 404: what it names is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, FailureClass::Usage, message)
    }

    /// 409: it goes against what is there already.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, FailureClass::Refused, message)
    }

    /// 422: a rule forbids it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, FailureClass::Refused, message)
    }

    /// 429: there is too much of it now; worth another try in so many seconds.
    pub fn too_many(message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, FailureClass::Transient, message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 429: there is no room for it now.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::too_many(message, BUSY_RETRY_S)
    }

    /// 401: no valid token, and so nothing.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, FailureClass::Refused, "a valid bearer token is needed")
    }

    /// 403: the token is valid, and not for this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, FailureClass::Refused, message)
    }

    /// 503: a part this api needs does not answer. The cause is for the operator.
    pub fn unavailable(message: &str, cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "{message}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, FailureClass::Transient, format!("{message}; try again"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, class, message, retry_after_s } = self;
        let failed = Extension(Failed { class, message: message.clone() });
        let body = Json(ErrorBody { error: ErrorDetail { class, message } });
        let mut response = (status, failed, body).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::unavailable("the store did not do what was asked", &error)
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        Self::unavailable("the log cannot be read", &error)
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        Self::unavailable("object storage did not do what was asked", &error)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(message) => Self::refused(message),
            EngineError::NotFound => Self::not_found("Temporal knows no such build any more"),
            error => Self::unavailable("Temporal did not do what was asked", &error),
        }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Refused(message) => Self::refused(format!("snapshot refused: {message}")),
            SnapshotError::Storage(error) => error.into(),
            SnapshotError::Busy => Self::too_many("too many manifests are being checked; try again", BUSY_RETRY_S),
        }
    }
}
