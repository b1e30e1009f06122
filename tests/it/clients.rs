//! The clients that people use, in Node and in a browser, against the program.

use std::{path::Path, process::Stdio};

use tidewire_testkit::available;
use tokio::process::Command;

use crate::binary::{Running, Workplace};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Whether a program can be found.
fn installed(program: &str) -> bool {
    let found =
        std::process::Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Node with the packages of `tests/clients`.
fn node() -> bool {
    available("node", installed("node") && Path::new(FOLDER).join("node_modules").is_dir())
}

/// Runs one of the files with Node's own test runner. Where the server asks for tokens, they are signed with the secret.
async fn run(file: &str, server: &Running, secret: &str) {
    let mut command = Command::new("node");
    command
        .args(["--test", file])
        .current_dir(FOLDER)
        .kill_on_drop(true)
        .env("TIDEWIRE", format!("http://{}", server.address))
        .env("SECRET", secret);
    let output = tokio::time::timeout(std::time::Duration::from_secs(180), command.output()).await;
    let output = output.expect("three minutes are enough").unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("# fail 0") && !text.contains("# pass 0"), "{text}");
}

#[tokio::test]
async fn graphql_ws_graphql_sse_and_fetch() {
    if !node() {
        return;
    }
    let place = Workplace::new();
    place.seed(60).await;
    run("clients.test.mjs", &place.serve().await, "").await;
}

#[tokio::test]
async fn graphql_ws_graphql_sse_and_fetch_with_tokens() {
    if !node() {
        return;
    }
    let place = Workplace::new();
    place.seed(1).await;
    let secret = crate::auth::for_clients(&place);
    run("auth.test.mjs", &place.serve().await, secret).await;
}

/// The audits that `graphql-http` has for servers of the GraphQL-over-HTTP specification: all of them.
#[tokio::test]
async fn the_audits_of_graphql_over_http() {
    if !node() {
        return;
    }
    let place = Workplace::new();
    place.seed(10).await;
    run("audits.test.mjs", &place.serve().await, "").await;
}

#[tokio::test]
async fn the_page_and_graphiql_in_a_browser() {
    if !node() || !available("chromium", installed("chromium")) {
        return;
    }
    let place = Workplace::new();
    place.seed(60).await;
    let server = place.serve().await;
    let built = server.get("/graphiql/").await.0 == 200;
    run("page.test.mjs", &server, "").await;
    if available("graphiql", built) {
        run("graphiql.test.mjs", &server, "").await;
    }
}
