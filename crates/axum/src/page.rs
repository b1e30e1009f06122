//! The page for people: run a document, watch changes, copy a cursor. It needs nothing from elsewhere and works offline.

use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::server::State;

const PAGE: &str = include_str!("../assets/index.html");
const SCRIPT: &str = include_str!("../assets/page.js");
const STYLE: &str = include_str!("../assets/page.css");
const ICON: &str = include_str!("../assets/icon.svg");

const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; object-src 'none'; \
                      frame-ancestors 'none'";

/// The page asks GraphQL at a path relative to its own, so that both may be nested in an application together.
pub(crate) fn routes(graphql: &str) -> Router<State> {
    let relative = graphql.trim_start_matches('/').replace('"', "&quot;");
    let page = PAGE.replacen("content=\"graphql\"", &format!("content=\"{relative}\""), 1);
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", page) }))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/icon.svg", get(|| async { asset("image/svg+xml", ICON) }))
}

fn asset(content_type: &'static str, text: impl IntoResponse) -> Response {
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache"), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, text).into_response()
}
