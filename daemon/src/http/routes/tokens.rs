//! Tokens: who may call over the network, and what it may do.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use orlop_api::{MadeToken, Page, Problem, Token, TokenName, TokenPut};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, At, Caller};

/// All tokens and what they may do; never themselves.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, body = Page<Token>)))]
pub async fn list(State(api): State<Api>) -> Json<Page<Token>> {
    Json(Page { items: api.engine.tokens(), next: None })
}

/// Makes a token, and shows it this once; or changes what one may do that is there, which stays as it is. A certificate is never
/// shown, and another one takes its place.
#[utoipa::path(put, path = "/v1/tokens/{token}", tag = "tokens", params(("token" = String, Path)),
    request_body = TokenPut, responses(
    (status = 201, body = MadeToken, description = "Made: `secret` is the token"),
    (status = 200, body = MadeToken, description = "Changed, or so already; or a certificate is a token now"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn put(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<TokenName>,
    Ask(ask): Ask<TokenPut>,
) -> ApiResult<(StatusCode, [(header::HeaderName, &'static str); 1], Json<MadeToken>)> {
    match submit(&api, who, Action::PutToken(name, ask)).await? {
        Outcome::Token(made) => {
            let status = if made.secret.is_some() { StatusCode::CREATED } else { StatusCode::OK };
            Ok((status, [(header::CACHE_CONTROL, "no-store")], Json(made)))
        }
        _ => Err(ApiError::unexpected()),
    }
}

/// Lets nobody in by a token any more, from the next request on.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tokens", params(("token" = String, Path)), responses(
    (status = 204, description = "Gone"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn delete(
    State(api): State<Api>,
    Caller(who): Caller,
    At(name): At<TokenName>,
) -> ApiResult<StatusCode> {
    submit(&api, who, Action::DeleteToken(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
