//! Parts of a request, with errors as the api's own JSON.

use axum::body::HttpBody as _;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use workflows::contract::FailureClass;

use super::error::ApiError;

/// A JSON body. The content type is not asked for: `curl -d` sends another one.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let RawBody(bytes) = RawBody::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

/// Parses JSON without secrets.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::usage(format!("the body is not what it should be: {error}")))
}

/// Parses JSON that holds secrets: only the place of a mistake is told.
pub fn parse_secret<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        ApiError::usage(format!("the body is not what it should be at line {line}, column {column}; see /openapi.json"))
    })
}

/// The most bytes a body may have; set for each route.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit(pub usize);

/// How much of a body that is too large is read and dropped, bytes: a client that is still sending would not read the answer.
const DRAIN: usize = 16 << 20;

/// A body as it is, up to its route's [`BodyLimit`].
pub struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let limit = request.extensions().get::<BodyLimit>().map_or(0, |limit| limit.0);
        let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
        let mut chunks = request.into_body().into_data_stream();
        // What a client announces is reserved at once, so that the body does not grow by doubling.
        let (mut body, mut length) = (BytesMut::with_capacity(announced.min(limit)), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::usage(format!("the body did not arrive: {error}")))?;
            length += chunk.len();
            if length <= limit {
                body.extend_from_slice(&chunk);
            } else if length > limit + DRAIN {
                break;
            }
        }
        if length > limit {
            let message = format!("the body is larger than the {limit} bytes allowed here");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, FailureClass::Refused, message));
        }
        Ok(Self(body.freeze()))
    }
}

/// Parts of the path.
pub struct Segments<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|rejection| ApiError::usage(rejection.body_text()))
    }
}

/// The query.
pub struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|rejection| ApiError::usage(rejection.body_text()))
    }
}
