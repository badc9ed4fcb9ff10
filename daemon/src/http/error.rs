//! Errors as they leave: the one place where anything becomes `application/problem+json`.
//!
//! Called by every other module of `http`. Knows of each error only its [`Problem`].

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use orlop_api::{ErrorKind, ParseError, Problem};

use crate::engine;

/// See the module.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Problem>);

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

/// The longest text of a caller's that is sent back: serde quotes what it could not read.
const LONGEST_DETAIL: usize = 512;

impl ApiError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if let Some((cut, _)) = detail.char_indices().nth(LONGEST_DETAIL) {
            detail.truncate(cut);
            detail.push_str("...");
        }
        Self(Box::new(Problem::new(kind, detail)))
    }

    /// A field that breaks a rule.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let mut e = Self::new(ErrorKind::Invalid, detail);
        e.0.field = Some(field.chars().take(64).collect());
        e
    }

    /// An object that is not there.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} does not exist"))
    }

    /// An answer of the engine that does not belong to the question. A defect.
    pub fn unexpected() -> Self {
        Self::new(ErrorKind::Internal, "the engine gave another kind of answer")
    }
}

impl From<engine::Error> for ApiError {
    fn from(e: engine::Error) -> Self {
        Self(Box::new(e.to_problem()))
    }
}

/// `field` could not be parsed.
pub fn unparsable(field: &str, e: &ParseError) -> ApiError {
    ApiError::invalid(field, e.to_string())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = *self.0;
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = problem.kind;
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match kind {
            ErrorKind::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            ErrorKind::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// Every path that is not a route.
pub async fn no_such_route() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such route: see /v1/openapi.json")
}

/// A route that does not have the method. The kind is `invalid`, like any request that will always
/// fail; the status is 405 and not that kind's, because with `Allow` it is what HTTP clients expect.
pub async fn no_such_method() -> ApiError {
    let mut e = ApiError::new(ErrorKind::Invalid, "the route does not have this method: see Allow");
    e.0.status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
    e
}
