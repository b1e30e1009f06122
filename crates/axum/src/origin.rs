//! Which sites' pages may use the server from a browser.
//!
//! A page of any site may open a WebSocket to any server, and its visitor's browser may reach servers that the site itself cannot. A browser says
//! whose page asks (`Origin`, `Sec-Fetch-Site`), and pages cannot make it lie; other clients say nothing and pass.

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{HOST, ORIGIN, RETRY_AFTER},
    request::Parts,
    uri::{Authority, Uri},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{http::Refused, server::ServerOptions};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request that a page of another site makes, unless that site is listed.
pub(crate) fn check(options: &ServerOptions, headers: &HeaderMap, uri: &Uri) -> Result<(), Refused> {
    if is_allowed(options, headers, uri) {
        return Ok(());
    }
    Err(Refused::new(StatusCode::FORBIDDEN, "pages of this origin may not use this server (`origins`)"))
}

fn is_allowed(options: &ServerOptions, headers: &HeaderMap, uri: &Uri) -> bool {
    if let Some(origin) = headers.get(ORIGIN) {
        return is_listed(options, origin) || (options.same_host && is_own(origin, headers, uri));
    }
    // Without an origin come a link that is followed and an image, which can neither read the answer nor send a mutation; yet they can make
    // the server work.
    match headers.get(FETCH_SITE).map(HeaderValue::as_bytes) {
        None | Some(b"none" | b"same-origin") => true,
        Some(_) => options.origins.iter().any(|origin| origin == "*"),
    }
}

fn is_listed(options: &ServerOptions, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    options.origins.iter().any(|listed| listed == "*" || listed.trim_end_matches('/').eq_ignore_ascii_case(origin))
}

/// Whether an origin is where the request was sent to. The scheme is not looked at: who ends TLS in front knows it, and the server does not.
fn is_own(origin: &HeaderValue, headers: &HeaderMap, uri: &Uri) -> bool {
    let Some(origin) = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()) else { return false };
    let port = if origin.scheme_str() == Some("https") { 443 } else { 80 };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let asked = host.or_else(|| uri.authority().cloned());
    let (Some(asked), Some(origin)) = (asked, origin.authority()) else { return false };
    asked.host().eq_ignore_ascii_case(origin.host())
        && asked.port_u16().unwrap_or(port) == origin.port_u16().unwrap_or(port)
}

/// What lets pages of listed origins read answers. Cookies are no part of it: who is who comes by header.
pub(crate) fn cors(options: &ServerOptions) -> CorsLayer {
    let options = options.clone();
    let listed = move |origin: &HeaderValue, _: &Parts| is_listed(&options, origin);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(listed))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(options: &ServerOptions, headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a name");
            map.insert(name, value.parse().expect("a value"));
        }
        is_allowed(options, &map, &Uri::from_static("/graphql"))
    }

    #[test]
    fn an_origin_is_the_servers_own_or_listed() {
        let mut options = ServerOptions { origins: vec!["https://app.example/".into()], ..ServerOptions::default() };
        for (host, origin, own) in [
            ("db.example", "https://db.example", true),
            ("db.example:443", "https://db.example", true),
            ("db.example:80", "https://db.example", false),
            ("db.example:8000", "http://db.example:8000", true),
            ("DB.example:8000", "http://db.example:8000", true),
            ("db.example:8000", "http://db.example:8001", false),
            ("db.example", "https://db.example.evil.example", false),
            ("db.example", "https://db.example@evil.example", false),
            ("db.example", "null", false),
            ("db.example", "nonsense", false),
            ("[::1]:8000", "http://[::1]:8000", true),
            ("db.example", "https://app.example", true),
            ("db.example", "HTTPS://APP.example", true),
            ("db.example", "http://app.example", false),
            ("db.example", "https://app.example:444", false),
        ] {
            assert_eq!(allowed(&options, &[("host", host), ("origin", origin)]), own, "{host} {origin}");
        }
        options.same_host = false;
        assert!(!allowed(&options, &[("host", "db.example"), ("origin", "https://db.example")]));
        assert!(allowed(&options, &[("host", "db.example"), ("origin", "https://app.example")]));
        assert!(allowed(&options, &[("host", "db.example")]), "no browser");
        options.origins = vec!["*".into()];
        assert!(allowed(&options, &[("host", "db.example"), ("origin", "null")]));
    }

    #[test]
    fn what_a_foreign_page_embeds_is_told_by_the_browser() {
        let options = ServerOptions::default();
        for (site, own) in [("none", true), ("same-origin", true), ("same-site", false), ("cross-site", false)] {
            assert_eq!(allowed(&options, &[("host", "x"), ("sec-fetch-site", site)]), own, "{site}");
        }
    }
}
