//! What comes in, parsed once: parts of the path, the query, the body, and who asks. Whatever can't be
//! parsed is `invalid`, with the field where one is at fault.
//!
//! Called by the routes' signatures.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use orlop_api::{ErrorKind, ParseError};
use serde::de::DeserializeOwned;

use super::error::{ApiError, unparsable};
use crate::engine::Principal;

/// The largest body that is read into memory. The largest request of the API has well under 8 KiB.
const LARGEST_BODY: usize = 64 << 10;

/// How much of a body that is too large is read and thrown away, so that its sender gets to hear why.
/// Closing at once would reset the connection under it.
const DISCARDED: usize = 16 << 20;

/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Who asks, and how long the answer is waited for; put there by the door.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Who asks.
    pub who: Principal,
    /// How long the answer is waited for.
    pub within: Duration,
}

impl std::ops::Deref for Asker {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.who
    }
}

/// See [`Asker`].
pub struct Caller(pub Asker);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let asker = parts.extensions.get::<Asker>().cloned();
        // A route that is open to anyone has none and must not ask for one.
        asker.map(Caller).ok_or_else(ApiError::unexpected)
    }
}

/// How long the answer is waited for: what the request prefers (RFC 7240, `Prefer: wait=SECONDS`), but no longer than `most`.
pub fn within(headers: &HeaderMap, most: Duration) -> Result<Duration, ApiError> {
    let wrong = || ApiError::invalid("Prefer", "wait must be a number of seconds, 1 or more");
    for value in headers.get_all("prefer") {
        let text = value.to_str().map_err(|_| wrong())?;
        for preference in text.split(',') {
            // `wait=5; foo="bar"`: parameters, and preferences that are not ours, are let be, as the RFC asks.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if name.trim().eq_ignore_ascii_case("wait") {
                let seconds: u64 = value.trim().trim_matches('"').parse().map_err(|_| wrong())?;
                return if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds).min(most)) };
            }
        }
    }
    Ok(most)
}

/// The only part of the path that varies.
pub struct At<T>(pub T);

/// Both parts of the path that vary.
pub struct At2<A, B>(pub A, pub B);

async fn raw(parts: &mut Parts) -> Result<RawPathParams, ApiError> {
    let raw = RawPathParams::from_request_parts(parts, &()).await;
    raw.map_err(|e| ApiError::new(ErrorKind::Invalid, e.body_text()))
}

fn nth<T: FromStr<Err = ParseError>>(raw: &RawPathParams, n: usize) -> Result<T, ApiError> {
    let (field, text) = raw.iter().nth(n).ok_or_else(ApiError::unexpected)?;
    text.parse().map_err(|e| unparsable(field, &e))
}

impl<S: Sync, T: FromStr<Err = ParseError>> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self(nth(&raw(parts).await?, 0)?))
    }
}

impl<S, A, B> FromRequestParts<S> for At2<A, B>
where
    S: Sync,
    A: FromStr<Err = ParseError>,
    B: FromStr<Err = ParseError>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let raw = raw(parts).await?;
        Ok(Self(nth(&raw, 0)?, nth(&raw, 1)?))
    }
}

/// The query; its type refuses unknown fields.
pub struct Params<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(e) => {
                let text = e.body_text();
                let inner = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, inner)| inner);
                Err(match inner.split_once(": ") {
                    Some((field, _)) if is_name(field) => ApiError::invalid(field, inner),
                    _ => about(inner, ""),
                })
            }
        }
    }
}

/// A JSON body.
pub struct Ask<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Ask<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let is_json = is_json(request.headers());
        let body = read(request.into_body()).await?;
        if !is_json {
            return Err(ApiError::new(ErrorKind::Invalid, "Content-Type must be application/json"));
        }
        parse(&body).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::new(ErrorKind::Invalid, "the body ended too early"))?;
        let Some(chunk) = frame.data_ref() else { continue };
        if data.len() + chunk.len() > LARGEST_BODY {
            drop(data);
            discard(body).await;
            let detail = format!("the body is larger than {} KiB", LARGEST_BODY >> 10);
            return Err(ApiError::new(ErrorKind::Invalid, detail));
        }
        data.extend_from_slice(chunk);
    }
    Ok(data)
}

async fn discard(mut body: Body) {
    let mut left = DISCARDED;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, |d| d.len())) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    // Either way the request is refused; a slow sender just doesn't hear it.
    let _ = tokio::time::timeout(DISCARD_TIME, reading).await;
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        about(&e.inner().to_string(), if path == "." { "" } else { &path })
    })?;
    json.end().map_err(|e| about(&e.to_string(), ""))?;
    Ok(value)
}

/// An error of serde's: its path names the field, or, for an unknown or missing one, its words do.
fn about(text: &str, path: &str) -> ApiError {
    // What was given is not repeated: it may be a key in the wrong place, and errors are logged by those who ask.
    let unquoted = text.strip_prefix("invalid type: string \"").and_then(|t| t.rsplit_once("\", expected "));
    let unquoted = unquoted.map(|(_, wanted)| format!("invalid type: a string, expected {wanted}"));
    let text = unquoted.as_deref().unwrap_or(text);
    let named = ["unknown field `", "missing field `", "duplicate field `"];
    let named = named.iter().find_map(|p| text.strip_prefix(p)?.split_once('`')).map(|(field, _)| field);
    match named.unwrap_or(path) {
        "" => ApiError::new(ErrorKind::Invalid, text),
        field => ApiError::invalid(field, text),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::response::IntoResponse;
    use orlop_api::VolumeCreate;

    #[test]
    fn a_key_in_the_wrong_place_is_not_repeated() {
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let asked = parse::<orlop_api::VolumeKey>(format!("\"{key}\"").as_bytes()).unwrap_err();
        let text = format!("{:?}", asked.into_response());
        assert!(!text.contains(&key[2..]), "{text}");
        for body in
            [format!("\"{key}\""), format!(r#"{{"name":"a","pool":"p","size":1,"encryption":"{key}"}}"#)]
        {
            let error = parse::<VolumeCreate>(body.as_bytes()).unwrap_err();
            assert!(!format!("{error:?}").contains(&key[2..]), "{error:?}");
        }
    }

    #[test]
    fn wrong_bodies_name_their_field() {
        for (body, field) in [
            (r#"{"name":"a","pool":"p","size":1,"sise":2}"#, "sise"),
            (r#"{"name":"a","pool":"p"}"#, "size"),
            (r#"{"name":"a","name":"a","pool":"p","size":1}"#, "name"),
            (r#"{"name":"a/b","pool":"p","size":1}"#, "name"),
            (r#"{"name":"a","pool":"p","size":-1}"#, "size"),
            (r#"{"name":"a","pool":"p","size":1.5}"#, "size"),
            (r#"{"name":"a","pool":"p","size":"1"}"#, "size"),
        ] {
            let e = parse::<VolumeCreate>(body.as_bytes()).unwrap_err();
            assert!(format!("{e:?}").contains(&format!("field: Some({field:?})")), "{body}: {e:?}");
        }
        for body in ["", "[]", "null", "{", r#"{"name":"a","pool":"p","size":1} x"#, "\u{0}"] {
            let e = parse::<VolumeCreate>(body.as_bytes()).unwrap_err();
            assert_eq!(e.into_response().status(), 400, "{body}");
        }
    }
}
