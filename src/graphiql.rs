//! GraphiQL, where it was built (`npm run build` in `web/`) before this program was.

use axum::{
    Router,
    extract::Path,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use rust_embed::RustEmbed;

/// In a debug build the files are read from the folder, in a release build they are part of the program.
#[derive(RustEmbed)]
#[folder = "web/dist/graphiql"]
#[allow_missing = true]
struct Files;

const INDEX: &str = "index.html";
/// The editor makes its own style elements, fonts and workers.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; \
                      img-src 'self' data:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; object-src 'none'; frame-ancestors 'none'";

/// The routes of GraphiQL, which asks GraphQL at this path; none where it was not built.
pub(crate) fn routes(graphql: &str) -> Router {
    let Some(index) = Files::get(INDEX) else { return Router::new() };
    let meta = format!("content=\"..{}\"", graphql.replace('"', "&quot;"));
    let index = String::from_utf8_lossy(&index.data).replacen("content=\"../graphql\"", &meta, 1);
    Router::new()
        .route("/graphiql", get(|| async { Redirect::permanent("graphiql/") }))
        .route(
            "/graphiql/",
            get(|| async { ([(CONTENT_TYPE, "text/html"), (CONTENT_SECURITY_POLICY, POLICY)], index) }),
        )
        .route("/graphiql/{*path}", get(|Path(path): Path<String>| async move { file(&path) }))
}

fn file(path: &str) -> Response {
    let Some(file) = Files::get(path) else { return StatusCode::NOT_FOUND.into_response() };
    // Their names change with their contents.
    let headers = [(CONTENT_TYPE, file.metadata.mimetype()), (CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (headers, file.data).into_response()
}
