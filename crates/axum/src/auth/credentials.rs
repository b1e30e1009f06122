use axum::http::{HeaderMap, header::AUTHORIZATION};
use serde_json::Value;

use super::refusal::Refusal;

const API_KEY: &str = "x-api-key";

/// What a client shows.
#[derive(PartialEq, Eq)]
pub(super) enum Credentials<'a> {
    /// A JSON web token.
    Token(&'a str),
    ApiKey(&'a str),
}

/// What the headers show.
pub(super) fn in_headers(headers: &HeaderMap) -> Result<Option<Credentials<'_>>, Refusal> {
    let authorization = headers.get_all(AUTHORIZATION).iter().map(|value| {
        let value = value.to_str().map_err(|_| Refusal::Malformed)?;
        by_scheme(value).ok_or(Refusal::Scheme)
    });
    let api_key = headers.get_all(API_KEY).iter().map(|value| {
        let key = value.to_str().map_err(|_| Refusal::ApiKey)?;
        Ok(Credentials::ApiKey(key.trim()))
    });
    only(authorization.chain(api_key))
}

/// What a payload shows, under the names that clients use for it.
pub(super) fn in_payload(payload: &Value) -> Result<Option<Credentials<'_>>, Refusal> {
    let Value::Object(fields) = payload else { return Ok(None) };
    let shown = fields.iter().filter(|(_, value)| !value.is_null()).filter_map(|(name, value)| {
        let read: fn(&str) -> Option<Credentials<'_>> = match name.to_ascii_lowercase().as_str() {
            "authorization" => by_scheme,
            "token" => |text| Some(by_scheme(text).unwrap_or(Credentials::Token(text.trim()))),
            API_KEY => |text| Some(Credentials::ApiKey(text.trim())),
            _ => return None,
        };
        Some(value.as_str().and_then(read).ok_or(Refusal::Scheme))
    });
    only(shown)
}

/// The text of a header `authorization`.
fn by_scheme(text: &str) -> Option<Credentials<'_>> {
    let (scheme, rest) = text.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        Some(Credentials::Token(rest))
    } else if scheme.eq_ignore_ascii_case("apikey") {
        Some(Credentials::ApiKey(rest))
    } else {
        None
    }
}

fn only<'a>(
    mut shown: impl Iterator<Item = Result<Credentials<'a>, Refusal>>,
) -> Result<Option<Credentials<'a>>, Refusal> {
    let first = shown.next().transpose()?;
    if shown.next().is_some() { Err(Refusal::Several) } else { Ok(first) }
}
